// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The copies of one window, from the destinations to the new page tables.

use kernel::{
    dma::{
        attrs::*,
        map,
        Attrs,
        DataDirection,
        DmaAddress, //
    },
    io::PhysAddr,
    mm::{
        migrate::{
            Populated,
            Source, //
        },
        pagemap::Pagemap, //
    },
    page::PAGE_SIZE,
    prelude::*, //
};

use super::{
    store::Store,
    CopyOp,
    CopyPlan,
    Fence, //
};

/// As for the mappings of faults: no bounce buffer may get between.
const ATTRS: fn() -> Attrs = || DMA_ATTR_REQUIRE_COHERENT | DMA_ATTR_NO_WARN;

/// What moved.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    /// Pages.
    pub(super) pages: usize,
    /// Of these, pages in large folios.
    pub(super) large: usize,
}

/// A run that is contiguous on both sides.
#[derive(Copy, Clone)]
enum Piece {
    In {
        phys: PhysAddr,
        dst: u64,
        len: usize,
    },
    Out {
        src: u64,
        phys: PhysAddr,
        len: usize,
    },
    Zero {
        dst: u64,
        len: usize,
    },
}

impl Piece {
    /// Takes `next` in if it goes on where this ends, on both sides.
    fn merge(&mut self, next: &Piece) -> bool {
        match (self, next) {
            (
                Self::In { phys, dst, len },
                Self::In {
                    phys: p,
                    dst: d,
                    len: l,
                },
            ) if *phys + *len as PhysAddr == *p && *dst + *len as u64 == *d => {
                *len += l;
                true
            }
            (
                Self::Out { src, phys, len },
                Self::Out {
                    src: s,
                    phys: p,
                    len: l,
                },
            ) if *phys + *len as PhysAddr == *p && *src + *len as u64 == *s => {
                *len += l;
                true
            }
            (Self::Zero { dst, len }, Self::Zero { dst: d, len: l })
                if *dst + *len as u64 == *d =>
            {
                *len += l;
                true
            }
            _ => false,
        }
    }
}

/// System memory that is mapped for the copies of a window.
struct Mapped<'a> {
    store: &'a Store,
    maps: KVec<(DmaAddress, usize, DataDirection)>,
}

impl Mapped<'_> {
    fn map(&mut self, phys: PhysAddr, len: usize, dir: DataDirection) -> Result<DmaAddress> {
        // Before the mapping, which must not be lost.
        self.maps.reserve(1, GFP_KERNEL)?;
        // SAFETY: The memory is a locked source, or a destination that nobody else knows; both stay
        // until the window is finished, which is after the unmapping in `drop`. The other side is
        // device memory, which is in use so long.
        let addr = unsafe { map::map_phys(self.store.dev(), phys, len, dir, ATTRS()) }?;

        // There is room.
        let _ = self.maps.push_within_capacity((addr, len, dir));
        Ok(addr)
    }
}

impl Drop for Mapped<'_> {
    fn drop(&mut self) {
        for (addr, len, dir) in self.maps.iter().copied() {
            // SAFETY: It was mapped so by `map`, and is forgotten. Device memory is in use, as there.
            unsafe { map::unmap_phys(self.store.dev(), addr, len, dir, ATTRS()) };
        }
    }
}

/// The device is awake.
struct Awake<'a>(&'a Store);

impl<'a> Awake<'a> {
    fn new(store: &'a Store) -> Result<Self> {
        store.engine.wake()?;
        Ok(Self(store))
    }
}

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        self.0.engine.rest();
    }
}

/// Copies that are under way. Dropping it waits for them.
struct Flight<'a> {
    fence: Option<Fence>,
    _mapped: Mapped<'a>,
    _awake: Awake<'a>,
}

impl Flight<'_> {
    fn wait(&mut self) -> Result {
        self.fence.take().map_or(Ok(()), |fence| fence.wait())
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        // The pages must not be freed, nor the mappings, while the engine uses them.
        let _ = self.wait();
    }
}

/// A window whose copies are under way.
///
/// Dropping it waits for the copies, and leaves all pages where they were.
pub(super) struct Window<'a> {
    store: &'a Store,
    // Before `populated`: fields are dropped in this order.
    flight: Option<Flight<'a>>,
    populated: Populated<'a>,
}

