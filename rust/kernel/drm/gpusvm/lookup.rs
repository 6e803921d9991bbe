// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Finding and creating windows and ranges.

use core::ops;

use kernel::{
    mm::{
        hmm::Access,
        MmWithUser, //
    },
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
    stats::add,
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
            GFP_KERNEL,
        )
        .map_err(|err| {
            if err == EINTR {
                // The first notifier of an address space gives up for any pending signal.
                FaultError::Killed
            } else {
                FaultError::NoMemory
            }
        })?;
        let node =
            RBTreeNode::new(start, window.clone(), GFP_KERNEL).map_err(|_| FaultError::NoMemory)?;

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

    /// The range that contains `addr`, a new one if need be; `None` if another thread interfered.
    ///
    /// A new range takes its bounds from the VMA of today, which may change as soon as the mmap lock
    /// is dropped. That needs no care: every walk looks at the VMAs again.
    pub(super) fn range(
        &self,
        window: &Notifier<T>,
        addr: usize,
        access: Access,
        mm: &MmWithUser,
    ) -> Result<Option<Arc<Range<T>>>, FaultError> {
        let lock = window.read();
        if lock.is_closed() {
            return Ok(None);
        }
        let there = lock.find(addr).cloned();
        drop(lock);
        if there.is_some() {
            return Ok(there);
        }

        let vma = Vma::lookup(mm, addr, access)?;
        let limit = intersect(&vma.span, &window.span());
        let Some(span) = self.free_chunk(window, addr, &limit) else {
            // Another fault has put a range there in the meantime.
            return Ok(None);
        };
        let range = Range::new(window, span, self.dev.clone()).map_err(|_| FaultError::NoMemory)?;
        let ours = Arc::as_ptr(&range);
        let there = insert_range(window, range, addr).map_err(|_| FaultError::NoMemory)?;

        if there
            .as_ref()
            .is_some_and(|range| Arc::as_ptr(range) == ours)
        {
            add(&self.counters.ranges, 1);
        }
        Ok(there)
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
