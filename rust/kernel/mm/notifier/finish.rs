// SPDX-License-Identifier: GPL-2.0

//! The object that carries an invalidation from its first to its second pass.

use super::Event;
use crate::{
    bindings,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Release, //
    },
    types::Opaque, //
};
use core::{
    cell::UnsafeCell,
    ops::Range, //
};

/// The one finish object of a notifier.
///
/// Every invalidation that wants a second pass needs a `struct mmu_interval_notifier_finish` of its
/// own until that has ended, and several may run at the same time. Allocating one during memory
/// reclaim can fail, so that both passes in a row must be possible anyway; and then one embedded
/// object, without any allocation, is enough: only an invalidation that meets another one of the
/// same notifier in between its passes finds it in use.
///
/// # Invariants
///
/// While `claimed` is true, whoever set it owns `pending` and `inner`.
#[pin_data]
pub(super) struct FinishSlot {
    #[pin]
    inner: Opaque<bindings::mmu_interval_notifier_finish>,
    claimed: Atomic<bool>,
    pending: UnsafeCell<(Range<usize>, Event)>,
}

// SAFETY: `pending` and `inner` are used by the owner of the claim only.
unsafe impl Send for FinishSlot {}
// SAFETY: As above; the claim itself is atomic.
unsafe impl Sync for FinishSlot {}

impl FinishSlot {
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner: Opaque::uninit(),
            claimed: Atomic::new(false),
            pending: UnsafeCell::new((0..0, Event::Clear)),
        })
    }

    /// Claims the slot for the second pass of an invalidation. Returns `None` if it is in use.
    pub(super) fn claim(
        &self,
        span: Range<usize>,
        event: Event,
    ) -> Option<*mut bindings::mmu_interval_notifier_finish> {
        // Acquire: what the former owner did to the slot happened before.
        if self.claimed.cmpxchg(false, true, Acquire).is_err() {
            return None;
        }

        // SAFETY: By the type invariants `pending` is ours since we have just set `claimed`.
        unsafe { *self.pending.get() = (span, event) };

        Some(self.inner.get())
    }

    /// Returns what was stored by [`claim`](Self::claim).
    ///
    /// # Safety
    ///
    /// The caller must own the claim.
    pub(super) unsafe fn pending(&self) -> (Range<usize>, Event) {
        // SAFETY: By the type invariants and the safety requirements `pending` is the caller's.
        unsafe { (*self.pending.get()).clone() }
    }

    /// Gives the slot back.
    ///
    /// # Safety
    ///
    /// The caller must own the claim, and gives it up. Nobody uses `inner` any more.
    pub(super) unsafe fn release(&self) {
        // Release: what we did to the slot happened before the next claim.
        self.claimed.store(false, Release);
    }
}
