// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The pages of one span as one device sees them.
//!
//! A span is divided into blocks of [`BLOCK_SIZE`], aligned in the CPU address space. A block is the
//! unit of validity. Its pages are kept as segments, runs that are contiguous both in the CPU address
//! space and physically: a block that is one huge page is one segment, and memory is O(contiguous
//! runs), never an array per page.
//!
//! ```text
//!           fill             publish             stop                unmap
//!   Absent ------> Filled ------------> Mapped -------> Stopping -----------> Absent
//!     mutex + read   |    mutex + read     write lock ^           write lock,
//!         lock       |        lock                    |         after the flush
//!                    +--------------------------------+
//! ```
//!
//! The driver writes its page table while the block is Filled: so a block that others see as Mapped
//! is in the page table, and one whose driver failed half way is stopped like any other.
//!
//! The notifier lock and the range's mutex together make the accesses exclusive where they must be.
//! Which of them is held is in the type of the view through which [`Pages`] are used: [`Shared`],
//! [`Filling`] and [`Exclusive`].
//!
//! This replaces `struct drm_gpusvm_pages` of
//! [`include/drm/drm_gpusvm.h`](srctree/include/drm/drm_gpusvm.h), which has one entry per 4 KiB
//! page, one validity for all of them and no permission. There, that system pages must not be handed
//! to the device's own unmap (B-4), that the whole reservation must be freed (B-5) and that flags
//! must be forced so that an error path unmaps (B-6) each had to be learned; here a segment is
//! mapped if and only if it is in a published block, and the reservation frees itself.

use core::{
    cell::UnsafeCell,
    ops::Range, //
};

use kernel::{
    alloc::AllocError,
    device::{
        Bound,
        Device, //
    },
    dma::{
        attrs::*,
        iova::Reservation,
        map,
        Attrs,
        DataDirection,
        DmaAddress, //
    },
    io::PhysAddr,
    mm::folio,
    mm::hmm::Access,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Release, //
    },
};

use super::{
    device::{
        KeptDevice,
        MirrorDevice, //
    },
    span::{
        block_count,
        block_start,
        intersect,
        BLOCK_SIZE, //
    },
    valid::{
        Place,
        ValidPages, //
    },
};

/// Nothing of the block is mapped.
const ABSENT: u32 = 0;
/// The segments are mapped for the device, and its page tables use them.
const MAPPED: u32 = 1;
/// The device has been told to stop, and may not have done so yet: still mapped, but not to be used.
const STOPPING: u32 = 2;
/// The segments are mapped for the device, and the driver is just writing its page tables, or could
/// not finish that. For nobody but the one who fills it.
const FILLED: u32 = 3;

/// In [`Segment::len_flags`]: the device may write.
const WRITE: u32 = 1;
/// It is in the device's own memory.
const OWN: u32 = 2;
/// It is in the memory of another device.
const PEER: u32 = 4;
const FLAGS: u32 = WRITE | OWN | PEER;

/// A run of pages of a block.
#[derive(Copy, Clone)]
pub(super) struct Segment {
    /// Physical address of the first byte.
    phys: PhysAddr,
    /// What the device uses to reach it; for system memory meaningful once mapped.
    dma: DmaAddress,
    /// Offset in bytes from the start of the block.
    offset: u32,
    /// Length in bytes, a multiple of the page size, and flags in the bits below.
    len_flags: u32,
}

impl Segment {
    /// A run of system memory that starts `offset` bytes into its block; `len` is at most
    /// [`BLOCK_SIZE`].
    pub(super) fn new(offset: usize, phys: PhysAddr, len: usize, write: bool) -> Self {
        Self {
            phys,
            dma: 0,
            // CAST: Both are at most `BLOCK_SIZE`.
            offset: offset as u32,
            len_flags: len as u32 | if write { WRITE } else { 0 },
        }
    }

    /// As [`new`](Self::new), but in `place`, where the device reaches it at `dma`.
    pub(super) fn new_in(
        offset: usize,
        phys: PhysAddr,
        len: usize,
        write: bool,
        place: Place,
        dma: DmaAddress,
    ) -> Self {
        let mut seg = Self::new(offset, phys, len, write);

        seg.dma = dma;
        seg.len_flags |= match place {
            Place::System => 0,
            Place::Own => OWN,
            Place::Peer => PEER,
        };
        seg
    }

