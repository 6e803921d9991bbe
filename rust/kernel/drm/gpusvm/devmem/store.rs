// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What the callbacks of the core mm need of a device's memory.

use kernel::{
    device::{
        Bound,
        Device, //
    },
    mm::{
        migrate::{
            Buffer,
            Destination, //
        },
        pagemap::{
            self,
            Fault,
            Freed,
            Handled,
            Pagemap, //
        }, //
    },
    new_spinlock,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc,
        SpinLock, //
    }, //
};

use super::{
    alloc::{
        Allocator,
        PAGES, //
    },
    stats::Counters,
    CopyEngine,
    Group, //
};

/// Buffers for collecting that are kept; more at the same time are allocated.
const KEPT: usize = 8;

/// A device's memory, as far as the callbacks of the core mm need it.
///
/// It is not generic over the driver, and neither is anything that uses it: see the module.
#[pin_data]
pub(super) struct Store {
    /// Bound as long as pages are in use: `DevMem::remove` waits for that, at the latest when the device
    /// core releases the resources of the device, which is before it is unbound.
    dev: ARef<Device>,
    closed: Atomic<bool>,
    pub(super) engine: KBox<dyn CopyEngine>,
    #[pin]
    pub(super) alloc: Allocator,
    pub(super) counters: Counters,
    pub(super) group: Arc<Group>,
    pub(super) private: bool,
    /// Pages that a CPU fault brings back at least.
    pub(super) cpu_window: usize,
    /// Large folios for which tests want no memory.
    pub(super) fail_device: Atomic<u32>,
    pub(super) fail_system: Atomic<u32>,
    #[pin]
    buffers: SpinLock<KVec<Buffer>>,
}

impl Store {
    /// See `DevMem::new`. Sleeps.
    pub(super) fn new(
        dev: &Device<Bound>,
        engine: KBox<dyn CopyEngine>,
        size: u64,
        group: Arc<Group>,
        private: bool,
        cpu_window: usize,
    ) -> impl PinInit<Self, Error> {
        let dev: ARef<Device> = {
            let dev: &Device = dev;

            dev.into()
        };

        try_pin_init!(Self {
            dev,
            closed: Atomic::new(false),
            engine,
            alloc <- Allocator::new(size),
            counters: Counters::default(),
            group,
            private,
            cpu_window: (cpu_window / PAGE_SIZE).clamp(1, PAGES),
            fail_device: Atomic::new(0),
            fail_system: Atomic::new(0),
            buffers <- {
                let buffers = KVec::with_capacity(KEPT, GFP_KERNEL)?;

                new_spinlock!(buffers, "gpusvm::devmem::Store::buffers")
            },
        }? Error)
    }

    /// The device, for DMA mappings.
    ///
    /// # Safety
    ///
    /// Pages of this memory must be in use as long as the result is.
    pub(super) unsafe fn dev(&self) -> &Device<Bound> {
        // SAFETY: By the requirement, see the field.
        unsafe { self.dev.as_bound() }
    }

    /// Nothing may come in any more.
    pub(super) fn close(&self) {
        self.closed.store(true, Release);
    }

    /// Whether it was [closed](Self::close).
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Acquire)
    }

    /// Large folios are possible: of one chunk, in memory that only the device can access (coherent
    /// memory has base pages only, since the core mm cannot split its folios: PM-7).
    pub(super) fn large(&self) -> bool {
        self.private && pagemap::LARGE && pagemap::PMD_PAGES == PAGES
    }

    /// A buffer for collecting. May sleep.
    pub(super) fn buffer(&self) -> Result<Buffer> {
        let kept = self.buffers.lock().pop();

        match kept {
            Some(buffer) => Ok(buffer),
            None => Buffer::new(GFP_KERNEL),
        }
    }

    /// Keeps a buffer for the next time.
    pub(super) fn put_buffer(&self, buffer: Buffer) {
        let surplus = self.buffers.lock().push_within_capacity(buffer);

        // Freed after the lock.
        drop(surplus);
    }

    /// Whether a test wants the next large allocation to fail.
    pub(super) fn shall_fail(counter: &Atomic<u32>) -> bool {
        let left = counter.load(Relaxed);

        left > 0 && counter.cmpxchg(left, left.wrapping_sub(1), Relaxed).is_ok()
    }

    /// Makes a free page, or chunk, that was reserved into a folio.
    pub(super) fn folio(
        &self,
        map: &Pagemap<Self>,
        page: usize,
        order: u32,
    ) -> Option<Destination> {
        map.take(page, order).ok()
    }
}

impl pagemap::Ops for Store {
    fn folio_free(&self, folio: Freed) {
        self.alloc.free(folio.offset, 1 << folio.order);
    }

    fn migrate_to_ram(&self, fault: &Fault<'_, Self>) -> Handled {
        super::cpu::handle(self, fault)
    }

    fn drain(&self, map: &Pagemap<Self>) {
        super::evict::all(map);
    }
}
