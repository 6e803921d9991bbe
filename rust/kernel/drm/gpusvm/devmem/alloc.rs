// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Which pages of a device's memory are in use.
//!
//! Memory comes in *chunks* of [`BLOCK_SIZE`] from [`kernel::gpu::buddy`], and a chunk is given out as
//! one large folio or as pages. A bit for each page says whether it is in use. Bits are set under a
//! mutex, by what reserves pages, and cleared without any lock: the last reference of a folio goes
//! under spinlocks of the core mm, where the buddy allocator, which sleeps, cannot be called (PM-20).
//! Chunks in which nothing is in use any more go back to it when somebody looks next.
//!
//! A chunk is also the unit of eviction: emptying one makes room for any folio, no matter how the
//! memory was fragmented.

use core::ops::Range;

use kernel::{
    gpu::buddy::{
        AllocatedBlocks,
        GpuBuddy,
        GpuBuddyAllocFlag,
        GpuBuddyAllocMode,
        GpuBuddyParams, //
    },
    new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    ptr::Alignment,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Mutex, //
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    }, //
};

use super::super::span::BLOCK_SIZE;

/// Pages of a chunk.
pub(super) const PAGES: usize = BLOCK_SIZE / PAGE_SIZE;

const WORD: usize = u64::BITS as usize;
const WORDS: usize = PAGES.div_ceil(WORD);

/// What is known of a chunk without the mutex.
///
/// # Invariants
///
/// `live` is at least the number of set bits. Both are increased under the allocator's mutex only.
struct Chunk {
    bits: [Atomic<u64>; WORDS],
    live: Atomic<u32>,
    /// When it was used last, in ticks of the allocator.
    stamp: Atomic<u64>,
    /// CPU faults wait until then, in nanoseconds since the allocator exists.
    quiet_until: Atomic<u64>,
    /// Where the CPU would touch next if it went on, and how many pages it was given last.
    cpu: Atomic<u64>,
    /// What is in it was lost.
    lost: Atomic<bool>,
    /// Reservations in it that are not resolved yet; changed under the mutex.
    rooms: Atomic<u32>,
    /// It is being emptied, so nothing new gets in; changed under the mutex.
    draining: Atomic<bool>,
}

impl Chunk {
    fn new() -> Self {
        // INVARIANT: No bits.
        Self {
            bits: [const { Atomic::new(0) }; WORDS],
            live: Atomic::new(0),
            stamp: Atomic::new(0),
            quiet_until: Atomic::new(0),
            cpu: Atomic::new(0),
            lost: Atomic::new(false),
            rooms: Atomic::new(0),
            draining: Atomic::new(false),
        }
    }

    /// Calls `f` with each word that `pages` touches, and the bits in it.
    fn for_each_word(&self, pages: &Range<usize>, mut f: impl FnMut(&Atomic<u64>, u64)) {
        let mut from = pages.start;

        while from < pages.end {
            // OVERFLOW: Pages of a chunk.
            let end = pages.end.min((from / WORD + 1) * WORD);
            let mask = (u64::MAX >> (WORD - (end - from))) << (from % WORD);

            if let Some(word) = self.bits.get(from / WORD) {
                f(word, mask);
            }
            from = end;
        }
    }

    /// Takes free pages. The mutex is held.
    fn set(&self, pages: &Range<usize>) {
        // CAST: Pages of a chunk.
        self.live.fetch_add(pages.len() as u32, Relaxed);
        self.for_each_word(pages, |word, mask| {
            // The bits are zero, and nobody else sets any.
            word.fetch_add(mask, Relaxed);
        });
    }

    /// Gives pages back that were taken. Any context. Returns whether they were the last ones.
    fn clear(&self, pages: &Range<usize>) -> bool {
        self.for_each_word(pages, |word, mask| {
            // The bits are set, and nobody else clears them: this borrows from no other bit.
            word.fetch_add(mask.wrapping_neg(), Release);
        });
        // CAST: Pages of a chunk.
        let n = pages.len() as u32;

        self.live.fetch_add(n.wrapping_neg(), Release) == n
    }

    /// The first run of free pages from `from` on, of at most `want`.
    fn free_run(&self, from: usize, want: usize) -> Option<Range<usize>> {
        let is_free = |page: usize| {
            self.bits
                .get(page / WORD)
                .is_some_and(|word| word.load(Acquire) & (1 << (page % WORD)) == 0)
        };
        let start = (from..PAGES).find(|page| is_free(*page))?;
        let end = (start..PAGES)
            .take(want)
            .find(|page| !is_free(*page))
            .unwrap_or(PAGES.min(start.saturating_add(want)));

        Some(start..end)
    }