    pub(super) fn offset(&self) -> usize {
        self.offset as usize
    }

    pub(super) fn len(&self) -> usize {
        (self.len_flags & !FLAGS) as usize
    }

    /// Offset of the first byte after it.
    pub(super) fn end(&self) -> usize {
        // OVERFLOW: Both are at most `BLOCK_SIZE`.
        self.offset() + self.len()
    }

    pub(super) fn write(&self) -> bool {
        self.len_flags & WRITE != 0
    }

    pub(super) fn dma(&self) -> DmaAddress {
        self.dma
    }

    /// Where it is.
    pub(super) fn place(&self) -> Place {
        if self.len_flags & OWN != 0 {
            Place::Own
        } else if self.len_flags & PEER != 0 {
            Place::Peer
        } else {
            Place::System
        }
    }

    /// Whether it is mapped by the DMA API.
    fn is_system(&self) -> bool {
        self.len_flags & (OWN | PEER) == 0
    }

    fn permits(&self, access: Access) -> bool {
        self.write() || matches!(access, Access::Read)
    }

    fn direction(&self) -> DataDirection {
        if self.write() {
            DataDirection::Bidirectional
        } else {
            DataDirection::ToDevice
        }
    }
}

/// The segments of a block, in order: one, as for a huge page, inline, more in a vector.
pub(super) enum Segments {
    /// At most one.
    Few(Option<Segment>),
    /// More, in a vector of the size of a block that is in so many pieces.
    Many(KVec<Segment>),
}

impl Segments {
    /// None yet.
    pub(super) fn new() -> Self {
        Self::Few(None)
    }

    /// Adds one after the others. May allocate.
    pub(super) fn push(&mut self, seg: Segment) -> Result<(), AllocError> {
        match self {
            Self::Few(none @ None) => {
                *none = Some(seg);
                Ok(())
            }
            Self::Few(Some(first)) => {
                let mut many = KVec::with_capacity(2, GFP_KERNEL_ACCOUNT)?;

                many.push(*first, GFP_KERNEL_ACCOUNT)?;
                many.push(seg, GFP_KERNEL_ACCOUNT)?;
                *self = Self::Many(many);
                Ok(())
            }
            Self::Many(many) => many.push(seg, GFP_KERNEL_ACCOUNT),
        }
    }

    /// Gives back the memory beyond what is used. May allocate.
    pub(super) fn shrink(&mut self) -> Result<(), AllocError> {
        match self {
            Self::Few(_) => Ok(()),
            Self::Many(many) => {
                let mut exact = KVec::with_capacity(many.len(), GFP_KERNEL_ACCOUNT)?;

                exact.extend_from_slice(many, GFP_KERNEL_ACCOUNT)?;
                *many = exact;
                Ok(())
            }
        }
    }

    pub(super) fn as_slice(&self) -> &[Segment] {
        match self {
            Self::Few(few) => few.as_slice(),
            Self::Many(many) => many,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [Segment] {
        match self {
            Self::Few(few) => few.as_mut_slice(),
            Self::Many(many) => many,
        }
    }

    /// How many bytes of `span` they cover; `start` is the start of their block.
    pub(super) fn bytes_in(&self, start: usize, span: &Range<usize>) -> usize {
        let bytes = |seg: &Segment| {
            // OVERFLOW: Offsets stay inside the block, which is a valid span of addresses.
            let part = intersect(&(start + seg.offset()..start + seg.end()), span);

            part.end - part.start
        };

        self.as_slice().iter().map(bytes).sum()
    }

    /// Their length in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.as_slice().iter().map(Segment::len).sum()
    }
}

/// How far from `from` on the block at `start` is covered by `segments` with at least the permission
/// for `access`: the first address that is not. `from` must be in the block.
pub(super) fn covered_by(segments: &[Segment], start: usize, from: usize, access: Access) -> usize {
    let mut reached = from;
    // OVERFLOW: `from` is in the block.
    let first = segments.partition_point(|seg| seg.end() <= from - start);

    for seg in segments.iter().skip(first) {
        // OVERFLOW: Offsets stay inside the block, which is a valid span of addresses.
        if start + seg.offset() > reached || !seg.permits(access) {
            break;
        }
        reached = start + seg.end();
    }
    reached
}

/// # Invariants
///
/// - `segments` is written only through [`Filling`] while `state` is `ABSENT`, and through
///   [`Exclusive`].
/// - While `state` is `FILLED`, `MAPPED` or `STOPPING`, each segment is mapped for the device; while
///   it is `ABSENT`, none is.
struct Block {
    state: Atomic<u32>,
    segments: UnsafeCell<Segments>,
}

/// Where the device addresses of a span come from.
enum Iova {
    /// Nothing was mapped yet.
    Untried,
    /// There was none: each segment is mapped by itself. Either the device has no IOVA space of its
    /// own, or there was no room or no memory, which may pass.
    None(Backoff),
    /// Space for the whole span, kept over invalidations.
    Reserved(Reservation<KeptDevice>),
}

/// When to try again what has failed: after one occasion, then two, four, and so on.
#[derive(Copy, Clone)]
pub(super) struct Backoff {
    left: u8,
    next: u8,
}

impl Backoff {
    pub(super) const FIRST: Self = Self { left: 1, next: 2 };

