// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A device's own memory, as pages that a process's memory can move to.
//!
//! A [`DevMem`] gives the memory of a device `struct page`s, so that a page of a process can be in
//! system memory now, in device memory later, and come back when the CPU touches it. The driver
//! supplies a [`CopyEngine`] and nothing else: which pages are free, who moves when, what makes room
//! for what, and what happens when the device goes away are the library's.
//!
//! ```text
//!    migrate_in            +----------------+  CPU fault, migrate_out
//!   ---------------------> |  device memory | ------------------------>
//!    fault (placement)     +----------------+  eviction, remove
//! ```
//!
//! - What can move moves, the rest stays, and the result says how many pages did (W-17).
//! - What moves is stopped and unmapped on every mirror of the address space before it is copied, by
//!   the invalidation that the core mm sends. No event is skipped: see `Window::start` (PM-1).
//! - Where the process has no memory yet, or the page of zeroes, the device gets zeroed memory (I-27).
//! - Nothing in a migration depends on a lock of the driver. Locks, from the outside in: mmap lock
//!   (reading), locks of pages, then either those of an invalidation or the allocator's mutex.
//!
//! Nothing here is generic over the driver. A mapping may have pages of devices of different drivers,
//! the callbacks of the core mm need one type anyway, and code that is not generic is compiled into the
//! kernel, where all of it can be called, and not only what is exported (PM-23).
//!
//! The C counterpart is [`drivers/gpu/drm/drm_pagemap.c`](srctree/drivers/gpu/drm/drm_pagemap.c).

// What is marked has locks, whose classes the macros make, or calls C.
#[allow(unsafe_code)]
mod alloc;
mod cpu;
mod evict;
#[allow(unsafe_code)]
mod group;
mod migrate;
mod options;
#[allow(unsafe_code)]
mod pass;
mod plan;
mod stats;
#[allow(unsafe_code)]
mod store;

#[cfg(CONFIG_DRM_GPUSVM_RUST_KUNIT_TEST)]
#[allow(unsafe_code)]
mod tests;

use core::ops::Range;

use kernel::{
    device::{
        Bound,
        Device, //
    },
    devres,
    io::PhysAddr,
    mm::{
        pagemap::{
            Pagemap,
            Place,
            Type, //
        },
        MmWithUser, //
    },
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

use super::span::BLOCK_SIZE;

use self::{
    migrate::To,
    store::Store, //
};

pub use self::{
    group::Group,
    options::{
        MigrateOptions,
        Migrated, //
    },
    plan::{
        CopyEngine,
        CopyOp,
        CopyPlan,
        Fence,
        Signal, //
    },
    stats::MemoryStats, //
};

/// Which sort of device memory it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// The CPU cannot access it. It moves and is mapped in large folios where possible.
    Private,
    /// The CPU can access it coherently, at this physical address (aligned to 2 MiB). Base pages only.
    Coherent {
        /// Where its first byte is.
        phys: PhysAddr,
    },
}

/// What a [`DevMem`] is to be like.
pub struct MemoryConfig {
    /// The sort of memory.
    pub kind: MemoryKind,
    /// Bytes, a multiple of [`BLOCK_SIZE`].
    pub size: u64,
    /// Devices that may reach each other's memory; `None` for nobody else.
    pub group: Option<Arc<Group>>,
    /// Bytes that a CPU fault brings back at least, a power of two. It doubles when the CPU goes on
    /// where the last window ended, up to [`BLOCK_SIZE`].
    pub cpu_window: usize,
}

/// 64 KiB: bringing back a page costs little more than the fault then.
pub const DEFAULT_CPU_WINDOW: usize = kernel::sizes::SZ_64K;

/// A device's memory. Cloning it gives another reference to the same one.
///
/// It exists until it is [removed](DevMem::remove), which happens by itself when the device is unbound.
#[derive(Clone)]
pub struct DevMem(Arc<Inner>);

#[pin_data]
pub(super) struct Inner {
    #[pin]
    map: Pagemap<Store>,
}

/// Removes the memory when the device is unbound, if the driver has not.
struct Registration(DevMem);

impl Drop for Registration {
    fn drop(&mut self) {
        self.0.remove();
    }
}

impl DevMem {
    /// Registers memory of `dev`. Sleeps.
    ///
    /// # Errors
    ///
    /// `EINVAL`: a size or alignment in `config` is wrong; `EBUSY`: the physical region is in use;
    /// `ENOMEM`.
    pub fn new(dev: &Device<Bound>, config: MemoryConfig, engine: impl CopyEngine) -> Result<Self> {
        if config.size == 0
            || config.size % BLOCK_SIZE as u64 != 0
            || !config.cpu_window.is_power_of_two()
        {
            return Err(EINVAL);
        }
        let engine: KBox<dyn CopyEngine> = KBox::new(engine, GFP_KERNEL)?;
        let group = match config.group {
            Some(group) => group,
            None => Group::new()?,
        };
        let private = config.kind == MemoryKind::Private;
        let (kind, place) = match config.kind {
            MemoryKind::Private => (Type::Private, Place::Free(usize::try_from(config.size)?)),
            MemoryKind::Coherent { phys } => (
                Type::Coherent,
                Place::At(phys..phys.checked_add(config.size).ok_or(EINVAL)?),
            ),
        };
        let owner = group.owner().clone();
        let store = Store::new(dev, engine, config.size, group, private, config.cpu_window);
        let inner = Arc::pin_init(
            try_pin_init!(Inner {
                map <- Pagemap::new(dev, c"gpusvm device memory", kind, place, owner, store),
            }? Error),
            GFP_KERNEL,
        )?;
        let memory = Self(inner);

        memory.group().join(memory.0.clone())?;
        // If that fails, the memory is removed by it.
        devres::register(dev, Registration(memory.clone()), GFP_KERNEL)?;
        Ok(memory)
    }

