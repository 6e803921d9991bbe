// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Finding and creating windows and ranges.

use core::ops;

use kernel::{
    mm::MmWithUser,
    prelude::*,
    rbtree::RBTreeNode,
    static_lock_class,
    sync::Arc, //
};

use super::{
    range::Range,
    span::{
        aligned_window,
        choose_chunk,
        intersect, //
    },
    stats::{
        add,
        sub, //
    },
    vma::Vma,
    window::{
        insert_range,
        Notifier,
        Window,
        WindowState, //
    },
    Driver,
    FaultError,
    GpuSvm, //
};

impl<T: Driver> GpuSvm<T> {
    /// The window that contains `addr`, if there is one.
    pub(super) fn find_window(&self, addr: usize) -> Option<Arc<Notifier<T>>> {
        let start = aligned_window(addr, T::NOTIFIER_SIZE)?.start;

        self.windows.lock().get(&start).cloned()
    }

    /// The window that contains `addr`, a new one if need be.
    ///
    /// Sleeps; no lock may be held that an invalidation or the core mm takes, the mmap lock least of
    /// all: the first notifier of an address space takes it for writing.
    pub(super) fn window(
        &self,
        addr: usize,
        mm: &MmWithUser,
    ) -> Result<Arc<Notifier<T>>, FaultError> {
        if let Some(window) = self.find_window(addr) {
            return Ok(window);
        }
        let span = aligned_window(addr, T::NOTIFIER_SIZE).ok_or(FaultError::Invalid)?;
        let start = span.start;
        // SAFETY: The mirror drops its windows, which unregisters their notifiers, before it ends;
        // see `PinnedDrop`.
        let data = unsafe { Window::new(self) };
        let window = Arc::pin_init(
            Notifier::register(
                mm,
                span,
                Ok::<_, Error>(data),
                WindowState::new(),
                c"gpusvm::notifier_lock",
                static_lock_class!(),
            ),
            GFP_KERNEL_ACCOUNT,
        )
        .map_err(|err| {
            if err == EINTR {
                // Only the first notifier of an address space can fail so, see `prepare_mm`.
                FaultError::Killed
            } else {
                FaultError::NoMemory
            }
        })?;
        let node = RBTreeNode::new(start, window.clone(), GFP_KERNEL_ACCOUNT)
            .map_err(|_| FaultError::NoMemory)?;

        let mut windows = self.windows.lock();
        if let Some(there) = windows.get(&start).cloned() {
            // Another fault was faster; ours is unregistered after the lock.
            drop(windows);
            return Ok(there);
        }
        windows.insert(node);
        drop(windows);
        Ok(window)
    }

    /// Calls `f` for each window. `f` may forget its window. Sleeps if `f` does.
    pub(super) fn for_each_window(&self, mut f: impl FnMut(&Arc<Notifier<T>>)) {
        let mut from = 0;

        loop {
            let next = self
                .windows
                .lock()
                .cursor_lower_bound(&from)
                .map(|cursor| cursor.current().1.clone());
            let Some(window) = next else { return };

            f(&window);
            match window.span().start.checked_add(T::NOTIFIER_SIZE) {
                Some(next) => from = next,
                None => return,
            }
        }
    }

    /// Takes a window out of the lookup; it ends with its last reference. Sleeps.
    pub(super) fn forget_window(&self, window: &Arc<Notifier<T>>) {
        let start = window.span().start;
        let mut windows = self.windows.lock();
        let same = windows
            .get(&start)
            .is_some_and(|there| Arc::ptr_eq(there, window));
        let node = same.then(|| windows.remove_node(&start));

        drop(windows);
        // After the lock: this may be the last reference but the caller's.
        drop(node);
    }

    /// Takes a window out of the lookup if nothing is in it. Sleeps.
    ///
    /// Also for one that was made in vain, or each address that is asked for would leave one behind.
    pub(super) fn forget_if_empty(&self, window: &Arc<Notifier<T>>) {
        if window.read().is_empty() && window.write().close_if_empty() {
            self.forget_window(window);
        }
    }

    /// The range that contains `addr`, a new one if need be; `None` if another thread interfered.
    ///
    /// A new range takes its bounds from `vma`, which may have changed in the meantime. That needs no
    /// care: every walk looks at the VMAs again.
    pub(super) fn range(
        &self,
        window: &Arc<Notifier<T>>,
        addr: usize,
        vma: &Vma,
    ) -> Result<Option<Arc<Range<T>>>, FaultError> {
        let lock = window.read();
        if lock.is_closed() {
            drop(lock);
            // Whoever closed it may not have come to this yet.
            self.forget_window(window);
            return Ok(None);
        }
        let there = lock.find(addr).cloned();
        drop(lock);
        if there.is_some() {
            return Ok(there);
        }

        let limit = intersect(&vma.span, &window.span());
        let Some(span) = self.free_chunk(window, addr, &limit) else {
            // Another fault has put a range there in the meantime.
            return Ok(None);
        };
        let range = Range::new(window, span, self.dev.clone()).map_err(|_| FaultError::NoMemory)?;
        let ours = Arc::as_ptr(&range);

        // Before the collector can count it out.
        add(&self.counters.ranges, 1);
        let there = insert_range(window, range, addr);
        let inserted = matches!(&there, Ok(Some(range)) if Arc::as_ptr(range) == ours);
        if !inserted {
            sub(&self.counters.ranges, 1);
        }
        there.map_err(|_| FaultError::NoMemory)
    }

    fn free_chunk(
        &self,
        window: &Notifier<T>,
        addr: usize,
        limit: &ops::Range<usize>,
    ) -> Option<ops::Range<usize>> {
        let lock = window.read();

        choose_chunk(addr, T::CHUNK_SIZES, limit, |chunk| {
            lock.overlapping(chunk).next().is_none()
        })
    }
}