    /// After another failure.
    pub(super) fn failed_again(self) -> Self {
        Self {
            left: self.next,
            next: self.next.saturating_mul(2),
        }
    }

    /// An occasion has come: whether it is to be used.
    pub(super) fn is_due(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }
}

/// How much an unmap took away.
#[derive(Default)]
pub(super) struct Unmapped {
    pub(super) blocks: u64,
    pub(super) segments: u64,
    pub(super) bytes: u64,
    /// Where to go on, if it stopped because it had unmapped enough.
    pub(super) next: Option<usize>,
}

/// The DMA state of one device for one span.
///
/// # Invariants
///
/// - `blocks` has one entry for each block that `span` touches.
/// - `iova` is accessed only through [`Filling`] and [`Exclusive`].
pub(super) struct Pages {
    span: Range<usize>,
    dev: MirrorDevice,
    blocks: KVec<Block>,
    iova: UnsafeCell<Iova>,
}

// SAFETY: The cells are accessed through the views only, whose constructors demand the locks that
// exclude conflicting accesses; everything inside is `Send`.
unsafe impl Sync for Pages {}

/// Mirroring demands that the device and the CPU see each other's writes without help, and that no
/// bounce buffer gets between; and a failure is handled, not worth a warning.
const ATTRS: fn() -> Attrs = || DMA_ATTR_REQUIRE_COHERENT | DMA_ATTR_NO_WARN;

impl Pages {
    /// Nothing mapped yet for `span`, which is not empty and page aligned. May sleep.
    pub(super) fn new(span: Range<usize>, dev: MirrorDevice) -> Result<Self, AllocError> {
        let count = block_count(&span);
        let mut blocks = KVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;

        for _ in 0..count {
            // INVARIANT: Absent, and no segments.
            blocks.push(
                Block {
                    state: Atomic::new(ABSENT),
                    segments: UnsafeCell::new(Segments::Few(None)),
                },
                GFP_KERNEL_ACCOUNT,
            )?;
        }
        // INVARIANT: `count` blocks were made.
        Ok(Self {
            span,
            dev,
            blocks,
            iova: UnsafeCell::new(Iova::Untried),
        })
    }

    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// The part of the span in the block that holds `addr`, which must be in the span.
    pub(super) fn block_span(&self, addr: usize) -> Range<usize> {
        let start = block_start(addr);

        intersect(&(start..start.saturating_add(BLOCK_SIZE)), &self.span)
    }

    /// The blocks that `span` touches, by their start address.
    fn blocks_in(&self, span: &Range<usize>) -> impl Iterator<Item = (usize, &Block)> {
        let base = block_start(self.span.start);
        let part = intersect(span, &self.span);
        let (first, count) = if part.is_empty() {
            (0, 0)
        } else {
            (
                // OVERFLOW: `part.start` is in the span, hence not below `base`.
                (block_start(part.start) - base) / BLOCK_SIZE,
                block_count(&part),
            )
        };

        self.blocks
            .iter()
            .enumerate()
            .skip(first)
            .take(count)
            // OVERFLOW: The start of a block that the span touches is a valid address.
            .map(move |(index, block)| (base + index * BLOCK_SIZE, block))
    }

