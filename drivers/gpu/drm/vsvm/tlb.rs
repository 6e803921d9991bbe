// SPDX-License-Identifier: GPL-2.0

//! A model of a TLB, and the flushes that it needs.
//!
//! A TLB keeps translations and knows nothing of what happens to the page table: until the driver
//! flushes it, an access may go to a page that the page table has not named for long. This is the
//! reason why the library has two steps, [`stop`] and [`wait`], and unmaps memory only after the
//! second. The model keeps a translation as long as it may, which is worse than any hardware, and
//! it notices when it was kept too long.
//!
//! It notices as well when nobody waits for a flush, though such a translation may be used for ever
//! by the rules of the hardware: when pages are committed to, or tables are released of, addresses
//! whose flush was submitted and not waited for.
//!
//! It says nothing that is not certain. More than [`MAX_SPANS`] flushes at a time are remembered as
//! one span from the first to the last, in which old translations are excused, and a missing wait is
//! not noticed.
//!
//! [`stop`]: kernel::drm::gpusvm::Driver::stop
//! [`wait`]: kernel::drm::gpusvm::Driver::wait

use core::ops::Range;

use kernel::{
    new_mutex,
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{
            ordering::{
                Acquire,
                Full,
                Release, //
            },
            Atomic, //
        },
        Mutex,
        SpinLock, //
    }, //
};

use crate::{
    counters::Counter,
    page_table::{
        Leaf,
        LARGE,
        SMALL, //
    }, //
};

/// Translations that a TLB holds of each size. Small, so that they also get evicted.
const SLOTS: usize = 64;

/// The translations that one engine keeps. Direct mapped, one set for each size of leaf.
pub(crate) struct Tlb {
    small: KVec<Option<Leaf>>,
    large: KVec<Option<Leaf>>,
}

impl Tlb {
    /// An empty TLB.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            small: KVec::from_elem(None, SLOTS, GFP_KERNEL)?,
            large: KVec::from_elem(None, SLOTS, GFP_KERNEL)?,
        })
    }

    /// The translation of `va`, if it is known.
    pub(crate) fn lookup(&self, va: usize) -> Option<Leaf> {
        let find = |set: &[Option<Leaf>], size: usize| {
            set.get(va / size % SLOTS)
                .copied()
                .flatten()
                .filter(|leaf| leaf.va == va & !(size - 1))
        };

        find(&self.small, SMALL).or_else(|| find(&self.large, LARGE))
    }

    /// Remembers a translation, and forgets another one.
    pub(crate) fn insert(&mut self, leaf: Leaf) {
        // Divided by constants: the compiler need not care for zero.
        let slot = if leaf.size == LARGE {
            self.large.get_mut(leaf.va / LARGE % SLOTS)
        } else {
            self.small.get_mut(leaf.va / SMALL % SLOTS)
        };

        if let Some(slot) = slot {
            *slot = Some(leaf);
        }
    }

    /// Forgets every translation of an address in `span`.
    pub(crate) fn flush(&mut self, span: &Range<usize>) {
        for set in [&mut self.small, &mut self.large] {
            for slot in set.iter_mut() {
                if slot.is_some_and(|leaf| leaf.overlaps(span)) {
                    *slot = None;
                }
            }
        }
    }
}

/// Spans that a [`Spans`] holds as they are, before it starts to join them.
const MAX_SPANS: usize = 8;

/// A set of spans, which may grow to contain more than was put in.
#[derive(Clone, Copy)]
pub(crate) struct Spans {
    spans: [(usize, usize); MAX_SPANS],
    len: usize,
    /// Contains the spans for which there was no room, and what is between them.
    hull: (usize, usize),
    /// So many they are.
    hulled: usize,
}

impl Spans {
    /// The empty set.
    pub(crate) const EMPTY: Self = Self {
        spans: [(0, 0); MAX_SPANS],
        len: 0,
        hull: (usize::MAX, 0),
        hulled: 0,
    };

    /// Adds a span.
    pub(crate) fn add(&mut self, span: &Range<usize>) {
        if let Some(slot) = self.spans.get_mut(self.len) {
            *slot = (span.start, span.end);
            self.len += 1;
        } else {
            self.hull = (self.hull.0.min(span.start), self.hull.1.max(span.end));
            self.hulled += 1;
        }
    }

    /// Takes out a span that was added. What was joined goes with the last one of it.
    fn remove(&mut self, span: &Range<usize>) {
        let at = self.exact().position(|s| s == *span);

        if let Some(at) = at {
            // OVERFLOW: One was found, so there is one.
            self.len -= 1;
            if let Some(last) = self.spans.get(self.len).copied() {
                if let Some(slot) = self.spans.get_mut(at) {
                    *slot = last;
                }
            }
            return;
        }
        self.hulled = self.hulled.saturating_sub(1);
        if self.hulled == 0 {
            self.hull = Self::EMPTY.hull;
        }
    }

    /// The spans that are in the set as they were put in.
    fn exact(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.spans
            .iter()
            .take(self.len)
            .map(|&(start, end)| start..end)
    }