    fn is_empty(&self) -> bool {
        // Acquire, since the pages are given out again.
        self.live.load(Acquire) == 0
    }

    /// Whether pages can be had. The mutex is held.
    fn is_open(&self) -> bool {
        // CAST: Pages of a chunk.
        self.live.load(Relaxed) < PAGES as u32
            && !self.draining.load(Relaxed)
            && !self.lost.load(Relaxed)
    }
}

/// A chunk that the buddy allocator has given.
struct Open {
    index: usize,
    _block: Pin<KBox<AllocatedBlocks>>,
}

struct State {
    buddy: GpuBuddy,
    /// Has room for all chunks.
    open: KVVec<Open>,
}

/// The pages of a device's memory.
#[pin_data]
pub(super) struct Allocator {
    chunks: KVVec<Chunk>,
    /// Chunks that may have become empty since somebody looked.
    emptied: Atomic<u32>,
    tick: Atomic<u64>,
    epoch: Instant<Monotonic>,
    /// Leaf lock: no callback of the core mm takes it, so that memory is allocated under it.
    #[pin]
    state: Mutex<State>,
}

impl Allocator {
    /// Free memory of `size` bytes, a multiple of [`BLOCK_SIZE`]. Sleeps.
    pub(super) fn new(size: u64) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            chunks: {
                let count = usize::try_from(size / BLOCK_SIZE as u64)?;
                let mut chunks = KVVec::with_capacity(count, GFP_KERNEL)?;

                for _ in 0..count {
                    chunks.push(Chunk::new(), GFP_KERNEL)?;
                }
                chunks
            },
            emptied: Atomic::new(0),
            tick: Atomic::new(1),
            epoch: Instant::now(),
            state <- {
                let buddy = GpuBuddy::new(GpuBuddyParams {
                    base_offset: 0,
                    size,
                    chunk_size: Alignment::new::<BLOCK_SIZE>(),
                })?;
                let open = KVVec::with_capacity(chunks.len(), GFP_KERNEL)?;

                new_mutex!(State { buddy, open }, "gpusvm::devmem::Allocator")
            },
        }? Error)
    }

    fn chunk(&self, page: usize) -> Option<&Chunk> {
        self.chunks.get(page / PAGES)
    }

    fn now(&self) -> u64 {
        // Since `epoch` time does not go backwards.
        self.epoch.elapsed().as_nanos().unsigned_abs()
    }

    fn tick(&self) -> u64 {
        self.tick.fetch_add(1, Relaxed)
    }

    /// Gives a folio's pages back. Any context but NMI, so nothing but counting.
    ///
    /// The pages may be given out again at once.
    pub(super) fn free(&self, first: usize, count: usize) {
        let start = first % PAGES;

        if let Some(chunk) = self.chunk(first) {
            // OVERFLOW: A folio is inside its chunk.
            if chunk.clear(&(start..start + count)) {
                self.emptied.fetch_add(1, Relaxed);
            }
        }
    }

    /// The device has got a mapping of the page, or the page is new.
    pub(super) fn touch(&self, page: usize) {
        if let Some(chunk) = self.chunk(page) {
            chunk.stamp.store(self.tick(), Relaxed);
        }
    }

    /// Has CPU faults on the page's chunk wait for `slice`.
    pub(super) fn keep_quiet(&self, page: usize, slice: Delta) {
        if let Some(chunk) = self.chunk(page) {
            let until = self
                .now()
                .saturating_add(slice.as_nanos().max(0).unsigned_abs());

            chunk.quiet_until.store(until, Relaxed);
        }
    }

    /// How long a CPU fault on the page shall wait still.
    pub(super) fn quiet_for(&self, page: usize) -> Option<Delta> {
        let until = self.chunk(page)?.quiet_until.load(Relaxed);
        let left = until.checked_sub(self.now()).filter(|left| *left > 0)?;

        Some(Delta::from_nanos(i64::try_from(left).unwrap_or(i64::MAX)))
    }

    /// How many pages a CPU fault on `page` shall bring back: `least`, twice as many as the last time
    /// if the CPU goes on where that ended, at most a chunk.
    pub(super) fn cpu_window(&self, page: usize, least: usize) -> usize {
        let Some(chunk) = self.chunk(page) else {
            return least;
        };
        let last = chunk.cpu.load(Relaxed);
        // CAST: These are halves of a word.
        let (next, size) = ((last >> 32) as usize, (last & 0xffff_ffff) as usize);

        if size != 0 && next == page % PAGES {
            least.max(size * 2).min(PAGES)
        } else {
            least
        }
    }

    /// A CPU fault has brought `count` pages back, up to `end`.
    pub(super) fn cpu_took(&self, page: usize, end: usize, count: usize) {
        if let Some(chunk) = self.chunk(page) {
            // CAST: Pages of a chunk.
            chunk
                .cpu
                .store(((end % PAGES) as u64) << 32 | count as u64, Relaxed);
        }
    }

    /// What the page holds is lost.
    pub(super) fn is_lost(&self, page: usize) -> bool {
        self.chunk(page)
            .is_none_or(|chunk| chunk.lost.load(Acquire))
    }

    /// All that is in use now is lost. Sleeps. Returns how many pages that are.
    pub(super) fn lose_all(&self) -> u64 {
        let state = self.state.lock();
        let mut pages = 0;

        for chunk in state.open.iter().filter_map(|o| self.chunks.get(o.index)) {
            let live = chunk.live.load(Relaxed);

            if live > 0 {
                chunk.lost.store(true, Release);
                pages += u64::from(live);
            }
        }
        pages
    }

    /// Pages that are in use or reserved.
    pub(super) fn used(&self) -> u64 {
        self.chunks
            .iter()
            .map(|chunk| u64::from(chunk.live.load(Acquire)))
            .sum()
    }

    /// Bytes that the buddy allocator has to give. Sleeps.
    #[cfg(CONFIG_DRM_GPUSVM_RUST_KUNIT_TEST)]
    pub(super) fn available(&self) -> u64 {
        let mut state = self.state.lock();

        self.give_back(&mut state);
        state.buddy.avail()
    }

    /// Gives chunks without pages back to the buddy allocator.
    fn give_back(&self, state: &mut State) {
        self.emptied.store(0, Relaxed);
        let mut i = 0;

        while let Some(open) = state.open.get(i) {
            let gone = self.chunks.get(open.index).is_none_or(|chunk| {
                chunk.is_empty() && chunk.rooms.load(Relaxed) == 0 && !chunk.draining.load(Relaxed)
            });

            if gone {
                // The last one takes its place; the order does not matter.
                if let Some(last) = state.open.pop() {
                    if let Some(slot) = state.open.get_mut(i) {
                        *slot = last;
                    }
                }
            } else {
                i += 1;
            }
        }
    }

    /// Gets a chunk from the buddy allocator.
    fn open_chunk(&self, state: &mut State) -> Option<usize> {
        let block = KBox::pin_init(
            state.buddy.alloc_blocks(
                GpuBuddyAllocMode::Simple,
                BLOCK_SIZE as u64,
                Alignment::new::<BLOCK_SIZE>(),
                GpuBuddyAllocFlag::Contiguous,
            ),
            GFP_KERNEL | __GFP_NOWARN,
        )
        .ok()?;
        let offset = block.iter().next()?.offset();
        let index = usize::try_from(offset / BLOCK_SIZE as u64).ok()?;
        let chunk = self.chunks.get(index)?;

        chunk.lost.store(false, Relaxed);
        chunk.quiet_until.store(0, Relaxed);
        chunk.cpu.store(0, Relaxed);
        state
            .open
            .push_within_capacity(Open {
                index,
                _block: block,
            })
            .ok()?;
        Some(index)
    }

    /// Reserves room for up to `want` pages, at most a chunk: a chunk of its own if `whole`, else free
    /// pages of chunks that are in use already, if there are any.
    ///
    /// Gives less, or nothing, if there is not more. Sleeps, does not evict.
    pub(super) fn reserve(&self, want: usize, whole: bool) -> Result<Room<'_>> {
        let want = want.min(PAGES);
        let mut room = Room {
            alloc: self,
            runs: KVec::new(),
            total: 0,
            taken: [0; WORDS],
        };
        let mut state = self.state.lock();

        if self.emptied.load(Relaxed) != 0 {
            self.give_back(&mut state);
        }
        if whole {
            if let Some(index) = self.open_chunk(&mut state) {
                room.add(index, 0..want)?;
                return Ok(room);
            }
        }
        let mut i = 0;

        while room.total < want {
            let index = match state.open.get(i) {
                Some(open) => open.index,
                None => match self.open_chunk(&mut state) {
                    Some(index) => index,
                    None => break,
                },
            };
            let Some(chunk) = self.chunks.get(index).filter(|chunk| chunk.is_open()) else {
                i += 1;
                continue;
            };
            let mut from = 0;

            while let Some(run) = chunk
                .free_run(from, want - room.total)
                .filter(|r| !r.is_empty())
            {
                from = run.end;
                room.add(index, run)?;
                if room.total >= want {
                    break;
                }
            }
            i += 1;
        }
        Ok(room)
    }

    /// The chunk that was not used for the longest time, to be emptied. Sleeps.
    ///
    /// `None` if there is none: nothing is in use, or all chunks are being filled or emptied. Chunks
    /// used at or after `before` (see [`Self::clock`]) are left alone.
    pub(super) fn victim(&self, before: u64) -> Option<Victim<'_>> {
        let state = self.state.lock();
        let (index, chunk) = state
            .open
            .iter()
            .filter_map(|open| Some((open.index, self.chunks.get(open.index)?)))
            .filter(|(_, chunk)| {
                chunk.rooms.load(Relaxed) == 0
                    && !chunk.draining.load(Relaxed)
                    && !chunk.is_empty()
                    && !chunk.lost.load(Relaxed)
                    && chunk.stamp.load(Relaxed) < before
            })
            .min_by_key(|(_, chunk)| chunk.stamp.load(Relaxed))?;

        chunk.draining.store(true, Relaxed);
        Some(Victim {
            alloc: self,
            chunk,
            index,
        })
    }

    /// The time for [`Self::victim`]: all that was used until now is before it.
    pub(super) fn clock(&self) -> u64 {
        self.tick()
    }
}