    /// Whether a block in `span` is mapped, or on its way out: a hint unless the notifier lock is
    /// held.
    pub(super) fn is_busy(&self, span: &Range<usize>) -> bool {
        self.blocks_in(span)
            .any(|(_, block)| block.state.load(Acquire) != ABSENT)
    }

    /// Looks at the pages.
    ///
    /// # Safety
    ///
    /// The notifier lock of the span must be held, for reading or writing, as long as the result
    /// lives.
    pub(super) unsafe fn shared(&self) -> Shared<'_> {
        Shared {
            pages: self,
            filling: false,
        }
    }

    /// Maps and publishes blocks.
    ///
    /// # Safety
    ///
    /// As long as the result lives, the notifier lock of the span must be held for reading, and the
    /// range's mutex, by this thread; the device must be bound and the mirror not detached.
    pub(super) unsafe fn filling(&self) -> Filling<'_> {
        Filling { pages: self }
    }

    /// Stops and unmaps blocks.
    ///
    /// # Safety
    ///
    /// As long as the result lives, the notifier lock of the span must be held for writing by this
    /// thread, and there must be no other view.
    pub(super) unsafe fn exclusive(&self) -> Exclusive<'_> {
        Exclusive { pages: self }
    }

    /// Where the bytes of the block at `start` begin in the reservation.
    ///
    /// A block lies in the IOVA space as it lies in the CPU address space, relative to the largest
    /// leaf, or neither the IOMMU nor the GPU could use large entries.
    fn iova_offset(&self, start: usize) -> usize {
        // OVERFLOW: `start` is the start of a block of the span; the subtraction of the head may go
        // below zero only for a span inside one block, where it is undone by the segment's offset.
        start.wrapping_sub(self.iova_base())
    }

    /// The CPU address that corresponds to the begin of the reservation.
    fn iova_base(&self) -> usize {
        if self.span.end - self.span.start >= BLOCK_SIZE {
            block_start(self.span.start)
        } else {
            self.span.start
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // A block that is still mapped here would be freed under the device's feet.
        debug_assert!(self
            .blocks
            .iter_mut()
            .all(|block| *block.state.get_mut() == ABSENT));
    }
}

/// The pages, while the notifier lock is held.
#[derive(Copy, Clone)]
pub(super) struct Shared<'g> {
    pages: &'g Pages,
    /// Made from a [`Filling`]: sees what that has filled.
    filling: bool,
}

impl<'g> Shared<'g> {
    /// The segments of a block, if it is mapped.
    fn segments(&self, block: &'g Block) -> Option<&'g [Segment]> {
        // The acquire pairs with the release in `Filled::publish`: another thread may have filled
        // the block under the same read lock.
        match block.state.load(Acquire) {
            MAPPED => {}
            FILLED if self.filling => {}
            _ => return None,
        }
        // SAFETY: The block is not absent, and the notifier lock is held by the requirement of
        // `Pages::shared`, so that no `Exclusive` exists: by the type invariants nobody writes.
        Some(unsafe { &*block.segments.get() }.as_slice())
    }

    /// Whether nothing of the block of `addr` is mapped.
    pub(super) fn is_absent(&self, addr: usize) -> bool {
        // OVERFLOW: `addr` is in the span, so it is below `usize::MAX`.
        self.pages
            .blocks_in(&(addr..addr + 1))
            .all(|(_, block)| block.state.load(Acquire) == ABSENT)
    }

    /// How far from its start `span` is mapped with at least the permission for `access`: the first
    /// address that is not.
    pub(super) fn covered(&self, span: &Range<usize>, access: Access) -> usize {
        let mut reached = span.start;

        for (start, block) in self.pages.blocks_in(span) {
            let Some(segments) = self.segments(block) else {
                return reached;
            };

            reached = covered_by(segments, start, reached, access);
            if reached >= span.end {
                return span.end;
            }
            if reached < start.saturating_add(BLOCK_SIZE) {
                return reached;
            }
        }
        reached
    }

    /// Proof that what is mapped of `span` is valid now.
    pub(super) fn valid(self, span: Range<usize>) -> ValidPages<'g> {
        ValidPages::new(self, span)
    }

