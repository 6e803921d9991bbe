// SPDX-License-Identifier: GPL-2.0

//! Operations on the folios behind physical addresses.
//!
//! There is no folio type here on purpose: nothing in this module takes or hands out references to
//! folios. Callers prove by other means, usually an interval notifier, that they stay.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use crate::{
    bindings,
    io::PhysAddr,
    page::PAGE_SHIFT, //
};

/// Marks the folios that contain `len` bytes from `phys` as dirty.
///
/// Both are multiples of the page size. For memory that a device may have written: a page table entry
/// that permits writing need not be dirty, so the core mm cannot know. As `set_page_dirty()` in
/// `ib_umem_odp_unmap_dma_pages()`, [`drivers/infiniband/core/umem_odp.c`].
///
/// Does not sleep and does not take the folio lock, whose holders wait for invalidations. May be called
/// from an invalidation.
///
/// # Examples
///
/// ```
/// use kernel::mm::{
///     folio,
///     hmm::Segment, //
/// };
///
/// /// The device does not use `segment` any more.
/// ///
/// /// # Safety
/// ///
/// /// It must be system memory, and the invalidation that takes it away must not have returned yet.
/// unsafe fn device_has_stopped(segment: &Segment) {
///     if segment.write {
///         // SAFETY: The pages are freed only after the invalidation.
///         unsafe { folio::mark_dirty(segment.phys, segment.va.len()) };
///     }
/// }
/// ```
///
/// # Safety
///
/// `phys` and `len` must describe pages, of the system or of a device, that are mapped in an address
/// space and stay so during the call, which keeps the folios from being freed and from losing their
/// mapping.
///
/// [`drivers/infiniband/core/umem_odp.c`]: srctree/drivers/infiniband/core/umem_odp.c
pub unsafe fn mark_dirty(phys: PhysAddr, len: usize) {
    // CAST: A page frame number fits into a `usize`.
    let mut pfn = (phys >> PAGE_SHIFT) as usize;
    // OVERFLOW: The end of a physical address range is a physical address.
    let end = pfn + (len >> PAGE_SHIFT);

    while pfn < end {
        // SAFETY: By the requirement, `pfn` has a `struct page`, and this page belongs to a folio that
        // stays.
        let left = unsafe {
            let page = bindings::pfn_to_page(pfn);
            let folio = bindings::page_folio(page);

            bindings::folio_mark_dirty(folio);
            bindings::folio_nr_pages(folio) - bindings::folio_page_idx(folio, page)
        };
        // OVERFLOW: As for `end`.
        pfn += left;
    }
}
