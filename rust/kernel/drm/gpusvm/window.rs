// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A window of addresses with one interval notifier and one lock.

use core::{
    ops,
    ptr::NonNull, //
};

use kernel::{
    alloc::AllocError,
    mm::{
        notifier::{
            Event,
            IntervalNotifier,
            Invalidate,
            Invalidation,
            Started,
            WouldBlock,
            WriteGuard, //
        },
        MmWithUser, //
    },
    page::PAGE_SIZE,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    static_lock_class,
    sync::Arc, //
};

use super::{
    pages::Unmapped,
    range::Range,
    span::{
        overlap,
        union, //
    },
    stats::{
        add,
        sub, //
    },
    trace::{
        self,
        Outcome, //
    },
    Driver,
    GpuSvm, //
};

/// What a window knows without its lock.
///
/// # Invariants
///
/// `svm` is valid as long as the notifier is registered: the mirror owns its windows and removes them
/// before it ends.
pub(super) struct Window<T: Driver> {
    svm: NonNull<GpuSvm<T>>,
}

// SAFETY: `GpuSvm<T>` is `Sync`, and this is but a shared reference to one.
unsafe impl<T: Driver> Send for Window<T> {}
// SAFETY: As above.
unsafe impl<T: Driver> Sync for Window<T> {}

/// An interval notifier with the ranges of its window, `drm_gpusvm_notifier` in C.
pub(super) type Notifier<T> = IntervalNotifier<Window<T>>;

/// What the notifier lock protects.
pub(super) struct WindowState<T: Driver> {
    /// The ranges of the window, by the last address in them. They do not overlap.
    ranges: RBTree<usize, Arc<Range<T>>>,
    /// The smallest span that contains everything that was unmapped since the collector was here.
    unmapped: Option<ops::Range<usize>>,
    /// The window is being removed, and takes no more ranges.
    closed: bool,
}

impl<T: Driver> WindowState<T> {
    pub(super) fn new() -> Self {
        Self {
            ranges: RBTree::new(),
            unmapped: None,
            closed: false,
        }
    }

    /// The first range that ends after `addr`.
    pub(super) fn first_after(&self, addr: usize) -> Option<&Arc<Range<T>>> {
        // A cursor lends its entry no longer than itself, so the entry is looked up by its key.
        let last = *self.ranges.cursor_lower_bound(&addr)?.current().0;

        self.ranges.get(&last)
    }

    /// The range that contains `addr`.
    pub(super) fn find(&self, addr: usize) -> Option<&Arc<Range<T>>> {
        self.first_after(addr)
            .filter(|range| range.span().start <= addr)
    }

    /// The ranges that share an address with `span`, in order.
    pub(super) fn overlapping<'a>(
        &'a self,
        span: &ops::Range<usize>,
    ) -> impl Iterator<Item = &'a Arc<Range<T>>> + use<'a, T> {
        let span = span.clone();
        let mut from = span.start;

        core::iter::from_fn(move || {
            let range = self.first_after(from)?;

            if !overlap(&range.span(), &span) {
                return None;
            }
            from = range.span().end;
            Some(range)
        })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Closes the window if nothing is in it.
    pub(super) fn close_if_empty(&mut self) -> bool {
        if self.ranges.is_empty() {
            self.closed = true;
        }
        self.closed
    }

    /// Whether nothing is in the window.
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether the collector has to look at the window.
    pub(super) fn is_marked(&self) -> bool {
        self.unmapped.is_some()
    }

    /// Has the collector look at `span` again.
    pub(super) fn mark(&mut self, span: &ops::Range<usize>) {
        self.unmapped = Some(match self.unmapped.take() {
            Some(before) => union(&before, span),
            None => span.clone(),
        });
    }

    /// Takes the span in which ranges may be marked as unmapped.
    pub(super) fn take_unmapped(&mut self) -> Option<ops::Range<usize>> {
        self.unmapped.take()
    }

    fn insert(&mut self, node: RBTreeNode<usize, Arc<Range<T>>>) {
        // The caller checked that no range overlaps, so nothing is replaced.
        self.ranges.insert(node);
    }

    /// Removes a range; what is returned must be dropped after the lock.
    pub(super) fn remove(&mut self, range: &Range<T>) -> Option<RBTreeNode<usize, Arc<Range<T>>>> {
        // OVERFLOW: Spans are not empty.
        let last = range.span().end - 1;

        self.ranges.remove_node(&last)
    }
}