    /// The mapped segments of the blocks that `span` touches, with the start of their block.
    pub(super) fn mapped(
        self,
        span: &Range<usize>,
    ) -> impl Iterator<Item = (usize, &'g Segment)> + use<'g> {
        self.pages.blocks_in(span).flat_map(move |(start, block)| {
            self.segments(block)
                .unwrap_or(&[])
                .iter()
                .map(move |seg| (start, seg))
        })
    }
}

/// The pages, while the range's mutex and the notifier lock for reading are held.
pub(super) struct Filling<'g> {
    pages: &'g Pages,
}

impl<'g> Filling<'g> {
    /// Proof that what is mapped of `span` is valid now, and what has been filled as well: for the
    /// driver.
    pub(super) fn valid(&self, span: Range<usize>) -> ValidPages<'g> {
        let pages = Shared {
            pages: self.pages,
            filling: true,
        };

        pages.valid(span)
    }

    /// Maps `staged` for the device, as the block of `addr`.
    ///
    /// The block must be absent. Does not sleep, allocates with `GFP_ATOMIC` only, and leaves
    /// nothing mapped if it fails. `staged` is left empty if it succeeds. What is returned is to be
    /// [published](Filled::publish) when the driver has written its page table; else the block has to
    /// be stopped and unmapped.
    ///
    /// # Errors
    ///
    /// Those of the DMA API; `EBUSY` if the block is not absent.
    pub(super) fn fill(&mut self, addr: usize, staged: &mut Segments) -> Result<Filled<'g>> {
        // OVERFLOW: `addr` is in the span, so it is below `usize::MAX`.
        let Some((start, block)) = self.pages.blocks_in(&(addr..addr + 1)).next() else {
            return Err(EINVAL);
        };

        if block.state.load(Acquire) != ABSENT {
            return Err(EBUSY);
        }
        self.map(start, staged.as_mut_slice())?;
        // SAFETY: The block is absent, so that by the type invariants of `Block` and the requirement
        // of `Pages::filling` nobody reads the segments, and nobody else writes them.
        let segments = unsafe { &mut *block.segments.get() };
        *segments = core::mem::replace(staged, Segments::Few(None));
        // INVARIANT: All of them have just been mapped.
        block.state.store(FILLED, Release);
        Ok(Filled { block })
    }

    fn map(&mut self, start: usize, staged: &mut [Segment]) -> Result {
        if !staged.iter().any(Segment::is_system) {
            return Ok(());
        }
        let pages = self.pages;
        // SAFETY: The device is bound, by the requirement of `Pages::filling`.
        let dev = unsafe { pages.dev.bound() };
        // SAFETY: By the requirement of `Pages::filling`, there is no other `Filling` (mutex) and no
        // `Exclusive` (notifier lock), and by the type invariant of `Pages` nobody else looks.
        let iova = unsafe { &mut *pages.iova.get() };

        let backoff = match iova {
            Iova::Untried => Some(Backoff::FIRST),
            // While a block is mapped without the reservation, it has to be unmapped without one.
            Iova::None(backoff) if !pages.is_busy(&pages.span) => {
                backoff.is_due().then(|| backoff.failed_again())
            }
            _ => None,
        };

        if let Some(backoff) = backoff {
            // SAFETY: The device is bound now, and `GpuSvm::detach` drops the reservation before it is
            // unbound.
            let kept = unsafe { pages.dev.keep() };

            // OVERFLOW: The base is at or below the start of the span.
            *iova = match Reservation::try_alloc(kept, pages.span.end - pages.iova_base()) {
                Some(space) => Iova::Reserved(space),
                None => Iova::None(backoff),
            };
        }
        match iova {
            Iova::Reserved(space) => Self::link(space, pages.iova_offset(start), staged),
            _ => Self::map_each(dev, staged),
        }
    }

    /// Links each segment at its own place in the reservation; `base` is the place of the block.
    fn link(space: &Reservation<KeptDevice>, base: usize, staged: &mut [Segment]) -> Result {
        let place = |seg: &Segment| base.wrapping_add(seg.offset());
        let mut linked = 0;
        let mut result = Ok(());

        for seg in staged.iter_mut() {
            if !seg.is_system() {
                linked += 1;
                continue;
            }
            // SAFETY: The core mm frees or replaces these pages only after the invalidation that
            // takes them out of this block: their sequence number is current and the notifier lock
            // is held, and the invalidation unlinks them.
            result =
                unsafe { space.link(place(seg), seg.phys, seg.len(), seg.direction(), ATTRS()) };
            if result.is_err() {
                break;
            }
            seg.dma = space.addr().wrapping_add(place(seg) as DmaAddress);
            linked += 1;
        }
        let mut system = staged.iter().filter(|seg| seg.is_system());
        let first = system.next();

        if let (Ok(()), Some(first), Some(last)) = (&result, first, system.next_back().or(first)) {
            // OVERFLOW: Segments are in order, so the last one ends after the first one begins.
            result = space.sync(place(first), last.end() - first.offset());
        }
        if result.is_err() {
            Self::unlink(space, base, staged.get(..linked).unwrap_or_default());
        }
        result
    }

    /// Takes `segments` out of the reservation, gap-free runs at a time.
    fn unlink(space: &Reservation<KeptDevice>, base: usize, segments: &[Segment]) {
        let mut rest = segments;

        while let Some(first) = rest.first() {
            if !first.is_system() {
                rest = rest.get(1..).unwrap_or_default();
                continue;
            }
            let mut end = first.offset();
            let n = rest
                .iter()
                .take_while(|seg| {
                    let adjacent = seg.is_system() && seg.offset() == end;
                    end = seg.end();
                    adjacent
                })
                .count();
            let (run, tail) = rest.split_at(n);
            let len = run.iter().map(Segment::len).sum();

            // The direction matters only for cache maintenance, which coherent devices do without.
            //
            // SAFETY: The run consists of whole links, adjacent ones without a gap; each is unlinked
            // once, since the caller forgets them.
            unsafe {
                space.unlink(
                    base.wrapping_add(first.offset()),
                    len,
                    DataDirection::Bidirectional,
                    ATTRS(),
                )
            };
            rest = tail;
        }
    }

    fn map_each(dev: &Device<Bound>, staged: &mut [Segment]) -> Result {
        let mut mapped = 0;
        let mut result = Ok(());

        for seg in staged.iter_mut() {
            if !seg.is_system() {
                mapped += 1;
                continue;
            }
            // SAFETY: As for `link`.
            match unsafe { map::map_phys(dev, seg.phys, seg.len(), seg.direction(), ATTRS()) } {
                Ok(dma) => seg.dma = dma,
                Err(e) => {
                    result = Err(e);
                    break;
                }
            }
            mapped += 1;
        }
        if result.is_err() {
            Self::unmap_each(dev, staged.get(..mapped).unwrap_or_default());
        }
        result
    }

    fn unmap_each(dev: &Device<Bound>, segments: &[Segment]) {
        if !map::need_unmap(dev) {
            return;
        }
        for seg in segments.iter().filter(|seg| seg.is_system()) {
            // SAFETY: It was mapped with these values, and the caller forgets it.
            unsafe { map::unmap_phys(dev, seg.dma, seg.len(), seg.direction(), ATTRS()) };
        }
    }
}

