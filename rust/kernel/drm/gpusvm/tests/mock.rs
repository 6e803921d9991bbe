// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A driver without hardware, which writes down what the library asks of it.

use core::ops::Range;

use kernel::{
    kunit::mm::{
        madvise,
        Advice, //
    },
    new_spinlock,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        SpinLock, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

use super::super::{
    Driver,
    Segment,
    ValidPages, //
};

/// What `walked` does, once.
pub(super) type Hook = fn(Range<usize>);

/// A page table that is a list, and counters.
#[pin_data]
pub(super) struct Mock {
    /// What the device could access now. The capacity is reserved: `commit` must not allocate.
    #[pin]
    table: SpinLock<KVVec<Segment>>,
    #[pin]
    hook: SpinLock<Option<Hook>>,
    /// A page of the current address space that each `walked` takes away.
    #[pin]
    pub(super) storm: SpinLock<Option<usize>>,
    /// How long each `walked` takes, in milliseconds.
    pub(super) slow: Atomic<u32>,
    pub(super) prepared: Atomic<u32>,
    pub(super) committed: Atomic<u32>,
    pub(super) stopped: Atomic<u32>,
    pub(super) waited: Atomic<u32>,
    pub(super) released: Atomic<u32>,
    /// `commit` fails as often as this says.
    pub(super) fail_commit: Atomic<u32>,
    /// `commit` writes everything and fails nevertheless, as often as this says.
    pub(super) fail_late: Atomic<u32>,
    /// `commit` asks for another try as often as this says.
    pub(super) again_commit: Atomic<u32>,
    /// `prepare` fails as often as this says.
    pub(super) fail_prepare: Atomic<u32>,
    /// `prepare` fails so, once.
    #[pin]
    pub(super) prepare_error: SpinLock<Option<Error>>,
    /// A `commit` or `stop` that broke a rule.
    pub(super) broken: Atomic<u32>,
}

/// Enough for every page of the tests' mappings.
const CAPACITY: usize = 8192;

impl Mock {
    pub(super) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            table <- {
                let table = KVVec::with_capacity(CAPACITY, GFP_KERNEL)?;

                new_spinlock!(table, "gpusvm::tests::table")
            },
            hook <- new_spinlock!(None, "gpusvm::tests::hook"),
            storm <- new_spinlock!(None, "gpusvm::tests::storm"),
            slow: Atomic::new(0),
            prepared: Atomic::new(0),
            committed: Atomic::new(0),
            stopped: Atomic::new(0),
            waited: Atomic::new(0),
            released: Atomic::new(0),
            fail_commit: Atomic::new(0),
            fail_late: Atomic::new(0),
            again_commit: Atomic::new(0),
            fail_prepare: Atomic::new(0),
            prepare_error <- new_spinlock!(None, "gpusvm::tests::prepare_error"),
            broken: Atomic::new(0),
        })
    }

    /// Has `hook` called by the next `walked`.
    pub(super) fn set_hook(&self, hook: Hook) {
        *self.hook.lock() = Some(hook);
    }

    /// How many bytes of `span` the device could access now, and how many it could write.
    pub(super) fn accessible(&self, span: &Range<usize>) -> (usize, usize) {
        let table = self.table.lock();
        let (mut read, mut write) = (0, 0);

        for seg in table.iter() {
            let start = seg.va.start.max(span.start);
            let end = seg.va.end.min(span.end);

            if start < end {
                read += end - start;
                if seg.write {
                    write += end - start;
                }
            }
        }
        (read, write)
    }

    /// How many entries the page table has.
    pub(super) fn entries(&self) -> usize {
        self.table.lock().len()
    }

    fn fails(counter: &Atomic<u32>) -> bool {
        let left = counter.load(Relaxed);

        if left > 0 {
            counter.store(left - 1, Relaxed);
        }
        left > 0
    }
}

impl Driver for Mock {
    // Small, so that tests meet the border between two windows.
    const NOTIFIER_SIZE: usize = kernel::sizes::SZ_8M;

    fn prepare(&self, _span: Range<usize>) -> Result {
        kernel::task::might_sleep();
        self.prepared.fetch_add(1, Relaxed);
        if let Some(err) = self.prepare_error.lock().take() {
            return Err(err);
        }
        if Self::fails(&self.fail_prepare) {
            return Err(ENOMEM);
        }
        Ok(())
    }

    fn walked(&self, span: Range<usize>) {
        let hook = self.hook.lock().take();
        let storm = *self.storm.lock();
        let slow = self.slow.load(Relaxed);

        if let Some(hook) = hook {
            hook(span);
        }
        if slow > 0 {
            fsleep(Delta::from_millis(i64::from(slow)));
        }
        if let Some(addr) = storm {
            let _ = madvise(addr, PAGE_SIZE, Advice::DontNeed);
        }
    }

    fn commit(&self, pages: &ValidPages<'_>) -> Result {
        self.committed.fetch_add(1, Relaxed);
        if Self::fails(&self.fail_commit) {
            return Err(ENOMEM);
        }
        if Self::fails(&self.again_commit) {
            return Err(EAGAIN);
        }
        let mut table = self.table.lock();

        for seg in pages.iter() {
            let span = pages.span();
            let inside = span.start <= seg.va.start && seg.va.end <= span.end;
            let again = table
                .iter()
                .any(|old| old.va.start < seg.va.end && seg.va.start < old.va.end);

            if !inside || again || seg.va.is_empty() || table.push_within_capacity(seg).is_err() {
                self.broken.fetch_add(1, Relaxed);
            }
        }
        if Self::fails(&self.fail_late) {
            return Err(EIO);
        }
        Ok(())
    }

    fn stop(&self, span: Range<usize>) {
        self.stopped.fetch_add(1, Relaxed);
        let mut table = self.table.lock();

        // Whole blocks are stopped, so no entry is cut.
        if table.iter().any(|seg| {
            let outside = seg.va.end <= span.start || span.end <= seg.va.start;
            let inside = span.start <= seg.va.start && seg.va.end <= span.end;

            !outside && !inside
        }) {
            self.broken.fetch_add(1, Relaxed);
        }
        table.retain(|seg| seg.va.end <= span.start || span.end <= seg.va.start);
    }

    fn wait(&self) {
        self.waited.fetch_add(1, Relaxed);
    }

    fn release(&self, span: Range<usize>) {
        kernel::task::might_sleep();
        self.released.fetch_add(1, Relaxed);
        if self.accessible(&span) != (0, 0) {
            self.broken.fetch_add(1, Relaxed);
        }
    }
}
