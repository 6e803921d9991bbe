// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a fault has to know of a VMA.

use core::ops::Range;

use kernel::{
    mm::{
        hmm::Access,
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
    span::intersect,
    FaultError, //
};

/// What was true of a VMA when it was looked up.
///
/// It is only a hint: the mmap lock has been dropped since. The walk checks everything again, and its
/// sequence number tells whether it still holds.
pub(super) struct Vma {
    /// The addresses of the VMA, half open.
    pub(super) span: Range<usize>,
    /// What neighbours of a faulting page may be asked for: nothing where asking has side effects.
    around: Option<Access>,
    writable: bool,
}

/// VMAs on whose behalf user space handles faults: only pages that are really accessed may fault.
const USERFAULT: vm_flags_t = kernel::bindings::VM_UFFD_FLAGS;

impl Vma {
    /// Looks up the VMA at `addr` and checks that `access` is permitted. Takes the mmap lock.
    pub(super) fn lookup(mm: &MmWithUser, addr: usize, access: Access) -> Result<Self, FaultError> {
        let lock = mm.mmap_read_lock();
        let vma = lock.vma_lookup(addr).ok_or(FaultError::Unmapped)?;

        Self::check(vma, access)
    }

    fn check(vma: &VmaRef, access: Access) -> Result<Self, FaultError> {
        let vm_flags = vma.flags();
        let has = |flag: vm_flags_t| vm_flags & flag != 0;

        if has(flags::IO) || has(flags::PFNMAP) || !has(flags::READ) {
            return Err(FaultError::Inaccessible);
        }
        if matches!(access, Access::Write) && !has(flags::WRITE) {
            return Err(FaultError::Access);
        }
        let private = !has(flags::SHARED) && !has(flags::MAYSHARE);

        Ok(Self {
            span: vma.start()..vma.end(),
            around: if has(USERFAULT) {
                None
            } else if private {
                Some(access)
            } else {
                // Writing to a page of a file makes it dirty, so only what is accessed is.
                Some(Access::Read)
            },
            writable: has(flags::WRITE),
        })
    }

    /// What to ask for around a fault with `access`, and where: at most `block`.
    pub(super) fn around(&self, block: &Range<usize>) -> Option<(Range<usize>, Access)> {
        let access = match self.around? {
            Access::Write if !self.writable => Access::Read,
            access => access,
        };

        Some((intersect(&self.span, block), access))
    }
}