impl<'a> Window<'a> {
    /// Starts the copies that `populated` asks for. Sleeps.
    ///
    /// # Errors
    ///
    /// No memory, or the DMA mapping or the engine failed: everything is as before.
    pub(super) fn start(
        store: &'a Store,
        map: &Pagemap<Store>,
        mut populated: Populated<'a>,
    ) -> Result<Self> {
        let pieces = pieces(store, map, &mut populated)?;

        if pieces.is_empty() {
            return Ok(Self {
                store,
                flight: None,
                populated,
            });
        }
        let started = Self::launch(store, &pieces);

        if started.is_err() {
            store.counters.copy_errors.add(1);
        }
        Ok(Self {
            store,
            flight: Some(started?),
            populated,
        })
    }

    fn launch(store: &'a Store, pieces: &[Piece]) -> Result<Flight<'a>> {
        let awake = Awake::new(store)?;
        let mut mapped = Mapped {
            store,
            maps: KVec::new(),
        };
        let mut ops = KVec::with_capacity(pieces.len(), GFP_KERNEL)?;

        for piece in pieces {
            let op = match *piece {
                Piece::In { phys, dst, len } => CopyOp::In {
                    src: mapped.map(phys, len, DataDirection::ToDevice)?,
                    dst,
                    len,
                },
                Piece::Out { src, phys, len } => CopyOp::Out {
                    src,
                    dst: mapped.map(phys, len, DataDirection::FromDevice)?,
                    len,
                },
                Piece::Zero { dst, len } => CopyOp::Zero { dst, len },
            };

            ops.push(op, GFP_KERNEL)?;
        }
        let fence = store.engine.copy(CopyPlan::new(ops))?;

        Ok(Flight {
            fence: Some(fence),
            _mapped: mapped,
            _awake: awake,
        })
    }

    /// Waits for the copies, and has the process use the new pages. Sleeps.
    ///
    /// # Errors
    ///
    /// The engine failed: all pages are where they were.
    pub(super) fn finish(mut self) -> Result<Moved> {
        if let Some(mut flight) = self.flight.take() {
            let copied = flight.wait();

            // Nothing is mapped for the copies any more when the pages get into use (B-15).
            drop(flight);
            if copied.is_err() {
                self.store.counters.copy_errors.add(1);
            }
            copied?;
        }
        let moved = self.populated.commit();
        let mut done = Moved::default();

        for page in moved.moves().filter(|page| page.moved) {
            let pages = 1 << page.order;

            // OVERFLOW: Pages of a window, this and the next.
            done.pages += pages;
            if page.order > 0 {
                done.large += pages;
            }
        }
        moved.finish();
        Ok(done)
    }
}

/// What has to be copied and zeroed. What is lost is not copied: it stays.
fn pieces(
    store: &Store,
    map: &Pagemap<Store>,
    populated: &mut Populated<'_>,
) -> Result<KVec<Piece>> {
    // CAST: The offset is inside of the memory, this and below.
    let place = |page: usize| page as u64 * PAGE_SIZE as u64;
    let mut pieces: KVec<Piece> = KVec::new();
    let mut lost: KVec<usize> = KVec::new();

    for copy in populated.copies() {
        let len = PAGE_SIZE << copy.entry.order;
        let dst = || map.offset_of_phys(copy.dst).map(place).ok_or(EINVAL);
        let piece = match &copy.entry.source {
            Source::Hole => Piece::Zero { dst: dst()?, len },
            Source::System { phys, .. } => Piece::In {
                phys: *phys,
                dst: dst()?,
                len,
            },
            Source::Device(page) => {
                let offset = map.offset_of(page).ok_or(EINVAL)?;

                if store.alloc.is_lost(offset) {
                    lost.push(copy.entry.index, GFP_KERNEL)?;
                    continue;
                }
                Piece::Out {
                    src: place(offset),
                    phys: copy.dst,
                    len,
                }
            }
        };

        if !pieces.last_mut().is_some_and(|last| last.merge(&piece)) {
            pieces.push(piece, GFP_KERNEL)?;
        }
    }
    for index in lost {
        populated.reject(index);
    }
    Ok(pieces)
}