/// Inserts a new range, unless another one got there first or the window is being removed.
///
/// Gives the range that contains `addr` now. May sleep.
pub(super) fn insert_range<T: Driver>(
    window: &Notifier<T>,
    range: Arc<Range<T>>,
    addr: usize,
) -> Result<Option<Arc<Range<T>>>, AllocError> {
    let span = range.span();

    if !range.belongs_to(window) {
        return Ok(None);
    }
    // OVERFLOW: Spans are not empty.
    let node =
        RBTreeNode::new(span.end - 1, range.clone(), GFP_KERNEL_ACCOUNT).map_err(|_| AllocError)?;
    let mut state = window.write();

    if state.closed || state.overlapping(&span).next().is_some() {
        let there = state.find(addr).filter(|_| !state.closed).cloned();
        // The node holds a range that was never used; it is freed after the lock.
        drop(state);
        drop(node);
        return Ok(there);
    }
    state.insert(node);
    drop(state);
    Ok(Some(range))
}

/// Follows nothing: what it is registered for stays.
struct FirstNotifier;

impl Invalidate for FirstNotifier {
    type State = ();

    fn start<'op>(op: Invalidation<'op, Self>) -> Result<Started<'op>, WouldBlock<'op>> {
        let (_, invalidated) = op.lock()?.advance();

        Ok(invalidated.into())
    }
}

/// Prepares an address space for interval notifiers. Sleeps.
///
/// The first notifier of an address space takes all its locks, and gives up if any signal is pending.
/// In a fault that could not be told from a process that is being killed, and could not be repeated;
/// whereas a process that creates a mirror can be asked to try again.
///
/// # Errors
///
/// `ERESTARTSYS` if a signal is pending, and `ENOMEM`.
pub(super) fn prepare_mm(mm: &MmWithUser) -> Result {
    let first = KBox::pin_init(
        IntervalNotifier::<FirstNotifier>::register(
            mm,
            0..PAGE_SIZE,
            Ok::<_, Error>(FirstNotifier),
            (),
            c"gpusvm::FirstNotifier",
            static_lock_class!(),
        ),
        GFP_KERNEL,
    );

    match first {
        Ok(_) => Ok(()),
        Err(err) if err == EINTR => Err(ERESTARTSYS),
        Err(err) => Err(err),
    }
}

impl<T: Driver> Window<T> {
    /// # Safety
    ///
    /// `svm` must unregister the notifier that holds the result before it ends.
    pub(super) unsafe fn new(svm: &GpuSvm<T>) -> Self {
        // INVARIANT: By the safety requirement.
        Self { svm: svm.into() }
    }

    fn svm(&self) -> &GpuSvm<T> {
        // SAFETY: By the type invariant; a callback runs only while the notifier is registered.
        unsafe { self.svm.as_ref() }
    }
}

/// Marks what is mapped of `span` as stopping and has the driver stop the device, one call for each
/// run of adjacent blocks: of each block all that was mapped, also before the beginning of `span` and
/// behind its end (H-6).
///
/// Blocks of which all is in device memory stay mapped with `spare_device`. Returns whether there is
/// anything to wait for.
pub(super) fn stop_span<T: Driver>(
    svm: &GpuSvm<T>,
    lock: &WriteGuard<'_, Window<T>>,
    span: &ops::Range<usize>,
    spare_device: bool,
) -> bool {
    let mut pending: Option<ops::Range<usize>> = None;
    let mut stopping = false;

    for range in lock.overlapping(span) {
        // SAFETY: Views are made one at a time, here and in `finish_span`.
        let Some(mut pages) = (unsafe { range.exclusive(lock) }) else {
            continue;
        };
        let (hit, busy) = if spare_device {
            pages.stop_system(span)
        } else {
            pages.stop(span)
        };

        stopping |= busy;
        let Some(hit) = hit else { continue };
        pending = match pending {
            Some(run) if run.end == hit.start => Some(run.start..hit.end),
            Some(run) => {
                svm.driver().stop(run);
                Some(hit)
            }
            None => Some(hit),
        };
    }
    if let Some(run) = pending {
        svm.driver().stop(run);
    }
    stopping
}

/// Most blocks that are unmapped without letting go of the lock in between, so that faults and other
/// invalidations of the window do not wait for all of a large one (PM-3).
const BLOCKS_PER_HOLD: u64 = 64;

/// Unmaps what is stopping in `span`. Sleeps.
///
/// The driver must have waited since `span` was stopped, and nothing of `span` may have been mapped
/// anew since then: so that whatever is stopping now was stopped before that wait, no matter by whom
/// (PM-4). In an invalidation this holds because a fault's sequence number is not current while one
/// runs; elsewhere, because the range's mutex is held or the mirror is detached. It holds without the
/// lock, too, so that the lock can be dropped on the way.
fn finish_span<T: Driver>(svm: &GpuSvm<T>, window: &Notifier<T>, span: &ops::Range<usize>) {
    let mut rest = Some(span.start);

    while let Some(from) = rest {
        let lock = window.write();

        rest = finish_part(svm, &lock, &(from..span.end));
    }
}

