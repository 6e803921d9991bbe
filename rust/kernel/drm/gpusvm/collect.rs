// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Removal of ranges whose memory was unmapped.
//!
//! An invalidation only marks ranges: it runs with locks held under which neither a range nor a
//! notifier can be removed. The collector removes them later from a work item, and a fault removes
//! the one it meets first. `xe_svm_garbage_collector()` in
//! [`drivers/gpu/drm/xe/xe_svm.c`](srctree/drivers/gpu/drm/xe/xe_svm.c) is a driver's version of it.

use core::{
    marker::PhantomData,
    ops, //
};

use kernel::{
    bindings,
    prelude::*,
    sync::{
        Arc,
        LockClassKey, //
    },
    types::Opaque, //
};

use super::{
    range::{
        FaultGuard,
        Range, //
    },
    stats::{
        add,
        sub, //
    },
    trace,
    window::{
        unmap_span,
        Notifier, //
    },
    Driver,
    GpuSvm, //
};

/// The work item of a mirror.
///
/// Unlike [`kernel::workqueue::Work`], a queued item owns no reference to the mirror, since an
/// invalidation may not take one; instead the mirror [shuts it down](Collector::shut_down) before it
/// ends.
///
/// # Invariants
///
/// Embedded in a [`GpuSvm`] as its `collector` field, and initialised.
#[pin_data]
#[repr(transparent)]
pub(super) struct Collector<T: Driver> {
    #[pin]
    work: Opaque<bindings::work_struct>,
    _svm: PhantomData<fn(&GpuSvm<T>)>,
}

// SAFETY: A work item may be queued and cancelled from any thread; the type owns nothing else.
unsafe impl<T: Driver> Send for Collector<T> {}
// SAFETY: As above, and in parallel.
unsafe impl<T: Driver> Sync for Collector<T> {}

impl<T: Driver> Collector<T> {
    /// # Safety
    ///
    /// The result must be the `collector` field of a [`GpuSvm`], which calls
    /// [`shut_down`](Collector::shut_down) before it ends.
    pub(super) unsafe fn new(
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self> {
        // INVARIANT: By the safety requirement.
        pin_init!(Self {
            work <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is valid for writing a work item, pinned by the initialiser; name
                // and key are static.
                unsafe {
                    bindings::init_work_with_key(
                        slot,
                        Some(Self::run),
                        false,
                        name.as_char_ptr(),
                        key.as_ptr(),
                    )
                }
            }),
            _svm: PhantomData,
        })
    }

    /// Has the collector run soon. May be called from an invalidation.
    pub(super) fn queue(&self) {
        // SAFETY: By the type invariant, the work item is initialised, and it stays valid until
        // `shut_down` has waited for it. Queueing an item twice, or a disabled one, does nothing.
        unsafe {
            bindings::queue_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                bindings::system_dfl_wq,
                self.work.get(),
            )
        };
    }

    /// Waits until the collector does not run, and never will again. Sleeps.
    pub(super) fn shut_down(&self) {
        // SAFETY: By the type invariant. This is never called from the work item itself: it owns no
        // reference to the mirror, so it cannot be the one to end it.
        unsafe { bindings::disable_work_sync(self.work.get()) };
    }

    /// # Safety
    ///
    /// `work` must be the work item of a collector.
    unsafe extern "C" fn run(work: *mut bindings::work_struct) {
        let this = Opaque::cast_from(work);
        // CAST: The collector is a transparent wrapper of its work item.
        let this = this.cast::<Self>();
        // SAFETY: By the type invariant, this is the field of a mirror, which is valid until
        // `shut_down` has waited for this function.
        let svm = unsafe { &*kernel::container_of!(this, GpuSvm<T>, collector) };

        svm.collect();
    }
}

impl<T: Driver> GpuSvm<T> {
    /// Removes the ranges whose memory was unmapped, and windows without ranges. Sleeps.
    fn collect(&self) {
        self.for_each_window(|window| {
            if !window.read().is_marked() {
                return;
            }
            let marked = window.write().take_unmapped();
            let Some(marked) = marked else { return };

            self.for_each_range_in(window, &marked, |range| {
                if range.is_unmapped() && !self.try_retire(window, range) {
                    // A fault works on it, and may wait for user space: it removes the range itself,
                    // or the collector does the next time.
                    window.write().mark(&range.span());
                }
            });
            self.forget_if_empty(window);
        });
    }

    /// Removes one range, unless a fault works on it. Sleeps.
    fn try_retire(&self, window: &Notifier<T>, range: &Arc<Range<T>>) -> bool {
        let Some(state) = range.fault_state().try_lock() else {
            return false;
        };

        self.retire_locked(window, range, state);
        true
    }

    /// Removes one range: what is left of it is taken from the device first, and its IOVA space is
    /// given back. Sleeps.
    pub(super) fn retire(&self, window: &Notifier<T>, range: &Arc<Range<T>>) {
        self.retire_locked(window, range, range.fault_state().lock());
    }

    fn retire_locked(
        &self,
        window: &Notifier<T>,
        range: &Arc<Range<T>>,
        mut state: FaultGuard<'_>,
    ) {
        if state.removed {
            return;
        }
        // Nothing can be mapped anew: that needs the mutex.
        unmap_span(self, window, &range.span());
        self.driver.release(range.span());

        let mut lock = window.write();
        // SAFETY: The only view: the mutex keeps faults out, and no other is made here.
        if let Some(mut pages) = unsafe { range.exclusive(&lock) } {
            pages.free_iova();
        }
        let node = lock.remove(range);
        drop(lock);

        state.removed = true;
        drop(state);
        if node.is_some() {
            trace::collect(self.id, &range.span());
            add(&self.counters.collected, 1);
            sub(&self.counters.ranges, 1);
        }
        // The node holds a reference to the range; the caller has another one.
        drop(node);
    }

    /// Calls `f` for each range of a window. `f` may remove its range. Sleeps if `f` does.
    pub(super) fn for_each_range(&self, window: &Notifier<T>, f: impl FnMut(&Arc<Range<T>>)) {
        self.for_each_range_in(window, &window.span(), f);
    }

    /// Calls `f` for each range of a window that overlaps `span`, as [`Self::for_each_range`].
    fn for_each_range_in(
        &self,
        window: &Notifier<T>,
        span: &ops::Range<usize>,
        mut f: impl FnMut(&Arc<Range<T>>),
    ) {
        let mut from = span.start;

        while from < span.end {
            let next = window.read().first_after(from).cloned();
            let Some(range) = next.filter(|range| range.span().start < span.end) else {
                return;
            };

            from = range.span().end;
            f(&range);
        }
    }
}
