// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The CPU touches private device memory.

use core::ops::Range;

use kernel::{
    mm::{
        migrate::Buffer,
        pagemap::{
            Fault,
            Handled, //
        }, //
    },
    page::PAGE_SIZE,
    prelude::*,
    time::msecs_to_jiffies, //
};

use super::{
    super::span::{
        aligned_window,
        intersect,
        BLOCK_SIZE, //
    },
    migrate::populate_system,
    pass::Window,
    store::Store, //
};

/// Brings the page back, and what is around it, as far as the policy says.
///
/// Holds no lock of the library, and takes only leaf locks: many CPUs may come here with the same
/// page (B-27), and an invalidation may wait for what this thread holds.
pub(super) fn handle(store: &Store, fault: &Fault<'_, Store>) -> Handled {
    store.counters.cpu_faults.add(1);
    let page = fault.offset();

    if store.alloc.is_lost(page) {
        // Never what was there before.
        return Handled::Sigbus;
    }
    if fault.may_wait() {
        if let Some(left) = store.alloc.quiet_for(page) {
            // CAST: Milliseconds of a timeslice.
            let ms = u32::try_from(left.as_millis_ceil().max(1)).unwrap_or(u32::MAX);

            store.counters.cpu_waits.add(1);
            return Handled::Wait(msecs_to_jiffies(ms));
        }
    }
    let pages = if fault.order() > 0 {
        BLOCK_SIZE / PAGE_SIZE
    } else {
        store.alloc.cpu_window(page, store.cpu_window)
    };
    // A power of two of pages, so windows do not cross blocks.
    let Some(window) = aligned_window(fault.address(), pages * PAGE_SIZE) else {
        return Handled::Sigbus;
    };
    let window = intersect(&window, &fault.vma_span());
    let Ok(mut buffer) = store.buffer() else {
        return Handled::OutOfMemory;
    };
    let handled = bring_back(store, fault, window, &mut buffer);

    store.put_buffer(buffer);
    handled
}

fn bring_back(
    store: &Store,
    fault: &Fault<'_, Store>,
    window: Range<usize>,
    buffer: &mut Buffer,
) -> Handled {
    let page = fault.offset();
    let Ok(collected) = fault.collect(window.clone(), buffer) else {
        return Handled::Done;
    };

    if collected.is_empty() {
        // Somebody else is faster, or holds the page for a moment.
        return Handled::Done;
    }
    let populated = populate_system(store, fault.map(), collected);

    if populated.is_empty() {
        drop(populated);
        // Without a large folio in system memory, the one here becomes pages, which the next fault
        // brings back one by one.
        return match fault.split() {
            Err(err) if err == EINVAL => Handled::OutOfMemory,
            _ => Handled::Done,
        };
    }
    match Window::start(store, fault.map(), populated).and_then(Window::finish) {
        Ok(moved) => {
            store.counters.pages_out.add(moved.pages as u64);
            store.counters.pages_out_large.add(moved.large as u64);
            // OVERFLOW: The window contains the address, and both are in one block.
            let end = page + (window.end - fault.address()) / PAGE_SIZE;

            // OVERFLOW: It is not empty.
            store
                .alloc
                .cpu_took(page, end, (window.end - window.start) / PAGE_SIZE);
            Handled::Done
        }
        Err(err) if err == ENOMEM => Handled::OutOfMemory,
        Err(_) => Handled::Sigbus,
    }
}
