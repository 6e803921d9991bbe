// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a fault has to know of VMAs.

use core::ops::Range;

use kernel::{
    bindings,
    mm::{
        hmm::{
            Access,
            Held, //
        },
        virt::{
            flags,
            vm_flags_t,
            VmaRef, //
        },
        MmWithUser, //
    },
    prelude::*, //
};

use super::{
    ahead::WriteRun,
    span::intersect,
    FaultError, //
};

/// VMAs on whose behalf user space handles faults: only pages that are really accessed may fault.
const USERFAULT: vm_flags_t = bindings::VM_UFFD_FLAGS;

/// Return addresses, which only the CPU's call instructions may write; zero where there are none.
#[allow(clippy::unnecessary_cast)]
const SHADOW_STACK: vm_flags_t = bindings::VM_SHADOW_STACK as vm_flags_t;

/// What was true of a VMA when it was looked up.
///
/// It is only a hint: the lock has been dropped since. The walk finds out whether the pages can be
/// accessed, and [`for_each_mirrored`] afterwards whether they may be.
pub(super) struct Vma {
    /// The addresses of the VMA, half open.
    pub(super) span: Range<usize>,
    /// What neighbours of a faulting page may be asked for: nothing where user space would notice.
    around: Option<Access>,
}

impl Vma {
    /// Looks up the VMA at `addr` and checks that `access` is permitted.
    ///
    /// Sleeps; takes the lock of the VMA, or the mmap lock.
    pub(super) fn lookup(mm: &MmWithUser, addr: usize, access: Access) -> Result<Self, FaultError> {
        if let Some(vma) = mm.lock_vma_under_rcu(addr) {
            return Self::check(&vma, access);
        }
        let lock = mm.mmap_read_lock();
        let vma = lock.vma_lookup(addr).ok_or(FaultError::Unmapped)?;

        Self::check(vma, access)
    }

    fn check(vma: &VmaRef, access: Access) -> Result<Self, FaultError> {
        let has = |flag: vm_flags_t| vma.flags() & flag != 0;

        if !may_mirror(vma) {
            return Err(FaultError::Inaccessible);
        }
        if matches!(access, Access::Write) && !has(flags::WRITE) {
            return Err(FaultError::Access);
        }
        // SAFETY: `vma` is valid, and locked by the caller.
        let in_memory = unsafe {
            bindings::vma_is_shmem(vma.as_ptr()) || bindings::is_vm_hugetlb_page(vma.as_ptr())
        };
        let private = !has(flags::SHARED) && !has(flags::MAYSHARE);

        Ok(Self {
            span: vma.start()..vma.end(),
            around: if has(USERFAULT) {
                None
            } else if private || in_memory {
                Some(access)
            } else {
                // Writing to a page of a file has it written back, so only what is accessed is, or
                // likely to be: see `WriteRun`.
                Some(Access::Read)
            },
        })
    }

    /// What to ask for around a fault of `asked`, and where: at most `block`.
    pub(super) fn around(
        &self,
        block: &Range<usize>,
        asked: &Range<usize>,
        access: Access,
        writes: &mut WriteRun,
    ) -> Option<(Range<usize>, Access)> {
        let limit = intersect(&self.span, block);
        let around = self.around?;

        if access == Access::Write && around == Access::Read {
            let ahead = writes.ahead(asked, &limit);

            if ahead != *asked {
                return Some((ahead, Access::Write));
            }
        }
        Some((limit, around))
    }
}

/// Whether the faults of all VMAs in `span` may be served with the address space held, see
/// [`hmm::walk_held`](kernel::mm::hmm::walk_held).
pub(super) fn may_fault_held(held: &Held<'_>, span: &Range<usize>) -> bool {
    let mut all = true;

    held.for_each_vma(span, |vma| {
        // SAFETY: The VMA is valid, and locked.
        let in_memory = unsafe {
            bindings::vma_is_anonymous(vma.as_ptr())
                || bindings::vma_is_shmem(vma.as_ptr())
                || bindings::is_vm_hugetlb_page(vma.as_ptr())
        };

        all &= in_memory && vma.flags() & USERFAULT == 0;
    });
    all
}

/// Whether a device may see the memory of a VMA at all.
///
/// `hmm_range_fault()` refuses the first three itself; the others are what `check_vma_flags()` in
/// [`mm/gup.c`](srctree/mm/gup.c) refuses: secret memory is in no page table but the process's, and a
/// shadow stack is written by nothing but the CPU.
fn may_mirror(vma: &VmaRef) -> bool {
    let has = |flag: vm_flags_t| vma.flags() & flag != 0;

    // SAFETY: `vma` is valid, and locked by the caller.
    let secret = unsafe { bindings::vma_is_secretmem(vma.as_ptr()) };

    has(flags::READ) && !has(flags::IO | flags::PFNMAP | SHADOW_STACK) && !secret
}

/// Calls `f` with those parts of `span` which are in VMAs that a device may see, in order.
///
/// To be called after a walk: memory that a VMA gets later, or a VMA that was replaced since the walk
/// began, has sent an invalidation, which makes the result of the walk void. Takes the mmap lock for
/// reading, unless the address space is `held` already; `f` is called under it, and may sleep and
/// allocate.
pub(super) fn for_each_mirrored<E>(
    mm: &MmWithUser,
    held: Option<&Held<'_>>,
    span: &Range<usize>,
    mut f: impl FnMut(Range<usize>) -> Result<(), E>,
) -> Result<(), E> {
    let _lock = held.is_none().then(|| mm.mmap_read_lock());
    let mut addr = span.start;

    while addr < span.end {
        // SAFETY: The address space has a user, and its mmap lock is held.
        let vma = unsafe { bindings::find_vma(mm.as_raw(), addr) };
        if vma.is_null() {
            break;
        }
        // SAFETY: It is valid as long as the mmap lock is held, which outlives the reference.
        let vma = unsafe { VmaRef::from_raw(vma) };
        let part = intersect(&(vma.start()..vma.end()), span);

        if !part.is_empty() && may_mirror(vma) {
            f(part)?;
        }
        // `find_vma` gives a VMA that ends after `addr`.
        addr = vma.end();
    }
    Ok(())
}
