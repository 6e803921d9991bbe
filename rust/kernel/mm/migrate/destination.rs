// SPDX-License-Identifier: GPL-2.0

//! Where pages are moved to.

use super::entry::Mpfn;
use crate::{
    bindings,
    io::PhysAddr,
    mm::virt::VmaRef,
    page::PAGE_SHIFT,
    prelude::*, //
};
use core::{
    mem::ManuallyDrop,
    ptr::NonNull, //
};

/// A folio that pages can be moved to.
///
/// It comes from [`Pagemap::take`] or [`Destination::system`]. Dropping it frees it.
///
/// [`Pagemap::take`]: crate::mm::pagemap::Pagemap::take
///
/// # Invariants
///
/// The folio is locked by us and not mapped, and we have a reference to it.
#[must_use]
pub struct Destination(NonNull<bindings::folio>);

// SAFETY: The lock and the reference of a folio may be given up by any thread.
unsafe impl Send for Destination {}
// SAFETY: There are only methods that read what does not change.
unsafe impl Sync for Destination {}

impl Destination {
    /// Allocates a folio of `1 << order` pages of system memory.
    ///
    /// Its content is undefined. It is not charged to a memory control group: it takes over the charge
    /// of what is moved there. It may sleep, and reclaim memory.
    ///
    /// # Errors
    ///
    /// `ENOMEM`: there is none, for `order` greater than 0 also if it cannot be had easily.
    pub fn system(order: u32) -> Result<Self> {
        Self::alloc(None, order, false)
    }

    /// As [`Self::system`], for the page at an address. With `nofail`, base pages are waited for.
    pub(super) fn alloc(at: Option<(&VmaRef, usize)>, order: u32, nofail: bool) -> Result<Self> {
        let (vma, addr) = at.map_or((core::ptr::null_mut(), 0), |(vma, addr)| {
            (vma.as_ptr(), addr)
        });
        // SAFETY: The VMA is either null, or valid and stays so during the call.
        let folio = unsafe { bindings::migrate_alloc_folio(vma, addr, order, nofail) };
        if folio.is_null() {
            return Err(ENOMEM);
        }

        // SAFETY: The folio is valid.
        let locked = unsafe { bindings::folio_trylock(folio) };
        // SAFETY: The folio is new: nobody else can have locked it, and the reference is ours.
        let this = unsafe { Self::from_raw(folio) };
        if !locked {
            // Somebody who goes through all memory can, for a moment, hold the lock of any page.
            // SAFETY: The folio is valid, and not locked by us.
            unsafe { bindings::__folio_lock(folio) };
        }
        Ok(this)
    }

    /// # Safety
    ///
    /// `folio` must be locked or become so before anything else, not be mapped, and both the lock and a
    /// reference are handed over.
    pub(crate) unsafe fn from_raw(folio: *mut bindings::folio) -> Self {
        // INVARIANT: By the requirement.
        // SAFETY: A folio is not null.
        Self(unsafe { NonNull::new_unchecked(folio) })
    }

    /// Takes back what [`Self::into_mpfn`] has given.
    ///
    /// # Safety
    ///
    /// Once for each call of that.
    pub(super) unsafe fn from_mpfn(mpfn: Mpfn) -> Self {
        // SAFETY: By the requirement this is the first page of the folio that was handed over.
        unsafe { Self::from_raw(bindings::pfn_to_page(mpfn.pfn()).cast()) }
    }

    /// Hands over the folio as an entry of the array of destinations.
    pub(super) fn into_mpfn(self) -> Mpfn {
        let this = ManuallyDrop::new(self);

        Mpfn::destination(this.pfn(), this.order() > 0)
    }

    fn pfn(&self) -> usize {
        // SAFETY: By the type invariants, the folio is valid, and its first page is where it is.
        unsafe { bindings::page_to_pfn(self.0.as_ptr().cast()) }
    }

    /// Returns the physical address. For private memory of a device it only says which page it is.
    pub fn phys(&self) -> PhysAddr {
        // CAST: Physical addresses are at least as wide as `usize` wherever migration exists.
        (self.pfn() as PhysAddr) << PAGE_SHIFT
    }

    /// It has `1 << order` pages.
    pub fn order(&self) -> u32 {
        // SAFETY: By the type invariants, the folio is valid.
        unsafe { bindings::folio_order(self.0.as_ptr()) }
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the lock and the reference are ours.
        unsafe {
            bindings::folio_unlock(self.0.as_ptr());
            bindings::folio_put(self.0.as_ptr());
        }
    }
}
