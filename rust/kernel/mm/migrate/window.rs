// SPDX-License-Identifier: GPL-2.0

//! One window of a migration, in whatever state.
//!
//! Nothing here is generic over what a driver gives, so that it exists once, in the kernel.

use super::{
    buffer::Buffer,
    destination::Destination,
    entry::{
        Entry,
        Mpfn, //
    },
    Request,
    WINDOW, //
};
use crate::{
    bindings,
    error::to_result,
    mm::{
        pagemap::PMD_PAGES,
        virt::VmaRef, //
    },
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    types::NotThreadSafe, //
};
use core::ops::Range;

/// The pages of a window between their collection and the end of the migration.
///
/// Dropping it ends the migration. Unless it was [committed](Self::commit), everything is put back.
///
/// # Invariants
///
/// - `args` is what `migrate_vma_setup()` has left, or if `args.vma` is null, then the sources were
///   collected by frame number. Its arrays are those of `buf`, with `args.npages` entries.
/// - The sources are those of a migration in progress: locked pages with a reference.
/// - Until `committed`, each destination with a page is a [`Destination`] that was handed over, with as
///   many pages as the source or one.
pub(super) struct Window<'a> {
    args: bindings::migrate_vma,
    buf: &'a mut Buffer,
    committed: bool,
    _nts: NotThreadSafe,
}

impl<'a> Window<'a> {
    /// See [`super::Collected::from_vma`].
    ///
    /// # Safety
    ///
    /// As there.
    pub(super) unsafe fn from_vma(
        vma: &'a VmaRef,
        span: Range<usize>,
        request: &Request<'_>,
        fault_page: *mut bindings::page,
        buf: &'a mut Buffer,
    ) -> Result<Self> {
        if span.is_empty()
            || (span.start | span.end) % PAGE_SIZE != 0
            || span.start / WINDOW != (span.end - 1) / WINDOW
        {
            return Err(EINVAL);
        }

        let mut flags = 0;
        for (on, flag) in [
            (
                request.system,
                bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_SYSTEM,
            ),
            (
                request.private,
                bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
            ),
            (
                request.coherent,
                bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_DEVICE_COHERENT,
            ),
            (
                request.large,
                bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_COMPOUND,
            ),
        ] {
            if on {
                flags |= flag;
            }
        }

        buf.clear();
        let mut args = bindings::migrate_vma {
            vma: vma.as_ptr(),
            dst: buf.dst.as_mut_ptr(),
            src: buf.src.as_mut_ptr(),
            cpages: 0,
            npages: 0,
            start: span.start,
            end: span.end,
            pgmap_owner: request.owner.as_ptr().as_ptr(),
            // CAST: An enumeration of C.
            flags: flags as usize,
            fault_page,
        };
        // SAFETY: By the requirements, the mmap lock is held, the VMA is valid and the page of the
        // fault, if any, is locked. The arrays have room for a whole window.
        to_result(unsafe { bindings::migrate_vma_setup(&mut args) })?;

        // INVARIANT: This is what `migrate_vma_setup()` has left. There are no destinations yet.
        Ok(Self {
            args,
            buf,
            committed: false,
            _nts: NotThreadSafe,
        })
    }

    /// See [`super::Collected::from_pfns`].
    ///
    /// # Safety
    ///
    /// As there.
    pub(super) unsafe fn from_pfns(
        pfns: Range<usize>,
        is_used: impl Fn(usize) -> bool,
        buf: &'a mut Buffer,
    ) -> Self {
        let len = pfns.len().min(PMD_PAGES);
        buf.clear();

        let mut index = 0;
        while index < len {
            // OVERFLOW: These are page frame numbers of the range.
            let pfn = pfns.start + index;
            let mut src = Mpfn::from_raw(0);

            if is_used(pfn) {
                let mut pin = core::ptr::null_mut();
                // SAFETY: By the requirements, the page exists.
                src = Mpfn::from_raw(unsafe {
                    bindings::migrate_device_collect(pfn, len - index, &mut pin)
                });
                buf.src[index] = src.raw();
                buf.pins[index] = pin.expose_provenance();
            }
            index += src.pages();
        }

        // INVARIANT: These sources were collected by frame number.
        Self {
            args: bindings::migrate_vma {
                vma: core::ptr::null_mut(),
                dst: buf.dst.as_mut_ptr(),
                src: buf.src.as_mut_ptr(),
                cpages: 0,
                npages: len,
                start: 0,
                end: 0,
                pgmap_owner: core::ptr::null_mut(),
                flags: 0,
                fault_page: core::ptr::null_mut(),
            },
            buf,
            committed: false,
            _nts: NotThreadSafe,
        }
    }

    /// Returns the number of entries.
    pub(super) fn len(&self) -> usize {
        self.args.npages.min(PMD_PAGES)
    }

    /// The address that the window begins at, if it was collected by addresses.
    fn start(&self) -> Option<usize> {
        (!self.args.vma.is_null()).then_some(self.args.start)
    }

