// SPDX-License-Identifier: GPL-2.0

//! The page map without its type.
//!
//! Nothing here is generic, so that it exists once, in the kernel, and may use C functions that are
//! not exported to modules.

use super::{
    ops::Freed,
    owner::Owner,
    region::{
        Place,
        Region, //
    },
    used::Used,
    Type,
    LARGE,
    PMD_ORDER,
    PMD_PAGES, //
};
use crate::{
    bindings,
    container_of,
    device::{
        Bound,
        Device, //
    },
    error::{
        from_err_ptr,
        to_result, //
    },
    io::PhysAddr,
    mm::migrate::{
        Buffer,
        Collected,
        Destination, //
    },
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full, //
        },
        new_rwsem,
        Arc,
        RwSemaphore, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    types::Opaque, //
};
use core::ops::Range;

/// A page map without its type.
///
/// # Invariants
///
/// - `inner` is registered, for the pages of `region`, which have frame numbers from `first` on, until
///   `gate` says that it is not. That changes only while no page is in `used` and `closed` is set.
/// - A page is in `used` from before its folio is initialised until its last reference is gone.
#[pin_data(PinnedDrop)]
pub(super) struct Raw {
    #[pin]
    inner: Opaque<bindings::dev_pagemap>,
    used: Used,
    first: usize,
    pages: usize,
    kind: Type,
    closed: Atomic<bool>,
    /// Whether there are pages. Taken by those who look at pages that they do not know to be in use.
    #[pin]
    gate: RwSemaphore<bool>,
    owner: Arc<Owner>,
    // The last one: the addresses are free when there are no pages any more.
    region: Region,
}

// SAFETY: Everything that C keeps in `inner` may be used by any thread.
unsafe impl Send for Raw {}
// SAFETY: As above; what changes is atomic.
unsafe impl Sync for Raw {}

