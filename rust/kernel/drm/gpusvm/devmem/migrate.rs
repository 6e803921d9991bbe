// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Moving a span of a process's memory to a device, and back.
//!
//! A span is moved window by window, at most [`BLOCK_SIZE`] each and each in one VMA, so that no
//! buffer depends on the size of the span. A few windows are under way at a time: the next one is
//! collected while the engine copies those before it (W-18).

use core::ops::Range;

use kernel::{
    mm::{
        migrate::{
            self,
            Buffer,
            Collected,
            Destination,
            Entry,
            Populated,
            Request,
            Source,
            SystemAlloc, //
        },
        pagemap::Pagemap,
        virt::flags,
        MmWithUser,
        MmapReadGuard, //
    },
    page::PAGE_SIZE,
    prelude::*, //
};

use super::{
    super::span::{
        block_start,
        is_whole_pages,
        BLOCK_SIZE, //
    },
    alloc::PAGES,
    evict,
    options::{
        MigrateOptions,
        Migrated, //
    },
    pass::{
        Moved,
        Window, //
    },
    store::Store, //
};

/// Windows that are under way at a time.
const DEPTH: usize = 4;

/// How often room is made for a window.
const MAX_EVICTIONS: u32 = 3;

/// Where to.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(super) enum To {
    Device,
    System,
}

/// Why a window was not started.
enum Stop {
    /// Nothing in it can move.
    Nothing,
    /// There is no room in the device's memory.
    NoRoom,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(err: Error) -> Self {
        Self::Failed(err)
    }
}

/// What a batch of windows achieved.
struct Batch {
    moved: Moved,
    /// What is before this was dealt with.
    reached: usize,
    no_room: bool,
}

/// Moves what can move of `span`. Sleeps; takes the mmap lock for reading.
pub(super) fn run(
    map: &Pagemap<Store>,
    mm: &MmWithUser,
    span: &Range<usize>,
    to: To,
    options: &MigrateOptions,
) -> Result<Migrated> {
    if !is_whole_pages(span) {
        return Err(EINVAL);
    }
    if map.is_closed() {
        return Err(ENODEV);
    }
    let trip = Trip {
        store: map,
        map,
        to,
        options,
    };
    let mut buffers = Buffers::new(map)?;
    let mut done = Moved::default();
    let mut at = span.start;
    let mut evictions = 0;

    while at < span.end {
        if super::super::fault::is_being_killed() {
            return Err(EINTR);
        }
        let accept = !options.evict || evictions >= MAX_EVICTIONS;
        let batch = trip.batch(mm, at..span.end, accept, &mut buffers)?;

        // OVERFLOW: Pages of the span.
        done.pages += batch.moved.pages;
        done.large += batch.moved.large;
        if batch.reached > at {
            evictions = 0;
        }
        at = batch.reached;
        if batch.no_room {
            evictions += 1;
            // Without the mmap lock and without locked pages. If it fails, the window takes what room
            // there is.
            if evict::make_room(map, BLOCK_SIZE as u64) == 0 {
                evictions = MAX_EVICTIONS;
            }
        }
    }
    Ok(Migrated {
        moved: done.pages,
        moved_large: done.large,
        // OVERFLOW: No more pages move than there are.
        skipped: (span.end - span.start) / PAGE_SIZE - done.pages,
    })
}

/// Buffers for the windows that are under way.
struct Buffers<'a> {
    store: &'a Store,
    buffers: KVec<Buffer>,
}

impl<'a> Buffers<'a> {
    fn new(store: &'a Store) -> Result<Self> {
        let mut buffers = KVec::with_capacity(DEPTH, GFP_KERNEL)?;

        for _ in 0..DEPTH {
            buffers.push(store.buffer()?, GFP_KERNEL)?;
        }
        Ok(Self { store, buffers })
    }
}

impl Drop for Buffers<'_> {
    fn drop(&mut self) {
        while let Some(buffer) = self.buffers.pop() {
            self.store.put_buffer(buffer);
        }
    }
}

/// One migration.
struct Trip<'a> {
    store: &'a Store,
    map: &'a Pagemap<Store>,
    to: To,
    options: &'a MigrateOptions,
}