    /// The VMA that the window is in, if it was collected by addresses.
    pub(super) fn vma(&self) -> Option<&'a VmaRef> {
        // SAFETY: By the type invariants, the VMA stays for `'a`, with the mmap lock held.
        (!self.args.vma.is_null()).then(|| unsafe { VmaRef::from_raw(self.args.vma) })
    }

    fn src(&self, index: usize) -> Mpfn {
        Mpfn::from_raw(self.buf.src.get(index).copied().unwrap_or(0))
    }

    pub(super) fn dst(&self, index: usize) -> Mpfn {
        Mpfn::from_raw(self.buf.dst.get(index).copied().unwrap_or(0))
    }

    /// Returns the source at `index` if it can move.
    ///
    /// Only before the commit. The lifetime is that of the lock of the page, which is what the caller
    /// must not let the result live longer than.
    pub(super) fn entry<'c>(&self, index: usize) -> Option<Entry<'c>>
    where
        'a: 'c,
    {
        let src = self.src(index);

        // SAFETY: By the type invariants, the page, if any, is locked until the window is dropped.
        src.moves()
            .then(|| unsafe { Entry::new(index, src, self.start()) })
    }

    /// Returns the index of the next source after that at `index`.
    pub(super) fn next(&self, index: usize) -> usize {
        let src = self.src(index);

        // OVERFLOW: Indices are at most the number of pages of a window.
        index + if src.moves() { src.pages() } else { 1 }
    }

    /// Whether the large source at `index` may be moved page by page.
    pub(super) fn can_split(&self, index: usize) -> bool {
        let src = self.src(index);
        if self.args.vma.is_null() {
            return false;
        }
        if !src.has_page() || self.args.fault_page.is_null() {
            return true;
        }
        // The fault has a reference to the folio, with which it cannot be split.
        // SAFETY: Both pages are locked, and so their folios are valid.
        unsafe {
            bindings::page_folio(bindings::pfn_to_page(src.pfn()))
                != bindings::page_folio(self.args.fault_page)
        }
    }

    /// Gives the page, or large folio, at `index` a destination.
    pub(super) fn set(&mut self, index: usize, dst: Destination) {
        if let Some(slot) = self.buf.dst.get_mut(index) {
            *slot = dst.into_mpfn().raw();
        }
    }

    /// Takes the destination at `index` back.
    pub(super) fn unset(&mut self, index: usize) -> Option<Destination> {
        let slot = self.buf.dst.get_mut(index)?;
        let dst = Mpfn::from_raw(core::mem::take(slot));

        // SAFETY: By the type invariants it was handed over by `set`, and it is taken out here.
        dst.has_page()
            .then(|| unsafe { Destination::from_mpfn(dst) })
    }

    /// Moves what has a destination. Only once.
    pub(super) fn commit(&mut self) {
        self.split_holes();

        // The arrays of `buf` have been borrowed in the meantime.
        self.args.src = self.buf.src.as_mut_ptr();
        self.args.dst = self.buf.dst.as_mut_ptr();
        // SAFETY: By the type invariants, this is a migration in progress, and the destinations are
        // locked folios with a reference that is ours. If there is a VMA, then the mmap lock is held.
        unsafe {
            if self.args.vma.is_null() {
                bindings::migrate_device_pages(self.args.src, self.args.dst, self.args.npages);
            } else {
                bindings::migrate_vma_pages(&mut self.args);
            }
        }
        self.committed = true;
    }

    /// Makes a large hole one hole for each of those pages of it that have got a destination.
    ///
    /// `migrate_vma_pages()` would do so as well, but it expects each of them to have got one.
    fn split_holes(&mut self) {
        let mut index = 0;
        while index < self.len() {
            let src = self.src(index);
            let next = self.next(index);

            if src.moves() && src.large() && !src.has_page() && !self.dst(index).large() {
                for page in index..next {
                    let hole = match self.dst(page).has_page() {
                        true => Mpfn::small_hole(),
                        false => Mpfn::from_raw(0),
                    };
                    if let Some(slot) = self.buf.src.get_mut(page) {
                        *slot = hole.raw();
                    }
                }
            }
            index = next;
        }
    }

    /// Whether the page at `index`, which has a destination, has moved. Only after the commit.
    pub(super) fn has_moved(&self, index: usize) -> bool {
        self.src(index).moves()
    }

    /// The address of the page at `index`, if the window was collected by addresses.
    pub(super) fn va(&self, index: usize) -> Option<usize> {
        // OVERFLOW: This is an address of the window.
        self.start().map(|start| start + (index << PAGE_SHIFT))
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        if !self.committed {
            for index in 0..self.len() {
                drop(self.unset(index));
            }
        }

        self.args.src = self.buf.src.as_mut_ptr();
        self.args.dst = self.buf.dst.as_mut_ptr();
        // SAFETY: By the type invariants, this is a migration in progress, whose destinations are what
        // was committed, or none.
        unsafe {
            if self.args.vma.is_null() {
                bindings::migrate_device_finalize(self.args.src, self.args.dst, self.args.npages);
            } else {
                bindings::migrate_vma_finalize(&mut self.args);
            }
        }

        for pin in self.buf.pins.iter_mut() {
            let pin: *mut bindings::anon_vma =
                core::ptr::with_exposed_provenance_mut(core::mem::take(pin));
            if !pin.is_null() {
                // SAFETY: This is a reference that `migrate_device_collect()` has given.
                unsafe { bindings::migrate_device_unpin(pin) };
            }
        }
    }
}