impl Raw {
    /// Registers pages for device memory.
    ///
    /// # Safety
    ///
    /// The callbacks of `ops` must be safe to be called for pages that [`Raw::take`] is called for.
    pub(super) unsafe fn new<'a>(
        dev: &'a Device<Bound>,
        name: &'static CStr,
        kind: Type,
        place: Place,
        owner: Arc<Owner>,
        ops: &'static bindings::dev_pagemap_ops,
    ) -> impl PinInit<Self, Error> + use<'a> {
        pin_init::pin_init_scope(move || {
            if let (Type::Coherent, Place::Free(_)) = (kind, &place) {
                return Err(EINVAL);
            }
            let region = Region::new(&place, name)?;
            let (start, len) = (region.start(), region.len());
            let pages = len >> PAGE_SHIFT;
            let used = Used::new(pages, GFP_KERNEL)?;
            let id = owner.as_ptr();

            Ok(try_pin_init!(Self {
                used,
                // CAST: A page frame number fits into a `usize`.
                first: (start >> PAGE_SHIFT) as usize,
                pages,
                kind,
                closed: Atomic::new(false),
                gate <- new_rwsem!(true, "Pagemap::gate"),
                owner,
                region,
                // INVARIANT: The last field, so that nothing fails once it is registered.
                inner <- Opaque::try_ffi_init(move |slot: *mut bindings::dev_pagemap| {
                    // SAFETY: `slot` is valid for writes, and all fields may be zero. The addresses
                    // are reserved for us. It stays where it is until it is unregistered.
                    unsafe {
                        slot.write_bytes(0, 1);
                        (*slot).type_ = kind.as_raw();
                        (*slot).ops = ops;
                        (*slot).owner = id.as_ptr();
                        bindings::pagemap_set_range(slot, start, len as u64);
                        from_err_ptr(bindings::memremap_pages(
                            slot,
                            bindings::dev_to_node(dev.as_raw()),
                        ))?;
                    }
                    Ok::<(), Error>(())
                }),
            }? Error))
        })
    }

    /// Returns the page map that `inner` belongs to.
    ///
    /// # Safety
    ///
    /// `inner` must be that of a `Raw` that lives for `'a`.
    pub(super) unsafe fn from_inner<'a>(inner: *mut bindings::dev_pagemap) -> &'a Self {
        let inner = Opaque::cast_from(inner).cast_mut();
        // SAFETY: By the requirement, it is the field of a `Raw`.
        unsafe { &*container_of!(inner, Self, inner) }
    }

    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    pub(super) fn kind(&self) -> Type {
        self.kind
    }

    pub(super) fn owner(&self) -> &Arc<Owner> {
        &self.owner
    }

    pub(super) fn used(&self) -> &Used {
        &self.used
    }

    pub(super) fn close(&self) {
        // A full barrier: whoever claims pages sees it, or its pages are seen to be in use.
        self.closed.xchg(true, Full);
    }

    /// Unregisters the pages if none is in use. Returns whether there are no pages any more.
    pub(super) fn try_unregister(&self) -> bool {
        self.close();

        let mut registered = self.gate.write();
        if !*registered {
            return true;
        }
        if self.used.count() != 0 {
            return false;
        }
        *registered = false;
        // SAFETY: By the type invariants it is registered. No page is in use, and none will be since
        // it is closed; so this waits for the end of running callbacks at most. Nobody looks at a
        // page, since that takes the gate.
        unsafe { bindings::memunmap_pages(self.inner.get()) };
        true
    }

    /// The page frame number of a page.
    fn pfn(&self, offset: usize) -> Option<usize> {
        // OVERFLOW: These are the page frame numbers of the region.
        (offset < self.pages).then(|| self.first + offset)
    }

    /// The page that has a frame number.
    pub(super) fn offset(&self, pfn: usize) -> Option<usize> {
        pfn.checked_sub(self.first)
            .filter(|offset| *offset < self.pages)
    }

    pub(super) fn phys(&self, offset: usize) -> Option<PhysAddr> {
        self.pfn(offset).map(|pfn| (pfn as PhysAddr) << PAGE_SHIFT)
    }

    /// See [`super::Pagemap::take`].
    pub(super) fn take(&self, offset: usize, order: u32) -> Result<Destination> {
        let pfn = self.pfn(offset).ok_or(EINVAL)?;
        let large = match order {
            0 => false,
            PMD_ORDER if LARGE && self.kind == Type::Private => true,
            _ => return Err(EINVAL),
        };
        if large && (pfn % PMD_PAGES != 0 || !self.used.is_group(offset, order)) {
            return Err(EINVAL);
        }
        // Claimed first, with a full barrier: see `close`.
        if !self.used.claim(offset, order) {
            return Err(EBUSY);
        }
        if self.closed.load(Acquire) {
            self.used.release(offset, order);
            return Err(ENODEV);
        }

        // SAFETY: By the type invariants, the pages exist as long as they are in `used`, and nobody
        // had a reference to one of them. They are ours now, as a folio that is locked and has one
        // reference.
        Ok(unsafe {
            let folio = bindings::pfn_to_page(pfn).cast::<bindings::folio>();

            bindings::zone_device_folio_init(folio, self.inner.get(), order);
            Destination::from_raw(folio)
        })
    }

    /// Takes note that the last reference of a folio is gone. The pages can be taken again.
    ///
    /// # Safety
    ///
    /// `folio` must be a folio of this page map without references, which nobody else frees.
    pub(super) unsafe fn freed(&self, folio: *mut bindings::folio) -> Freed {
        // SAFETY: By the requirement, the folio is still what it was while it had a reference.
        let (pfn, order) = unsafe {
            (
                bindings::page_to_pfn(folio.cast()),
                bindings::folio_order(folio),
            )
        };
        let offset = pfn.wrapping_sub(self.first);

        self.used.release(offset, order);
        Freed { offset, order }
    }

    /// Makes a page of a large folio a folio of its own. Returns the pages of both.
    ///
    /// # Safety
    ///
    /// `head` must be a folio of this page map that the core mm is splitting, and `tail` one that it
    /// has split off and that nobody else knows yet.
    pub(super) unsafe fn split_off(
        &self,
        head: *mut bindings::folio,
        tail: *mut bindings::folio,
    ) -> (usize, usize) {
        // SAFETY: By the requirement.
        let (head, tail) = unsafe {
            bindings::folio_device_split(head, tail);
            (
                bindings::page_to_pfn(head.cast()),
                bindings::page_to_pfn(tail.cast()),
            )
        };
        (head.wrapping_sub(self.first), tail.wrapping_sub(self.first))
    }

    /// See [`super::Pagemap::collect`].
    pub(super) fn collect<'a>(
        &'a self,
        pages: Range<usize>,
        buf: &'a mut Buffer,
    ) -> Result<Collected<'a>> {
        if pages.is_empty()
            || pages.end > self.pages
            || pages.start / PMD_PAGES != (pages.end - 1) / PMD_PAGES
        {
            return Err(EINVAL);
        }

        let registered = self.gate.read();
        if !*registered {
            return Err(ENODEV);
        }
        // OVERFLOW: These are the page frame numbers of the region.
        let pfns = self.first + pages.start..self.first + pages.end;
        // SAFETY: These pages exist: they are registered, and those that are collected keep it so.
        Ok(unsafe {
            Collected::from_pfns(
                pfns,
                |pfn| self.used.contains(pfn.wrapping_sub(self.first)),
                buf,
            )
        })
    }

    /// See [`super::Pagemap::split`].
    pub(super) fn split(&self, offset: usize) -> Result {
        let pfn = self.pfn(offset).ok_or(EINVAL)?;

        let registered = self.gate.read();
        if !*registered {
            return Err(ENODEV);
        }
        // SAFETY: The page is one of ours, which are registered.
        to_result(unsafe { bindings::migrate_device_split(pfn) })
    }
}

#[pinned_drop]
impl PinnedDrop for Raw {
    fn drop(self: Pin<&mut Self>) {
        while !self.try_unregister() {
            fsleep(Delta::from_millis(10));
        }
    }
}
