// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A span that is faulted and collected as one.

use core::ops;

use kernel::{
    alloc::AllocError,
    mm::notifier::{
        IntervalNotifier,
        ReadGuard,
        WriteGuard, //
    },
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        lock::{
            mutex::MutexBackend,
            Guard, //
        },
        Arc,
        Mutex, //
    },
};

use super::{
    ahead::WriteRun,
    device::MirrorDevice,
    mirror::Bounces,
    pages::{
        Exclusive,
        Filling,
        Pages,
        Shared, //
    },
    window::Window,
    Driver, //
};

/// What a fault works on; the mutex around it makes faults on one range wait for each other.
pub(super) struct FaultState {
    /// The range has left its window: look it up anew.
    pub(super) removed: bool,
    /// Probes for a huge page that found none since one was found last.
    pub(super) probe_misses: u32,
    /// The device's last writes to pages of a file.
    pub(super) writes: WriteRun,
    /// Bounds how often faults move the memory to the device.
    pub(super) bounces: Bounces,
}

/// The mutex of a range, held.
pub(super) type FaultGuard<'a> = Guard<'a, FaultState, MutexBackend>;

/// A span of addresses that is faulted, mapped and collected as one.
///
/// It is never split or resized. When a part of it is unmapped from the process, the collector
/// removes all of it, and what is left is faulted again into smaller ranges.
///
/// # Invariants
///
/// `window` is the address of the notifier in whose window the range is inserted, if it is.
#[pin_data]
pub(super) struct Range<T: Driver> {
    window: *const IntervalNotifier<Window<T>>,
    /// Memory in the span was unmapped from the process: to be collected. Written under the notifier
    /// lock, read as a hint without it.
    unmapped: Atomic<bool>,
    pages: Pages,
    #[pin]
    fault: Mutex<FaultState>,
}

// SAFETY: `window` is only compared; everything else is `Send`.
unsafe impl<T: Driver> Send for Range<T> {}
// SAFETY: As above, everything else is `Sync`.
unsafe impl<T: Driver> Sync for Range<T> {}

impl<T: Driver> Range<T> {
    /// A range of `window` that is not inserted yet. May sleep.
    pub(super) fn new(
        window: &IntervalNotifier<Window<T>>,
        span: ops::Range<usize>,
        dev: MirrorDevice,
    ) -> Result<Arc<Self>, AllocError> {
        let pages = Pages::new(span, dev)?;

        // INVARIANT: The caller inserts the range nowhere else: `WindowState::insert` checks.
        Arc::pin_init(
            pin_init!(Self {
                window,
                unmapped: Atomic::new(false),
                pages,
                fault <- new_mutex!(
                    FaultState {
                        removed: false,
                        probe_misses: 0,
                        writes: WriteRun::NONE,
                        bounces: Bounces::new(),
                    },
                    "gpusvm::Range::fault"
                ),
            }),
            GFP_KERNEL_ACCOUNT,
        )
        .map_err(|_| AllocError)
    }

    pub(super) fn span(&self) -> ops::Range<usize> {
        self.pages.span()
    }

    /// The part of the range in the block that holds `addr`.
    pub(super) fn block_span(&self, addr: usize) -> ops::Range<usize> {
        self.pages.block_span(addr)
    }

    pub(super) fn fault_state(&self) -> &Mutex<FaultState> {
        &self.fault
    }

    pub(super) fn is_unmapped(&self) -> bool {
        self.unmapped.load(Relaxed)
    }

    pub(super) fn set_unmapped(&self, _lock: &WriteGuard<'_, Window<T>>) {
        self.unmapped.store(true, Relaxed);
    }

    /// Whether a block in `span` is mapped or stopping, as far as can be told: a hint unless the
    /// notifier lock is held.
    pub(super) fn is_busy(&self, span: &ops::Range<usize>) -> bool {
        self.pages.is_busy(span)
    }

    pub(super) fn belongs_to(&self, window: &IntervalNotifier<Window<T>>) -> bool {
        core::ptr::eq(self.window, window)
    }

    /// The pages, for looking; `None` with the guard of another window.
    pub(super) fn shared<'a>(&'a self, lock: &'a ReadGuard<'_, Window<T>>) -> Option<Shared<'a>> {
        if !self.belongs_to(lock.notifier()) {
            return None;
        }
        // SAFETY: `lock` is the notifier lock of this range, and the result borrows it.
        Some(unsafe { self.pages.shared() })
    }

    /// The pages, for mapping; `None` with the guard of another window.
    ///
    /// # Safety
    ///
    /// `_state` must be the state of this range. The device must be bound and the mirror not
    /// detached.
    pub(super) unsafe fn filling<'a>(
        &'a self,
        lock: &'a ReadGuard<'_, Window<T>>,
        _state: &'a FaultState,
    ) -> Option<Filling<'a>> {
        if !self.belongs_to(lock.notifier()) {
            return None;
        }
        // SAFETY: `lock` is the notifier lock of this range, the state is reachable only under its
        // mutex, and the result borrows both. The rest is required of the caller.
        Some(unsafe { self.pages.filling() })
    }

    /// The pages, for unmapping; `None` with the guard of another window.
    ///
    /// # Safety
    ///
    /// The result must be the only view of the pages while it lives.
    pub(super) unsafe fn exclusive<'a>(
        &'a self,
        lock: &'a WriteGuard<'_, Window<T>>,
    ) -> Option<Exclusive<'a>> {
        if !self.belongs_to(lock.notifier()) {
            return None;
        }
        // SAFETY: `lock` is the notifier lock of this range, and the result borrows it; that no other
        // view was made from it is required of the caller.
        Some(unsafe { self.pages.exclusive() })
    }
}
