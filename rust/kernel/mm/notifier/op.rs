// SPDX-License-Identifier: GPL-2.0

//! The steps of an invalidation, as types.
//!
//! ```text
//! Invalidation --lock()--> Locked --advance()--> Invalidated --defer()--> Deferred
//!      |                     |                        |                      |
//!      +-----> WouldBlock <--+                        +------> Started <-----+
//! ```

use super::{
    Event,
    FinishSlot,
    IntervalNotifier,
    Invalidate,
    WriteGuard, //
};
use crate::{
    bindings,
    page::PAGE_SIZE, //
};
use core::{
    ffi::c_void,
    marker::PhantomData,
    ops::{
        Deref,
        Range, //
    }, //
};

/// Makes `'op` invariant, so that what belongs to one invalidation cannot be returned from another
/// one.
type Invariant<'op> = PhantomData<*mut &'op mut ()>;

/// What [`Invalidation`] and [`Locked`] know.
///
/// # Invariants
///
/// `range` and `cur_seq` describe a running invalidation of `notifier`, which lasts for `'op`.
struct Op<'op, T: Invalidate> {
    notifier: &'op IntervalNotifier<T>,
    range: &'op bindings::mmu_notifier_range,
    cur_seq: usize,
    _invariant: Invariant<'op>,
}

impl<T: Invalidate> Op<'_, T> {
    fn span(&self) -> Range<usize> {
        clamp(self.range.start, self.range.end, &self.notifier.span)
    }

    fn event(&self) -> Event {
        Event::from_raw(self.range.event)
    }

    fn is_owner(&self, owner: *const c_void) -> bool {
        // Only these two events have an owner. The field is not set for others.
        matches!(self.event(), Event::Migrate | Event::Exclusive)
            && core::ptr::eq(self.range.owner, owner)
    }

    fn blockable(&self) -> bool {
        self.range.flags & bindings::MMU_NOTIFIER_RANGE_BLOCKABLE != 0
    }
}

/// Returns what `start..end` of an event covers of the `span` of a notifier.
///
/// [`Event::Release`] comes with `0..ULONG_MAX`. Others are page aligned, but nothing in C says so;
/// a page that is only touched is covered.
pub(super) fn clamp(start: usize, end: usize, span: &Range<usize>) -> Range<usize> {
    // The span is page aligned, so that rounding after clamping cannot leave it, and rounding the
    // end up cannot wrap.
    let start = start.max(span.start) & !(PAGE_SIZE - 1);
    let end = end.min(span.end).next_multiple_of(PAGE_SIZE);

    start..end.max(start)
}

/// An invalidation that has just begun.
///
/// See [`Invalidate::start`].
#[must_use = "an invalidation must be carried out or refused"]
pub struct Invalidation<'op, T: Invalidate> {
    op: Op<'op, T>,
}

impl<'op, T: Invalidate> Invalidation<'op, T> {
    /// # Safety
    ///
    /// `range` and `cur_seq` must describe a running invalidation of `notifier` that lasts for
    /// `'op`, and this must be called once for it.
    pub(super) unsafe fn new(
        notifier: &'op IntervalNotifier<T>,
        range: &'op bindings::mmu_notifier_range,
        cur_seq: usize,
    ) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            op: Op {
                notifier,
                range,
                cur_seq,
                _invariant: PhantomData,
            },
        }
    }

    /// Returns the notifier that is called.
    #[inline]
    pub fn notifier(&self) -> &'op IntervalNotifier<T> {
        self.op.notifier
    }

    /// Returns the addresses that change; page aligned, half open and inside the notifier's span.
    pub fn span(&self) -> Range<usize> {
        self.op.span()
    }

    /// Returns why they change.
    pub fn event(&self) -> Event {
        self.op.event()
    }

    /// Returns whether this is an [`Event::Migrate`] or [`Event::Exclusive`] that was caused by
    /// `owner`.
    ///
    /// The sequence must be advanced nevertheless, and mappings of pages that are moved must be
    /// stopped: an owner may at most spare what the pass does not move.
    pub fn is_owner(&self, owner: *const c_void) -> bool {
        self.op.is_owner(owner)
    }

    /// Returns whether the callback may sleep.
    pub fn blockable(&self) -> bool {
        self.op.blockable()
    }

    /// Takes the lock of the notifier for writing.
    ///
    /// If the callback must not sleep, it is only tried.
    ///
    /// # Errors
    ///
    /// The callback must not sleep and the lock is held by others; return this.
    pub fn lock(self) -> Result<Locked<'op, T>, WouldBlock<'op>> {
        let lock = &self.op.notifier.lock;
        let guard = if self.blockable() {
            lock.write()
        } else {
            lock.try_write().ok_or(WouldBlock {
                _invariant: PhantomData,
            })?
        };

        Ok(Locked {
            guard: WriteGuard::new(self.op.notifier, guard),
            op: self.op,
        })
    }
}