/// A block that is mapped for the device, and that nobody else uses yet.
#[must_use = "it has to be published, or stopped and unmapped"]
pub(super) struct Filled<'g> {
    block: &'g Block,
}

impl Filled<'_> {
    /// Lets others use the block: what is mapped of it is in the driver's page table.
    pub(super) fn publish(self) {
        // INVARIANT: The segments stay as they are.
        self.block.state.store(MAPPED, Release);
    }
}

/// The pages, while the notifier lock is held for writing.
pub(super) struct Exclusive<'g> {
    pages: &'g Pages,
}

impl Exclusive<'_> {
    /// Marks what is mapped in `span` as stopping.
    ///
    /// Gives the span of the blocks that were mapped, and whether any block of `span` is stopping
    /// now: also one that another invalidation marked before, for whose flush the caller has to wait
    /// just the same (PM-4).
    pub(super) fn stop(&mut self, span: &Range<usize>) -> (Option<Range<usize>>, bool) {
        let mut hit: Option<Range<usize>> = None;
        let mut stopping = false;

        for (start, block) in self.pages.blocks_in(span) {
            match block.state.load(Acquire) {
                MAPPED | FILLED => {
                    // INVARIANT: The segments stay mapped.
                    block.state.store(STOPPING, Release);
                    let this = self.pages.block_span(start.max(self.pages.span.start));
                    hit = Some(match hit {
                        Some(hit) => hit.start..this.end,
                        None => this,
                    });
                    stopping = true;
                }
                STOPPING => stopping = true,
                _ => {}
            }
        }
        (hit, stopping)
    }

    /// As [`stop`](Self::stop), but blocks of which all is in device memory stay mapped, unless they lie
    /// between others: what the driver has to stop is one span.
    pub(super) fn stop_system(&mut self, span: &Range<usize>) -> (Option<Range<usize>>, bool) {
        let mut part: Option<Range<usize>> = None;
        let mut stopping = false;

        for (start, block) in self.pages.blocks_in(span) {
            // SAFETY: There is no other view, by the requirement of `Pages::exclusive`.
            let segments = unsafe { &*block.segments.get() };
            let stays = match block.state.load(Acquire) {
                MAPPED => !segments.as_slice().iter().any(Segment::is_system),
                state => {
                    stopping |= state == STOPPING;
                    state != FILLED
                }
            };

            if !stays {
                let this = self.pages.block_span(start.max(self.pages.span.start));

                part = Some(match part {
                    Some(part) => part.start..this.end,
                    None => this,
                });
            }
        }
        match part {
            Some(part) => {
                let (hit, busy) = self.stop(&part);

                (hit, stopping | busy)
            }
            None => (None, stopping),
        }
    }

    /// Unmaps the stopping blocks of `span` from the device, but not more than `limit`.
    ///
    /// The driver must have waited for the flush since they were marked. Pages that the device may
    /// have written are marked dirty first: a page table entry can be writable and clean, and reclaim
    /// drops a clean page after this invalidation returns, without writing it out (PM-2). A page in device
    /// memory keeps the mark when it comes back.
    pub(super) fn unmap(&mut self, span: &Range<usize>, limit: u64) -> Unmapped {
        let mut done = Unmapped::default();
        // SAFETY: There is no other view, by the requirement of `Pages::exclusive`.
        let iova = unsafe { &*self.pages.iova.get() };

        for (start, block) in self.pages.blocks_in(span) {
            if block.state.load(Acquire) != STOPPING {
                continue;
            }
            if done.blocks >= limit {
                done.next = Some(start.max(self.pages.span.start));
                break;
            }
            // SAFETY: As above.
            let segments = unsafe { &mut *block.segments.get() };

            for seg in segments.as_slice() {
                if seg.write() {
                    // SAFETY: The core mm frees the pages of the segment only after the invalidation
                    // that unmaps it here, or it has not invalidated them at all.
                    unsafe { folio::mark_dirty(seg.phys, seg.len()) };
                }
                done.segments += 1;
                done.bytes += seg.len() as u64;
            }
            match iova {
                Iova::Reserved(space) => {
                    Filling::unlink(space, self.pages.iova_offset(start), segments.as_slice())
                }
                _ => {
                    // SAFETY: The segments are mapped, so the device is bound: `GpuSvm::detach` unmaps
                    // all of them before it is unbound.
                    let dev = unsafe { self.pages.dev.bound() };

                    Filling::unmap_each(dev, segments.as_slice())
                }
            }
            // Frees the vector, which is allowed in reclaim: what is not mapped costs no memory.
            *segments = Segments::Few(None);
            // INVARIANT: Nothing is mapped any more.
            block.state.store(ABSENT, Release);
            done.blocks += 1;
        }
        done
    }

    /// Whether there is IOVA space for the whole span.
    #[cfg(CONFIG_DRM_GPUSVM_RUST_KUNIT_TEST)]
    pub(super) fn has_iova(&self) -> bool {
        // SAFETY: There is no other view, by the requirement of `Pages::exclusive`.
        matches!(unsafe { &*self.pages.iova.get() }, Iova::Reserved(_))
    }

    /// Gives the reserved IOVA space back; all blocks must be absent.
    pub(super) fn free_iova(&mut self) {
        if !self.pages.is_busy(&self.pages.span) {
            // SAFETY: There is no other view, by the requirement of `Pages::exclusive`.
            unsafe { *self.pages.iova.get() = Iova::Untried };
        }
    }
}