/// Unmaps the first [`BLOCKS_PER_HOLD`] stopping blocks of `span`; gives where to go on.
fn finish_part<T: Driver>(
    svm: &GpuSvm<T>,
    lock: &WriteGuard<'_, Window<T>>,
    span: &ops::Range<usize>,
) -> Option<usize> {
    let mut left = BLOCKS_PER_HOLD;

    for range in lock.overlapping(span) {
        // SAFETY: Views are made one at a time, here and in `stop_span`.
        let Some(mut pages) = (unsafe { range.exclusive(lock) }) else {
            continue;
        };
        let Unmapped {
            blocks,
            segments,
            bytes,
            next,
        } = pages.unmap(span, left);

        add(&svm.counters.blocks_invalidated, blocks);
        sub(&svm.counters.segments, segments);
        sub(&svm.counters.mapped_bytes, bytes);
        if next.is_some() {
            return next;
        }
        left = left.saturating_sub(blocks);
    }
    None
}

/// Takes what is mapped of `span` away from the device, outside of an invalidation. May sleep.
pub(super) fn unmap_span<T: Driver>(
    svm: &GpuSvm<T>,
    window: &Notifier<T>,
    span: &ops::Range<usize>,
) {
    let stopping = stop_span(svm, &window.write(), span, false);

    if stopping {
        svm.driver().wait();
        finish_span(svm, window, span);
    }
}

/// Marks the ranges in `span` for the collector.
///
/// A function of the guard and not of the state, since the guard is the proof for the ranges.
fn mark_unmapped<T: Driver>(lock: &mut WriteGuard<'_, Window<T>>, span: &ops::Range<usize>) {
    let mut any = false;

    for range in lock.overlapping(span) {
        range.set_unmapped(lock);
        any = true;
    }
    if any {
        lock.mark(span);
    }
}

impl<T: Driver> Invalidate for Window<T> {
    type State = WindowState<T>;

    /// The first pass: stops the device, does not wait for it.
    ///
    /// Runs in reclaim, too: nothing here allocates, and no reference to a range or window is taken
    /// or dropped.
    fn start<'op>(op: Invalidation<'op, Self>) -> Result<Started<'op>, WouldBlock<'op>> {
        let notifier = op.notifier();
        let svm = notifier.data().svm();
        let (span, event) = (op.span(), op.event());
        let refused = |_: &_| trace::invalidate(svm.id, &span, event, Outcome::WouldBlock);
        let mut locked = op.lock().inspect_err(refused)?;

        if !locked.blockable() && locked.is_busy(&span) {
            // Stopping means to wait for the device. Nothing has been changed.
            locked = match locked.would_block() {
                Ok(refusal) => {
                    refused(&refusal);
                    return Err(refusal);
                }
                Err(locked) => locked,
            };
        }
        // What is in our device's memory, or in that of a device in its group, is not moved by a pass
        // that takes system memory only. Nothing else is spared, whoever sent the event: the pages that
        // move are copied after it (PM-1).
        let spare_device = svm
            .driver()
            .memory()
            .is_some_and(|memory| locked.is_owner(memory.group().token_ptr().as_ptr()));
        let (mut state, invalidated) = locked.advance();

        add(&svm.counters.invalidations, 1);
        let stopping = stop_span(svm, &state, &span, spare_device);
        if event == Event::Unmap {
            mark_unmapped(&mut state, &span);
            if state.unmapped.is_some() {
                svm.collector.queue();
            }
        }
        drop(state);
        if !stopping {
            trace::invalidate(svm.id, &span, event, Outcome::Idle);
            return Ok(invalidated.into());
        }
        match invalidated.defer() {
            Ok(deferred) => {
                trace::invalidate(svm.id, &span, event, Outcome::Deferred);
                Ok(deferred.into())
            }
            Err(invalidated) => {
                // The finish object is in use by a concurrent invalidation: do the second pass now.
                Self::finish(notifier, span.clone(), event);
                trace::invalidate(svm.id, &span, event, Outcome::InPlace);
                Ok(invalidated.into())
            }
        }
    }

    /// The second pass: waits for the device, then unmaps.
    ///
    /// It may also finish blocks that a concurrent invalidation stopped; that one finds nothing left
    /// then. See [`finish_span`] for why it has waited for their flush, too.
    fn finish(notifier: &IntervalNotifier<Self>, span: ops::Range<usize>, _event: Event) {
        let svm = notifier.data().svm();

        if !notifier.read().is_busy(&span) {
            return;
        }
        svm.driver().wait();
        finish_span(svm, notifier, &span);
    }
}

impl<T: Driver> WindowState<T> {
    /// Whether anything of `span` is mapped, so that an invalidation would have to wait.
    fn is_busy(&self, span: &ops::Range<usize>) -> bool {
        self.overlapping(span).any(|range| range.is_busy(span))
    }
}