    /// Brings everything that is in it back to system memory, and ends it. Sleeps.
    ///
    /// From the beginning on nothing new gets in. It ends when the memory is empty, however long
    /// somebody holds a page; a message says so from time to time. Doing it twice is harmless.
    ///
    /// What was [lost](Self::mark_lost) cannot be moved: it waits until the processes that have it unmap
    /// it or end.
    ///
    /// A driver calls it when it is unbound, as long as its engine works: after it, the engine is not
    /// asked for anything.
    pub fn remove(&self) {
        self.store().close();
        self.0.map.unregister();
        self.group().leave(&self.0);
    }

    fn store(&self) -> &Store {
        &self.0.map
    }

    /// Counters, and how much is in use.
    pub fn stats(&self) -> MemoryStats {
        // CAST: A page is smaller than 4 GiB.
        let used = self.store().alloc.used() * PAGE_SIZE as u64;

        self.store().counters.read(self.size(), used)
    }

    /// Who may reach it.
    pub fn group(&self) -> &Arc<Group> {
        &self.store().group
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        // CAST: A page is smaller than 4 GiB.
        self.0.map.pages() as u64 * PAGE_SIZE as u64
    }

    /// Whether only the device can access it.
    pub fn is_private(&self) -> bool {
        self.store().private
    }

    /// The offset of the page at `phys`, in bytes, if it is in this memory.
    pub fn offset_of(&self, phys: PhysAddr) -> Option<u64> {
        self.0
            .map
            .offset_of_phys(phys)
            // CAST: As for `size`.
            .map(|page| page as u64 * PAGE_SIZE as u64)
    }

    /// Whether both are the same memory.
    pub fn is_same(&self, other: &DevMem) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The content of the memory is lost, as by a reset. Sleeps.
    ///
    /// Who touches what is in it now gets `SIGBUS`, and never what is there instead. What moves in from
    /// now on is good.
    pub fn mark_lost(&self) {
        let store = self.store();

        store.counters.lost.add(store.alloc.lose_all());
    }

    /// Moves memory of a process in `span` to the device, as far as it can move. Sleeps; takes the mmap
    /// lock for reading.
    ///
    /// Anonymous memory can move, also that of private mappings of files. What is in the way of a
    /// page, a reference or a lock of somebody else, is no error.
    ///
    /// # Errors
    ///
    /// `EINVAL`: `span` is empty or not page aligned, or a part of it is not mapped, or not readable;
    /// `ENODEV`: the memory was removed; `ENOMEM`; `EINTR`: the task is being killed; and what the
    /// copy engine returns. What has moved before the error stays there.
    pub fn migrate_in(
        &self,
        mm: &MmWithUser,
        span: Range<usize>,
        options: &MigrateOptions,
    ) -> Result<Migrated> {
        migrate::run(&self.0.map, mm, &span, To::Device, options)
    }

    /// Moves memory of a process in `span` that is in this memory to system memory. As
    /// [`migrate_in`](Self::migrate_in).
    pub fn migrate_out(
        &self,
        mm: &MmWithUser,
        span: Range<usize>,
        options: &MigrateOptions,
    ) -> Result<Migrated> {
        migrate::run(&self.0.map, mm, &span, To::System, options)
    }

    /// Makes room for `bytes` by moving what was not used for the longest time to system memory. Sleeps.
    /// Returns how many bytes became free.
    pub fn evict(&self, bytes: u64) -> u64 {
        evict::make_room(&self.0.map, bytes)
    }

    /// Moves everything to system memory. Sleeps.
    ///
    /// # Errors
    ///
    /// `EBUSY`: some pages are held by others, or more came in.
    pub fn evict_all(&self) -> Result {
        /// How often it is tried.
        const TRIES: u32 = 8;

        for round in 0..TRIES {
            evict::all(&self.0.map);
            if self.0.map.used() == 0 {
                return Ok(());
            }
            fsleep(Delta::from_millis(1 << round));
        }
        Err(EBUSY)
    }

    /// Has the next `device` and `system` allocations of large folios fail, each for its destination.
    /// For tests.
    pub fn fail_allocations(&self, device: u32, system: u32) {
        self.store().fail_device.store(device, Relaxed);
        self.store().fail_system.store(system, Relaxed);
    }

    /// The device uses the memory at `offset` now.
    pub(super) fn touch(&self, offset: u64) {
        // CAST: Page numbers of the memory.
        self.store()
            .alloc
            .touch((offset / PAGE_SIZE as u64) as usize);
    }
}