    /// Spans that contain everything that was put in.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let hull = (self.hulled != 0).then_some(self.hull.0..self.hull.1);

        Iterator::chain(self.exact(), hull)
    }

    /// Whether `va` is in the set.
    pub(crate) fn contains(&self, va: usize) -> bool {
        self.iter().any(|span| span.contains(&va))
    }

    /// Whether an address of `span` was put in for certain.
    fn surely_overlaps(&self, span: &Range<usize>) -> bool {
        self.exact()
            .any(|s| s.start < span.end && span.start < s.end)
    }
}

/// Flushes that are not complete.
struct Pending {
    /// Not submitted: the entries are being zapped.
    zapping: Spans,
    /// Submitted, and not begun.
    waiting: Spans,
    /// Begun.
    running: Spans,
}

/// The flush queue of an address space.
#[pin_data]
pub(crate) struct Flushes {
    submitted: Atomic<u64>,
    completed: Atomic<u64>,
    #[pin]
    pending: SpinLock<Pending>,
    /// Held by whoever completes flushes: they complete in order.
    #[pin]
    completing: Mutex<()>,
    pub(crate) count: Counter,
}

impl Flushes {
    /// No flush is pending.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            submitted: Atomic::new(0),
            completed: Atomic::new(0),
            pending <- new_spinlock!(Pending {
                zapping: Spans::EMPTY,
                waiting: Spans::EMPTY,
                running: Spans::EMPTY,
            }, "vsvm::Flushes::pending"),
            completing <- new_mutex!((), "vsvm::Flushes::completing"),
            count: Counter::new(),
        })
    }

    /// Zaps entries of `span` by `zap`, and submits the flush that this makes necessary. Does not
    /// wait for it.
    pub(crate) fn submit(&self, span: &Range<usize>, zap: impl FnOnce()) {
        self.pending.lock().zapping.add(span);
        zap();
        let mut pending = self.pending.lock();

        pending.zapping.remove(span);
        pending.waiting.add(span);
        self.submitted.fetch_add(1, Full);
    }

    /// Waits until all flushes are complete that were submitted before this call.
    ///
    /// `flush` is called to do the flush, if there is one to do. It must make sure that no access
    /// with a translation of the spans is in flight when it returns.
    pub(crate) fn complete(&self, flush: impl FnOnce(&Spans)) {
        let goal = self.submitted.load(Acquire);

        if self.completed.load(Acquire) >= goal {
            return;
        }
        let _in_order = self.completing.lock();

        // Somebody else may have completed it while this task waited.
        if self.completed.load(Acquire) >= goal {
            return;
        }
        let (spans, reached) = {
            let mut pending = self.pending.lock();

            pending.running = pending.waiting;
            pending.waiting = Spans::EMPTY;
            (pending.running, self.submitted.load(Acquire))
        };
        flush(&spans);
        self.pending.lock().running = Spans::EMPTY;
        self.completed.store(reached, Release);
        self.count.add(1);
    }

    /// Whether a translation of `va` may still be used that the page table does not have any more.
    ///
    /// To be asked *after* the page table was, with the TLB locked against flushes: whoever zapped an
    /// entry is in one of the sets until the flush is complete.
    pub(crate) fn allows_old(&self, va: usize) -> bool {
        let pending = self.pending.lock();

        pending.zapping.contains(va) || pending.waiting.contains(va) || pending.running.contains(va)
    }

    /// Whether a flush of an address in `span` was submitted for certain, and nobody has waited for
    /// it.
    pub(crate) fn is_unfinished(&self, span: &Range<usize>) -> bool {
        let pending = self.pending.lock();

        pending.waiting.surely_overlaps(span) || pending.running.surely_overlaps(span)
    }
}

#[cfg(CONFIG_DRM_GPUSVM_RUST_KUNIT_TEST)]
#[kunit_tests(vsvm_tlb)]
mod tests {
    use super::*;

    const BASE: usize = 0x7f00_0000_0000;

    fn leaf(va: usize, size: usize) -> Leaf {
        Leaf {
            va,
            size,
            dma: va as u64,
            write: true,
        }
    }

    #[test]
    fn lookup_and_flush() -> Result {
        let mut tlb = Tlb::new()?;

        assert_eq!(tlb.lookup(0), None);
        tlb.insert(leaf(BASE, SMALL));
        tlb.insert(leaf(BASE + LARGE, LARGE));
        assert_eq!(tlb.lookup(BASE + 5), Some(leaf(BASE, SMALL)));
        assert_eq!(tlb.lookup(BASE + SMALL), None);
        assert_eq!(
            tlb.lookup(BASE + LARGE + 9 * SMALL),
            Some(leaf(BASE + LARGE, LARGE))
        );
        // A flush beside them, and of a part of the large one.
        tlb.flush(&(BASE + SMALL..BASE + LARGE));
        assert!(tlb.lookup(BASE).is_some());
        assert!(tlb.lookup(BASE + LARGE).is_some());
        tlb.flush(&(BASE + LARGE + SMALL..BASE + LARGE + 2 * SMALL));
        assert!(tlb.lookup(BASE).is_some());
        assert!(tlb.lookup(BASE + LARGE).is_none());
        tlb.flush(&(0..usize::MAX));
        assert!(tlb.lookup(BASE).is_none());
        Ok(())
    }