/// Pages in a row of one chunk.
struct Run {
    chunk: usize,
    pages: Range<usize>,
}

/// Reserved pages. What is not taken is given back at the end.
///
/// # Invariants
///
/// The bits of `runs` are set by this; those whose position is in `taken` belong to somebody else now.
pub(super) struct Room<'a> {
    alloc: &'a Allocator,
    runs: KVec<Run>,
    total: usize,
    taken: [u64; WORDS],
}

impl Room<'_> {
    /// Adds free pages. The mutex is held.
    fn add(&mut self, index: usize, pages: Range<usize>) -> Result {
        let alloc = self.alloc;
        let chunk = alloc.chunks.get(index).ok_or(EINVAL)?;
        let count = pages.len();

        self.runs.push(
            Run {
                chunk: index,
                pages: pages.clone(),
            },
            GFP_KERNEL,
        )?;
        chunk.rooms.fetch_add(1, Relaxed);
        chunk.stamp.store(alloc.tick(), Relaxed);
        // INVARIANT: The bits were zero, and the mutex is held.
        chunk.set(&pages);
        self.total += count;
        Ok(())
    }

    /// How many pages were reserved.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// The page at a position, if there is one that is not taken.
    pub(super) fn page(&self, position: usize) -> Option<usize> {
        if self.is_taken(position) {
            return None;
        }
        let mut first = 0;

        for run in self.runs.iter() {
            let count = run.pages.len();

            if position < first + count {
                return Some(run.chunk * PAGES + run.pages.start + (position - first));
            }
            first += count;
        }
        None
    }

    /// The first page of a chunk that is reserved as a whole and not touched.
    pub(super) fn whole(&self) -> Option<usize> {
        let run = self.runs.first()?;

        (run.pages == (0..PAGES) && self.taken.iter().all(|word| *word == 0))
            .then_some(run.chunk * PAGES)
    }

    fn is_taken(&self, position: usize) -> bool {
        self.taken
            .get(position / WORD)
            .is_none_or(|word| word & (1 << (position % WORD)) != 0)
    }

    /// Pages are a folio's now, which gives them back.
    pub(super) fn take(&mut self, positions: Range<usize>) {
        for position in positions {
            if let Some(word) = self.taken.get_mut(position / WORD) {
                *word |= 1 << (position % WORD);
            }
        }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let mut position = 0;

        for run in self.runs.iter() {
            for page in run.pages.clone() {
                if !self.is_taken(position) {
                    self.alloc.free(run.chunk * PAGES + page, 1);
                }
                position += 1;
            }
        }
        let _state = self.alloc.state.lock();

        for run in self.runs.iter() {
            if let Some(chunk) = self.alloc.chunks.get(run.chunk) {
                chunk.rooms.fetch_add(1u32.wrapping_neg(), Relaxed);
                if chunk.is_empty() {
                    self.alloc.emptied.fetch_add(1, Relaxed);
                }
            }
        }
    }
}

/// A chunk that is being emptied: nothing new gets in.
pub(super) struct Victim<'a> {
    alloc: &'a Allocator,
    chunk: &'a Chunk,
    index: usize,
}

impl Victim<'_> {
    /// Its pages.
    pub(super) fn pages(&self) -> Range<usize> {
        self.index * PAGES..(self.index + 1) * PAGES
    }

    pub(super) fn live(&self) -> usize {
        self.chunk.live.load(Acquire) as usize
    }
}

impl Drop for Victim<'_> {
    fn drop(&mut self) {
        let mut state = self.alloc.state.lock();

        self.chunk.draining.store(false, Relaxed);
        if self.chunk.is_empty() {
            self.alloc.give_back(&mut state);
        } else {
            // It could not be emptied: the next time, others come first.
            self.chunk.stamp.store(self.alloc.tick(), Relaxed);
        }
    }
}
