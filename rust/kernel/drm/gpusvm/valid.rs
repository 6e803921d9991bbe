// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Pages that are proved to be valid.

use core::ops::Range;

use kernel::dma::DmaAddress;

use super::{
    pages::Shared,
    span::intersect, //
};

/// Where memory is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the memory of the system, or in what can be accessed like that.
    System,
    /// In the device's own memory.
    Own,
    /// In the memory of another device, which this one can reach.
    Peer,
}

/// A run of memory that the device may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The addresses of the process, page aligned and half open, inside one
    /// [`BLOCK_SIZE`](super::BLOCK_SIZE) block.
    pub va: Range<usize>,
    /// The address by which the device reaches `va.start`; the run is contiguous for the device.
    ///
    /// A DMA address in system memory; an offset in bytes in the device's own memory; in the memory of
    /// another device, what [`Driver::peer_address`](super::Driver::peer_address) gave.
    pub dma: DmaAddress,
    /// Where it is.
    pub place: Place,
    /// Whether the device may write.
    pub write: bool,
}

/// Proof that the pages of a span are valid now.
///
/// This is the only place where device addresses can be read. It exists only while the notifier lock
/// of the span is held after its sequence number was found current, and cannot outlive it: whoever
/// writes the addresses into a page table during this time does so before the invalidation that
/// takes the pages away, which then finds them there.
///
/// The C code asks its users to call `drm_gpusvm_pages_valid()` at the right moment instead.
pub struct ValidPages<'g> {
    pages: Shared<'g>,
    span: Range<usize>,
}

impl<'g> ValidPages<'g> {
    pub(super) fn new(pages: Shared<'g>, span: Range<usize>) -> Self {
        Self { pages, span }
    }

    /// The span, page aligned and half open. It may contain addresses that are not mapped.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// What is mapped of the span, in the order of addresses.
    pub fn iter(&self) -> impl Iterator<Item = Segment> + use<'g> {
        let span = self.span.clone();

        self.pages
            .mapped(&self.span)
            .filter_map(move |(start, seg)| {
                // OVERFLOW: A segment lies inside a block, which is a span of valid addresses.
                let whole = start + seg.offset()..start + seg.end();
                let va = intersect(&whole, &span);

                (!va.is_empty()).then(|| Segment {
                    // OVERFLOW: `va` starts inside `whole`.
                    dma: seg.dma() + (va.start - whole.start) as DmaAddress,
                    place: seg.place(),
                    write: seg.write(),
                    va,
                })
            })
    }
}