impl Trip<'_> {
    /// Moves the first few windows of `span`.
    ///
    /// `accept`: if there is not enough room, fill what there is.
    fn batch(
        &self,
        mm: &MmWithUser,
        span: Range<usize>,
        accept: bool,
        buffers: &mut Buffers<'_>,
    ) -> Result<Batch> {
        let mut batch = Batch {
            moved: Moved::default(),
            reached: span.start,
            no_room: false,
        };
        let mut result = Ok(());
        let mmap = mm.mmap_read_lock();
        // Declared after what they borrow, so that an early end drops them before the mmap lock.
        let mut flying: [Option<Window<'_>>; DEPTH] = [const { None }; DEPTH];

        for (slot, buffer) in flying.iter_mut().zip(buffers.buffers.iter_mut()) {
            if batch.reached >= span.end {
                break;
            }
            let part = match part(&mmap, &(batch.reached..span.end)) {
                Ok(part) => part,
                Err(err) => {
                    result = Err(err);
                    break;
                }
            };

            match self.window(&mmap, part.clone(), accept, buffer) {
                Ok(window) => *slot = Some(window),
                Err(Stop::Nothing) => {}
                Err(Stop::NoRoom) => {
                    batch.no_room = true;
                    break;
                }
                Err(Stop::Failed(err)) => {
                    result = Err(err);
                    break;
                }
            }
            batch.reached = part.end;
        }
        for window in flying.into_iter().flatten() {
            match window.finish() {
                Ok(moved) => {
                    self.count(&moved);
                    batch.moved.pages += moved.pages;
                    batch.moved.large += moved.large;
                }
                // The others are finished nevertheless.
                Err(err) => result = Err(err),
            }
        }
        result?;
        Ok(batch)
    }

    fn count(&self, moved: &Moved) {
        let counters = &self.store.counters;
        let (pages, large) = match self.to {
            To::Device => (&counters.pages_in, &counters.pages_in_large),
            To::System => (&counters.pages_out, &counters.pages_out_large),
        };

        pages.add(moved.pages as u64);
        large.add(moved.large as u64);
    }

    /// Collects one window, gives it destinations and starts the copies.
    fn window<'b>(
        &'b self,
        mmap: &'b MmapReadGuard<'_>,
        span: Range<usize>,
        accept: bool,
        buffer: &'b mut Buffer,
    ) -> Result<Window<'b>, Stop> {
        let group = &self.store.group;
        let request = match self.to {
            To::Device => Request {
                system: true,
                private: false,
                coherent: false,
                large: self.store.large(),
                // Nothing but system memory moves, which this tells to the mirrors.
                owner: group.token(),
            },
            To::System => Request {
                system: false,
                private: self.store.private,
                coherent: !self.store.private,
                large: self.store.large(),
                owner: group.owner(),
            },
        };
        let collected =
            migrate::collect(mmap, span, &request, buffer).map_err(|err| match err {
                // Memory that does not migrate.
                e if e == EINVAL || e == EFAULT => Stop::Nothing,
                e => Stop::Failed(e),
            })?;

        if collected.is_empty() {
            return Err(Stop::Nothing);
        }
        let populated = match self.to {
            To::Device => self.populate_device(collected, accept)?,
            To::System => {
                let any = collected.entries().any(|entry| is_ours(self.map, &entry));
                let populated = populate_system(self.store, self.map, collected);

                if any && populated.is_empty() {
                    return Err(Stop::Failed(ENOMEM));
                }
                populated
            }
        };

        if populated.is_empty() {
            return Err(Stop::Nothing);
        }
        Ok(Window::start(self.store, self.map, populated)?)
    }

    /// Whether the device shall have an entry.
    fn wants(&self, entry: &Entry<'_>) -> bool {
        match entry.source {
            Source::Hole => self.options.populate,
            Source::System { anon, .. } => anon,
            Source::Device(_) => false,
        }
    }

    fn populate_device<'b>(
        &self,
        collected: Collected<'b>,
        accept: bool,
    ) -> Result<Populated<'b>, Stop> {
        let wanted: usize = collected
            .entries()
            .filter(|entry| self.wants(entry))
            .map(|entry| 1usize << entry.order)
            .sum();

        if wanted == 0 {
            return Err(Stop::Nothing);
        }
        // A window of which all moves keeps its places, one after the other.
        let whole = wanted == PAGES;
        let mut room = self.store.alloc.reserve(wanted, whole)?;

        if room.total() < wanted && !accept {
            return Err(Stop::NoRoom);
        }
        if room.total() == 0 {
            return Err(Stop::Nothing);
        }
        let mut next = 0;
        let mut closed = false;
        let populated = collected.populate(|entry| {
            if closed || !self.wants(entry) {
                return None;
            }
            if entry.order > 0 {
                let page = room.whole()?;

                if Store::shall_fail(&self.store.fail_device) {
                    return None;
                }
                let folio = self.store.folio(self.map, page, entry.order)?;

                room.take(0..1 << entry.order);
                next = PAGES;
                self.keep_quiet(page);
                return Some(folio);
            }
            let page = room.page(next)?;
            let Some(folio) = self.store.folio(self.map, page, 0) else {
                closed = true;
                return None;
            };

            room.take(next..next + 1);
            next += 1;
            self.keep_quiet(page);
            Some(folio)
        });

        Ok(populated)
    }

    fn keep_quiet(&self, page: usize) {
        if let Some(slice) = self.options.timeslice {
            self.store.alloc.keep_quiet(page, slice);
        }
    }
}

/// Whether an entry is in this very memory, and not in that of another member of the group.
fn is_ours(map: &Pagemap<Store>, entry: &Entry<'_>) -> bool {
    matches!(&entry.source, Source::Device(page) if map.offset_of(page).is_some())
}

/// Gives what is in this memory destinations in system memory: large ones where they can be had.
pub(super) fn populate_system<'a>(
    store: &Store,
    map: &Pagemap<Store>,
    collected: Collected<'a>,
) -> Populated<'a> {
    let large = !(collected.entries().any(|entry| entry.order > 0)
        && Store::shall_fail(&store.fail_system));

    if !store.group.is_shared() {
        return collected.populate_system(SystemAlloc {
            large,
            nofail: false,
        });
    }
    // Another member's engine would have to copy its pages: they stay.
    collected.populate(|entry| {
        if !is_ours(map, entry) || (entry.order > 0 && !large) {
            return None;
        }
        Destination::system(entry.order).ok()
    })
}

/// The first part of `span` that is in one block and one VMA.
///
/// # Errors
///
/// `EINVAL` if `span` begins where there is no memory, or none that can be read.
fn part(mmap: &MmapReadGuard<'_>, span: &Range<usize>) -> Result<Range<usize>> {
    let vma = mmap.vma_lookup(span.start).ok_or(EINVAL)?;

    if vma.flags() & flags::READ == 0 {
        return Err(EINVAL);
    }
    let block_end = block_start(span.start).saturating_add(BLOCK_SIZE);

    Ok(span.start..span.end.min(vma.end()).min(block_end))
}
