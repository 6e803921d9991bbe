// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Emptying chunks of device memory.
//!
//! It goes by physical place, without an address space: pages can outlive the process that has put
//! them there, in its children, whose address spaces nobody here knows (H-1).

use core::ops::Range;

use kernel::{
    mm::{
        migrate::Buffer,
        pagemap::Pagemap, //
    },
    page::PAGE_SIZE,
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

use super::{
    alloc::{
        Victim,
        PAGES, //
    },
    migrate::populate_system,
    pass::Window,
    store::Store, //
};

/// How often a chunk is tried before another one is, with a pause that doubles from 100 us.
const MAX_ROUNDS: u32 = 8;

/// Empties one chunk, as far as it can be. Sleeps. Returns whether it is empty.
///
/// What is locked or referenced by somebody else cannot move now; mostly that passes.
fn empty(map: &Pagemap<Store>, pages: Range<usize>) -> bool {
    let Ok(mut buffer) = map.buffer() else {
        return false;
    };

    for round in 0..MAX_ROUNDS {
        if map.used_in(pages.clone()) == 0 {
            break;
        }
        let moved = pass(map, pages.clone(), &mut buffer);

        if moved == 0 {
            fsleep(Delta::from_micros(100 << round));
        }
    }
    map.put_buffer(buffer);
    map.used_in(pages) == 0
}

/// Moves what can move of `pages`, all of one chunk, to system memory. Returns how many pages did.
fn pass(map: &Pagemap<Store>, pages: Range<usize>, buffer: &mut Buffer) -> usize {
    let Ok(collected) = map.collect(pages.clone(), buffer) else {
        return 0;
    };

    if collected.is_empty() {
        return 0;
    }
    let large = collected.entries().any(|entry| entry.order > 0);
    let populated = populate_system(map, map, collected);
    let moved = if populated.is_empty() {
        drop(populated);
        0
    } else {
        Window::start(map, map, populated)
            .and_then(Window::finish)
            .map_or(0, |moved| {
                map.counters.pages_out.add(moved.pages as u64);
                map.counters.pages_out_large.add(moved.large as u64);
                map.counters.pages_evicted.add(moved.pages as u64);
                moved.pages
            })
    };

    if moved == 0 && large {
        // Without an address space, core does not split a folio for which there is no large
        // destination; so it is done here, for the next round (PM-19).
        let _ = map.split(pages.start);
    }
    moved
}

fn evict(map: &Pagemap<Store>, victim: Victim<'_>) -> u64 {
    let before = victim.live();

    if empty(map, victim.pages()) {
        map.counters.evictions.add(1);
    }
    // CAST: Pages of a chunk.
    before.saturating_sub(victim.live()) as u64
}

/// Makes room for `bytes` by emptying the chunks that were not used for the longest time. Sleeps; no
/// lock of the core mm may be held. Returns the bytes that became free.
pub(super) fn make_room(map: &Pagemap<Store>, bytes: u64) -> u64 {
    let before = map.alloc.clock();
    let mut freed = 0;

    while freed < bytes {
        let Some(victim) = map.alloc.victim(before) else {
            break;
        };

        // OVERFLOW: Not more than there is memory.
        freed += evict(map, victim) * PAGE_SIZE as u64;
    }
    freed
}

/// Moves away all that can move away now. Sleeps.
pub(super) fn all(map: &Pagemap<Store>) {
    make_room(map, u64::MAX);
    // Also what was lost, or is being filled: chunk by chunk.
    let mut from = 0;

    while from < map.pages() {
        let chunk = from..from + PAGES;

        if map.used_in(chunk.clone()) > 0 {
            empty(map, chunk);
        }
        from += PAGES;
    }
}
