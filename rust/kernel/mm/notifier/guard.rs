// SPDX-License-Identifier: GPL-2.0

//! Guards of the lock of a notifier.

use super::{
    IntervalNotifier,
    Invalidate,
    Seq, //
};
use crate::{
    bindings,
    sync::rwsem, //
};
use core::ops::{
    Deref,
    DerefMut, //
};

/// The lock of an [`IntervalNotifier`] is held for reading.
///
/// As long as it exists, no invalidation of the notifier advances the sequence, so that what
/// [`retry`](Self::retry) has confirmed stays true.
///
/// # Invariants
///
/// `inner` is a guard of the lock in `notifier`.
#[must_use = "the lock unlocks immediately when the guard is unused"]
pub struct ReadGuard<'n, T: Invalidate> {
    notifier: &'n IntervalNotifier<T>,
    inner: rwsem::ReadGuard<'n, T::State>,
}

impl<'n, T: Invalidate> ReadGuard<'n, T> {
    /// `inner` must be a guard of the lock in `notifier`.
    #[inline]
    pub(super) fn new(
        notifier: &'n IntervalNotifier<T>,
        inner: rwsem::ReadGuard<'n, T::State>,
    ) -> Self {
        // INVARIANT: The callers in this module take `inner` from `notifier`.
        Self { notifier, inner }
    }

    /// Returns whether an invalidation has collided with what began at `seq`.
    ///
    /// If not, what was read from the CPU page tables since then is true as long as this guard is
    /// held. C: `mmu_interval_read_retry()`.
    #[inline]
    pub fn retry(&self, seq: Seq) -> bool {
        retry(self.notifier, seq)
    }

    /// Returns the notifier of which this is the lock.
    #[inline]
    pub fn notifier(&self) -> &'n IntervalNotifier<T> {
        self.notifier
    }
}

impl<T: Invalidate> Deref for ReadGuard<'_, T> {
    type Target = T::State;

    #[inline]
    fn deref(&self) -> &T::State {
        &self.inner
    }
}

/// The lock of an [`IntervalNotifier`] is held for writing.
///
/// # Invariants
///
/// `inner` is a guard of the lock in `notifier`.
#[must_use = "the lock unlocks immediately when the guard is unused"]
pub struct WriteGuard<'n, T: Invalidate> {
    notifier: &'n IntervalNotifier<T>,
    inner: rwsem::WriteGuard<'n, T::State>,
}

impl<'n, T: Invalidate> WriteGuard<'n, T> {
    /// `inner` must be a guard of the lock in `notifier`.
    #[inline]
    pub(super) fn new(
        notifier: &'n IntervalNotifier<T>,
        inner: rwsem::WriteGuard<'n, T::State>,
    ) -> Self {
        // INVARIANT: The callers in this module take `inner` from `notifier`.
        Self { notifier, inner }
    }

    /// Returns whether an invalidation has collided with what began at `seq`.
    ///
    /// See [`ReadGuard::retry`].
    #[inline]
    pub fn retry(&self, seq: Seq) -> bool {
        retry(self.notifier, seq)
    }

    /// Returns the notifier of which this is the lock.
    #[inline]
    pub fn notifier(&self) -> &'n IntervalNotifier<T> {
        self.notifier
    }
}

impl<T: Invalidate> Deref for WriteGuard<'_, T> {
    type Target = T::State;

    #[inline]
    fn deref(&self) -> &T::State {
        &self.inner
    }
}

impl<T: Invalidate> DerefMut for WriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T::State {
        &mut self.inner
    }
}

/// The caller holds the lock of `notifier`.
#[inline]
fn retry<T: Invalidate>(notifier: &IntervalNotifier<T>, seq: Seq) -> bool {
    // SAFETY: By the type invariants of the notifier `inner` is registered. Both callers hold its
    // lock, which is the one under which `Locked::advance` sets the sequence.
    seq.is_foreign(notifier.id)
        || unsafe { bindings::mmu_interval_read_retry(notifier.inner.get(), seq.raw()) }
}