/// An invalidation with the lock of the notifier held for writing, that has not changed anything.
///
/// It gives shared access to the state of the notifier, to decide whether to refuse.
#[must_use = "an invalidation must be carried out or refused"]
pub struct Locked<'op, T: Invalidate> {
    guard: WriteGuard<'op, T>,
    op: Op<'op, T>,
}

impl<'op, T: Invalidate> Locked<'op, T> {
    /// Returns the notifier that is called.
    #[inline]
    pub fn notifier(&self) -> &'op IntervalNotifier<T> {
        self.op.notifier
    }

    /// See [`Invalidation::span`].
    pub fn span(&self) -> Range<usize> {
        self.op.span()
    }

    /// See [`Invalidation::event`].
    pub fn event(&self) -> Event {
        self.op.event()
    }

    /// See [`Invalidation::is_owner`].
    pub fn is_owner(&self, owner: *const c_void) -> bool {
        self.op.is_owner(owner)
    }

    /// See [`Invalidation::blockable`].
    pub fn blockable(&self) -> bool {
        self.op.blockable()
    }

    /// Refuses the invalidation, because it would have to wait.
    ///
    /// # Errors
    ///
    /// Gives `self` back if the callback may sleep: then it must not refuse.
    pub fn would_block(self) -> Result<WouldBlock<'op>, Self> {
        if self.blockable() {
            Err(self)
        } else {
            Ok(WouldBlock {
                _invariant: PhantomData,
            })
        }
    }

    /// Advances the sequence of the notifier: whoever has read the CPU page tables before must do
    /// it again.
    ///
    /// From here on the invalidation cannot be refused. C: `mmu_interval_set_seq()`.
    pub fn advance(self) -> (WriteGuard<'op, T>, Invalidated<'op>) {
        let Op {
            notifier, cur_seq, ..
        } = self.op;

        // SAFETY: By the type invariants of the notifier `inner` is registered, and by those of
        // `Op` `cur_seq` is the sequence number of a running invalidation of it. We hold the lock
        // under which it is checked for writing.
        unsafe { bindings::mmu_interval_set_seq(notifier.inner.get(), cur_seq) };

        let invalidated = Invalidated {
            slot: self.op.blockable().then_some(&notifier.finish),
            span: self.op.span(),
            event: self.op.event(),
            _invariant: PhantomData,
        };
        (self.guard, invalidated)
    }
}

impl<T: Invalidate> Deref for Locked<'_, T> {
    type Target = T::State;

    #[inline]
    fn deref(&self) -> &T::State {
        &self.guard
    }
}

/// An invalidation that has advanced the sequence.
///
/// Converting it into [`Started`] promises that everything has been done: no access through what
/// was mirrored is in flight.
#[must_use = "it is what the first pass returns"]
pub struct Invalidated<'op> {
    slot: Option<&'op FinishSlot>,
    span: Range<usize>,
    event: Event,
    _invariant: Invariant<'op>,
}

impl<'op> Invalidated<'op> {
    /// Asks for a second pass, [`Invalidate::finish`].
    ///
    /// # Errors
    ///
    /// Gives `self` back if there cannot be one, because another invalidation of this notifier is
    /// between its passes, or because the callback must not sleep. Then do now what the second
    /// pass would do.
    pub fn defer(self) -> Result<Deferred<'op>, Self> {
        let finish = self
            .slot
            .and_then(|slot| slot.claim(self.span.clone(), self.event));

        match finish {
            Some(finish) => Ok(Deferred {
                finish,
                _invariant: PhantomData,
            }),
            None => Err(self),
        }
    }
}

/// An invalidation that has advanced the sequence and will have a second pass.
///
/// # Invariants
///
/// `finish` is the finish object of the notifier, and it has been claimed for this invalidation.
#[must_use = "it is what the first pass returns"]
pub struct Deferred<'op> {
    finish: *mut bindings::mmu_interval_notifier_finish,
    _invariant: Invariant<'op>,
}

/// The first pass of an invalidation has been carried out.
#[must_use = "it is what the first pass returns"]
pub struct Started<'op> {
    finish: Option<*mut bindings::mmu_interval_notifier_finish>,
    _invariant: Invariant<'op>,
}

impl Started<'_> {
    /// Returns the finish object, if there shall be a second pass.
    pub(super) fn into_finish(self) -> Option<*mut bindings::mmu_interval_notifier_finish> {
        self.finish
    }
}

impl<'op> From<Invalidated<'op>> for Started<'op> {
    fn from(_: Invalidated<'op>) -> Self {
        Self {
            finish: None,
            _invariant: PhantomData,
        }
    }
}

impl<'op> From<Deferred<'op>> for Started<'op> {
    fn from(deferred: Deferred<'op>) -> Self {
        Self {
            finish: Some(deferred.finish),
            _invariant: PhantomData,
        }
    }
}

/// An invalidation that must not sleep was refused, before anything has changed.
#[must_use = "it is what the first pass returns"]
pub struct WouldBlock<'op> {
    _invariant: Invariant<'op>,
}