    #[test]
    fn slots_are_shared() -> Result {
        let mut tlb = Tlb::new()?;
        let other = BASE + SLOTS * SMALL;

        tlb.insert(leaf(BASE, SMALL));
        tlb.insert(leaf(other, SMALL));
        assert_eq!(tlb.lookup(BASE), None);
        assert_eq!(tlb.lookup(other), Some(leaf(other, SMALL)));
        Ok(())
    }

    #[test]
    fn spans_grow_when_full() {
        let mut spans = Spans::EMPTY;

        assert!(!spans.contains(0));
        for i in 0..MAX_SPANS + 3 {
            spans.add(&(i * 100..i * 100 + 10));
        }
        for i in 0..MAX_SPANS + 3 {
            assert!(spans.contains(i * 100) && spans.contains(i * 100 + 9));
        }
        assert!(!spans.contains(10) && !spans.contains(150));
        // Those that did not fit are joined, and nobody knows which addresses they were.
        assert!(spans.contains((MAX_SPANS + 1) * 100 - 1));
        assert_eq!(spans.iter().count(), MAX_SPANS + 1);
        assert!(spans.surely_overlaps(&(705..900)));
        assert!(!spans.surely_overlaps(&(800..900)));
    }

    #[test]
    fn spans_are_taken_out() {
        let mut spans = Spans::EMPTY;
        let span = |i: usize| i * 100..i * 100 + 10;

        for i in 0..MAX_SPANS + 2 {
            spans.add(&span(i));
        }
        spans.remove(&span(0));
        assert!(!spans.contains(0));
        for i in 1..MAX_SPANS + 2 {
            assert!(spans.contains(i * 100));
        }
        // What was joined stays until the last one of it goes.
        spans.remove(&span(MAX_SPANS));
        assert!(spans.contains(MAX_SPANS * 100));
        spans.remove(&span(MAX_SPANS + 1));
        assert!(!spans.contains(MAX_SPANS * 100));
        for i in 1..MAX_SPANS {
            spans.remove(&span(i));
        }
        assert_eq!(spans.iter().count(), 0);
    }

    #[test]
    fn nobody_waits() -> Result {
        let flushes = KBox::pin_init(Flushes::new(), GFP_KERNEL)?;
        let span = BASE..BASE + LARGE;

        flushes.submit(&span, || ());
        assert!(flushes.is_unfinished(&(BASE + SMALL..BASE + 2 * SMALL)));
        assert!(!flushes.is_unfinished(&(BASE - SMALL..BASE)));
        flushes.complete(|_| assert!(flushes.is_unfinished(&span)));
        assert!(!flushes.is_unfinished(&span));
        Ok(())
    }

    #[test]
    fn flush_is_late_until_complete() -> Result {
        let flushes = KBox::pin_init(Flushes::new(), GFP_KERNEL)?;
        let span = BASE..BASE + SMALL;
        let mut during_zap = (false, true);

        assert!(!flushes.allows_old(BASE));
        flushes.submit(&span, || {
            during_zap = (flushes.allows_old(BASE), flushes.allows_old(BASE + SMALL))
        });
        assert_eq!(during_zap, (true, false));
        assert!(flushes.allows_old(BASE));
        assert!(!flushes.allows_old(BASE + SMALL));

        let mut flushed = 0;
        flushes.complete(|spans| {
            flushed += 1;
            assert!(spans.contains(BASE));
            // Begun, and not complete.
            assert!(flushes.allows_old(BASE));
        });
        assert_eq!(flushed, 1);
        assert!(!flushes.allows_old(BASE));
        // There is nothing left to do.
        flushes.complete(|_| flushed += 1);
        assert_eq!(flushed, 1);
        assert_eq!(flushes.count.get(), 1);
        Ok(())
    }

    #[test]
    fn one_flush_for_many_zaps() -> Result {
        let flushes = KBox::pin_init(Flushes::new(), GFP_KERNEL)?;

        for i in 0..20 {
            flushes.submit(&(BASE + i * LARGE..BASE + i * LARGE + SMALL), || ());
        }
        flushes.complete(|spans| {
            for i in 0..20 {
                assert!(spans.contains(BASE + i * LARGE));
            }
        });
        assert_eq!(flushes.count.get(), 1);
        // One that is submitted while another runs is not covered by it.
        flushes.submit(&(0..SMALL), || ());
        flushes.complete(|_| flushes.submit(&(LARGE..LARGE + SMALL), || ()));
        assert!(!flushes.allows_old(0));
        assert!(flushes.allows_old(LARGE));
        flushes.complete(|spans| assert!(spans.contains(LARGE) && !spans.contains(0)));
        assert!(!flushes.allows_old(LARGE));
        Ok(())
    }
}
