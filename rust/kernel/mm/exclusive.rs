// SPDX-License-Identifier: GPL-2.0

//! Memory that only a device may access for a while.
//!
//! A device that cannot do atomic operations on system memory together with the CPU can have a page for
//! itself: the CPU page table entry is replaced, and when the CPU touches the page, it gets it back
//! after an invalidation ([`Event::Clear`]) has told the device to stop.
//!
//! C: `make_device_exclusive()`, [`include/linux/rmap.h`](srctree/include/linux/rmap.h)
//!
//! [`Event::Clear`]: crate::mm::notifier::Event::Clear

use crate::{
    bindings,
    error::from_err_ptr,
    io::PhysAddr,
    mm::MmapReadGuard,
    page::PAGE_SHIFT,
    prelude::*,
    types::NotThreadSafe, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

/// A page that the CPU cannot access.
///
/// While this exists, its folio is locked: the CPU cannot get the page back, and so the device can be
/// told about it. After that the page belongs to the device until an invalidation.
///
/// # Invariants
///
/// `page` is a page of `folio`, which is locked by us and to which we have a reference.
#[must_use = "the CPU takes the page back as soon as this is dropped"]
pub struct Exclusive<'a> {
    folio: NonNull<bindings::folio>,
    page: NonNull<bindings::page>,
    _mmap: PhantomData<&'a MmapReadGuard<'a>>,
    _nts: NotThreadSafe,
}

impl Exclusive<'_> {
    /// Returns the physical address of the page.
    pub fn phys(&self) -> PhysAddr {
        // SAFETY: By the type invariants the page is valid.
        let pfn = unsafe { bindings::page_to_pfn(self.page.as_ptr()) };

        // CAST: Physical addresses are at least as wide as `usize` wherever this exists.
        (pfn as PhysAddr) << PAGE_SHIFT
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the lock and the reference are ours.
        unsafe {
            bindings::folio_unlock(self.folio.as_ptr());
            bindings::folio_put(self.folio.as_ptr());
        }
    }
}

/// Takes the page at `addr`, which need not be page aligned, away from the CPU.
///
/// It is faulted in for writing, and a large page is mapped by small entries first. All notifiers of
/// the address space get [`Event::Exclusive`] for the page, with `owner`: whatever else devices
/// have mapped there must go. That event advances the sequence of a notifier as any other does; so
/// take the number to compare with after this has returned, while the result exists.
///
/// It sleeps, and must not be called with a lock that a notifier callback takes.
///
/// C: `make_device_exclusive()`.
///
/// # Errors
///
/// - `EFAULT`: there is nothing, or it cannot be written;
/// - `EOPNOTSUPP`: it is not anonymous memory, or `hugetlb`;
/// - `ENOMEM`: out of memory in the fault;
/// - `EINTR`: a fatal signal is pending;
/// - other errors of a page fault.
///
/// [`Event::Exclusive`]: crate::mm::notifier::Event::Exclusive
pub fn make_device_exclusive<'a>(
    mmap: &'a MmapReadGuard<'_>,
    addr: usize,
    owner: Option<NonNull<c_void>>,
) -> Result<Exclusive<'a>> {
    let owner = owner.map_or(core::ptr::null_mut(), NonNull::as_ptr);
    let mut folio = core::ptr::null_mut();

    // SAFETY: The mmap lock is held for reading, and the mm has a user.
    let page = from_err_ptr(unsafe {
        bindings::make_device_exclusive(mmap.mm.as_raw(), addr, owner, &mut folio)
    })?;

    // INVARIANT: This is what we have got.
    Ok(Exclusive {
        folio: NonNull::new(folio).ok_or(EFAULT)?,
        page: NonNull::new(page).ok_or(EFAULT)?,
        _mmap: PhantomData,
        _nts: NotThreadSafe,
    })
}

#[cfg(CONFIG_DRM_GPUSVM_RUST_KUNIT_TEST)]
#[macros::kunit_tests(rust_mm_exclusive)]
mod tests {
    use super::*;
    use crate::{
        kunit::mm::*,
        mm::notifier::{
            tests::support::Recorder,
            Event, //
        },
        page::{
            BorrowedPage,
            PAGE_SIZE, //
        }, //
    };

    /// Writes to memory as a device does.
    fn device_writes(phys: PhysAddr, value: u64) -> Result {
        let pfn = (phys >> PAGE_SHIFT) as usize;
        // SAFETY: Any number is allowed.
        let page = NonNull::new(unsafe { bindings::pfn_to_online_page(pfn) }).ok_or(EFAULT)?;
        // SAFETY: The page belongs to the test, which does not free it.
        let page = unsafe { BorrowedPage::from_raw(page) };

        // SAFETY: The source is valid, and the CPU does not access the page.
        unsafe { page.write_raw((&raw const value).cast(), 0, size_of::<u64>()) }
    }

    #[test]
    fn the_cpu_takes_the_page_back() -> Result {
        let mm = attach_mm()?;
        let addr = vm_mmap(0, 2 * PAGE_SIZE, PROT_RW, PRIVATE)?;
        let span = addr..addr + 2 * PAGE_SIZE;
        write_user(addr, 1)?;
        write_user(addr + PAGE_SIZE, 2)?;
        let notifier = Recorder::new().register(&mm, span)?;

        let (phys, seq) = {
            let mmap = mm.mmap_read_lock();
            let owner = NonNull::new(Recorder::owner());
            let page = make_device_exclusive(&mmap, addr + 8, owner)?;
            (page.phys(), notifier.read_begin())
        };
        let passes = notifier.take_passes();
        let mut passes = passes.iter().flatten();
        assert!(passes.any(|pass| pass.event == Event::Exclusive
            && pass.owned
            && pass.start == addr
            && pass.end == addr + PAGE_SIZE));
        // That of the event is over: what is programmed now is valid until the CPU comes.
        assert!(!notifier.read().retry(seq));

        device_writes(phys, 42)?;
        assert_eq!(read_user(addr + PAGE_SIZE)?, 2);
        assert!(!notifier.read().retry(seq));
        assert_eq!(read_user(addr)?, 42);
        assert!(notifier.read().retry(seq));

        let passes = notifier.take_passes();
        let mut passes = passes.iter().flatten();
        assert!(passes.any(|pass| pass.event == Event::Clear && pass.start == addr));
        Ok(())
    }

    #[test]
    fn only_anonymous_memory_that_can_be_written() -> Result {
        let mm = attach_mm()?;
        let shared = vm_mmap(0, PAGE_SIZE, PROT_RW, SHARED)?;
        let readable = vm_mmap(0, 2 * PAGE_SIZE, PROT_READ, PRIVATE)?;
        // There is nothing here: it is the second page of what was mapped above.
        let nothing = readable + PAGE_SIZE;
        vm_munmap(nothing, PAGE_SIZE)?;
        let fresh = vm_mmap_aligned(PAGE_SIZE, PAGE_SIZE, PROT_RW)?;

        let errors = {
            let mmap = mm.mmap_read_lock();
            [shared, readable, nothing, fresh]
                .map(|addr| make_device_exclusive(&mmap, addr, None).err())
        };
        assert_eq!(errors, [Some(EOPNOTSUPP), Some(EFAULT), Some(EFAULT), None]);
        Ok(())
    }
}
