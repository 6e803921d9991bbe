// SPDX-License-Identifier: GPL-2.0

//! From HMM's array to segments.

use super::{
    kind::{
        Kind,
        KindCache, //
    },
    pfn::{
        to_phys,
        Pfn, //
    }, //
};
use crate::{
    bindings,
    io::PhysAddr,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    }, //
};
use core::ops::Range;

/// A run of pages that are contiguous in the address space and in physical memory, with the same
/// permission and kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The addresses; page aligned, half open and inside of what was walked.
    pub va: Range<usize>,
    /// The physical address of the first page.
    pub phys: PhysAddr,
    /// Whether the process may write to the pages now, without a fault.
    pub write: bool,
    /// What sort of memory the pages are.
    pub kind: Kind,
}

/// What the CPU page tables say about one page.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PageState {
    /// The page is not present, a fault may bring it.
    None,
    /// The page cannot be accessed: there is no VMA, or it does not allow access, or it is special
    /// memory.
    Error,
    /// The page is present.
    Mapped {
        /// The physical address of this page.
        phys: PhysAddr,
        /// The order of the CPU page table entry that maps it. Such an entry may reach beyond what
        /// was walked.
        order: u32,
        /// Whether the process may write to it now, without a fault.
        write: bool,
        /// What sort of memory it is.
        kind: Kind,
        /// Whether it is the page of zeroes.
        zero: bool,
    },
}

/// Coalesces HMM's array into segments, in order of their addresses. Pages that are not valid are
/// left out.
///
/// `start` is the address of the first entry. It does no arithmetic with orders: every page has an
/// entry of its own.
pub(super) fn segments<'a, F>(
    pfns: &'a [usize],
    start: usize,
    kind_of: F,
) -> impl Iterator<Item = Segment> + use<'a, F>
where
    F: Fn(usize) -> Option<Kind>,
{
    let mut kinds = KindCache::new(kind_of);
    let mut pages = (start..)
        .step_by(PAGE_SIZE)
        .zip(pfns.iter().map(|&raw| Pfn::from_raw(raw)))
        .filter(|(_, pfn)| pfn.valid())
        .peekable();

    core::iter::from_fn(move || {
        let (va, first, kind) = loop {
            let (va, first) = pages.next()?;
            // What is no memory, or the memory of a device that is just going away, is as good as
            // not present.
            if let Some(kind) = kinds.of(first.number()) {
                break (va, first, kind);
            }
        };

        let mut count = 1;
        while pages
            .next_if(|&(next_va, next)| {
                // Pages that are left out do not appear here, hence the comparison of addresses.
                next_va.wrapping_sub(va) >> PAGE_SHIFT == count
                    && next.number().wrapping_sub(first.number()) == count
                    && next.write() == first.write()
                    && kinds.of(next.number()) == Some(kind)
            })
            .is_some()
        {
            count += 1;
        }

        Some(Segment {
            // OVERFLOW: The walked span, of which this is a part, does not wrap.
            va: va..va + (count << PAGE_SHIFT),
            phys: first.phys(),
            write: first.write(),
            kind,
        })
    })
}

/// Converts HMM's array into the states of the single pages.
pub(super) fn pages(pfns: &[usize]) -> impl Iterator<Item = PageState> + '_ {
    let mut kinds = KindCache::new(Kind::of);

    pfns.iter().map(move |&raw| {
        let pfn = Pfn::from_raw(raw);

        if !pfn.valid() {
            return if pfn.error() {
                PageState::Error
            } else {
                PageState::None
            };
        }

        match kinds.of(pfn.number()) {
            Some(kind) => PageState::Mapped {
                phys: pfn.phys(),
                order: pfn.order(),
                write: pfn.write(),
                kind,
                // A page of zeroes is never writable.
                zero: kind == Kind::System && !pfn.write() && is_zero(pfn.number()),
            },
            None => PageState::Error,
        }
    })
}

fn is_zero(pfn: usize) -> bool {
    // SAFETY: Any number is allowed.
    unsafe { bindings::is_zero_pfn(pfn) || bindings::is_huge_zero_pfn(pfn) }
}

/// Returns the block of `size` around the page at `va` as one segment, clipped to `bounds`.
///
/// The whole block must be mapped like the page.
pub(super) fn block(
    pfn: Pfn,
    va: usize,
    size: usize,
    bounds: &Range<usize>,
    kind: Kind,
) -> Segment {
    let start = va & !(size - 1);
    // The last block of the address space would end at 0. `bounds` ends before.
    let end = start
        .checked_add(size)
        .map_or(bounds.end, |end| end.min(bounds.end));
    let start = start.max(bounds.start);

    Segment {
        va: start..end,
        phys: to_phys(pfn.number().wrapping_sub((va - start) >> PAGE_SHIFT)),
        write: pfn.write(),
        kind,
    }
}

/// Repairs the entries of a walk that began inside a device private huge page.
///
/// For such a huge page HMM fills in the page frames from its head on, as if the walk had begun
/// there (`hmm_vma_handle_absent_pmd()`). For present ones it adds the offset. Compound pages are
/// naturally aligned, so that a wrong number can be told from a right one, and this does nothing
/// where HMM has been fixed.
///
/// `start` is the address of the first entry, `block` the size of a huge page.
pub(super) fn repair_head<F>(pfns: &mut [usize], start: usize, block: usize, kind_of: F)
where
    F: Fn(usize) -> Option<Kind>,
{
    let skipped = (start & (block - 1)) >> PAGE_SHIFT;
    if skipped == 0 {
        return;
    }

    let Some(first) = pfns.first().map(|&raw| Pfn::from_raw(raw)) else {
        return;
    };
    let pages = block >> PAGE_SHIFT;
    if !first.valid()
        || (1 << first.order()) < pages
        || first.number() % pages == skipped
        || kind_of(first.number()) != Some(Kind::DevicePrivate)
    {
        return;
    }

    for raw in pfns.iter_mut().take(pages - skipped) {
        // OVERFLOW: The page frame number is in the low bits, far from the flags, and stays in the
        // huge page.
        *raw += skipped;
    }
}
