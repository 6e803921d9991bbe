// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Address arithmetic.
//!
//! Addresses are bytes, spans are half open. All of it is free of overflow for spans that end at
//! or below `usize::MAX`, which every user address does.

use core::ops::Range;

use kernel::{
    page::PAGE_SIZE,
    ptr::{
        Alignable,
        Alignment, //
    },
    sizes::*, //
};

/// The unit of validity inside a range, in bytes; blocks are aligned to it in the CPU address space.
///
/// It is the largest leaf that GPUs map in one entry below 1 GiB, and the cut that no IOMMU link may
/// cross, so that each block can be unmapped alone.
pub const BLOCK_SIZE: usize = if PAGE_SIZE > SZ_2M { PAGE_SIZE } else { SZ_2M };

const BLOCK_ALIGN: Alignment = Alignment::new::<BLOCK_SIZE>();
const PAGE_ALIGN: Alignment = Alignment::new::<PAGE_SIZE>();

/// Whether `span` is a non-empty run of whole pages.
pub(super) fn is_whole_pages(span: &Range<usize>) -> bool {
    span.start < span.end
        && span.start.align_down(PAGE_ALIGN) == span.start
        && span.end.align_down(PAGE_ALIGN) == span.end
}

/// The part that two spans share; empty (`start >= end` or equal ends) where they do not meet.
pub(super) fn intersect(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);

    start..a.end.min(b.end).max(start)
}

/// Whether two spans share an address.
pub(super) fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Whether `outer` contains all of `inner`.
pub(super) fn contains(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// The smallest span that contains both.
pub(super) fn union(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    a.start.min(b.start)..a.end.max(b.end)
}

/// The block-aligned address at or below `addr`.
pub(super) fn block_start(addr: usize) -> usize {
    addr.align_down(BLOCK_ALIGN)
}

/// How many blocks a non-empty `span` touches.
pub(super) fn block_count(span: &Range<usize>) -> usize {
    // OVERFLOW: `span` is not empty, so `span.end - 1` does not wrap and is not below `span.start`.
    (block_start(span.end - 1) - block_start(span.start)) / BLOCK_SIZE + 1
}

/// The aligned window of `size` bytes (a power of two) around `addr`; `None` where it would leave
/// the address space.
pub(super) fn aligned_window(addr: usize, size: usize) -> Option<Range<usize>> {
    let start = addr & !(size.wrapping_sub(1));

    Some(start..start.checked_add(size)?)
}

/// Chooses the span of a new range around `addr`.
///
/// It is the first of `sizes` (powers of two, descending; those below a page count as a page) whose
/// aligned window around `addr` lies inside `limit` and for which `is_free` holds; `None` if no size
/// fits. Follows `drm_gpusvm_range_chunk_size()` in
/// [`drivers/gpu/drm/drm_gpusvm.c`](srctree/drivers/gpu/drm/drm_gpusvm.c), without its assumption
/// of 4 KiB pages.
pub(super) fn choose_chunk(
    addr: usize,
    sizes: &[usize],
    limit: &Range<usize>,
    mut is_free: impl FnMut(&Range<usize>) -> bool,
) -> Option<Range<usize>> {
    sizes
        .iter()
        .copied()
        .filter(|size| *size > PAGE_SIZE)
        // Whatever the sizes are, a page is the last resort.
        .chain(core::iter::once(PAGE_SIZE))
        .filter_map(|size| aligned_window(addr, size))
        .find(|chunk| contains(limit, chunk) && is_free(chunk))
}

/// Checks a driver's chunk sizes at build time: powers of two, none larger than the one before, the
/// last one a page or less.
pub(super) const fn chunk_sizes_are_valid(sizes: &[usize]) -> bool {
    let mut i = 0;

    while i < sizes.len() {
        if !sizes[i].is_power_of_two() || (i > 0 && sizes[i] > sizes[i - 1]) {
            return false;
        }
        i += 1;
    }
    i > 0 && sizes[i - 1] <= PAGE_SIZE
}
