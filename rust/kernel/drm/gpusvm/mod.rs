// SPDX-License-Identifier: GPL-2.0 OR MIT
#![cfg(CONFIG_DRM_GPUSVM_RUST)]

//! GPU shared virtual memory: a GPU uses the addresses of a process.
//!
//! A [`GpuSvm`] mirrors the address space of a process to a device. The device faults; the driver
//! hands the fault to [`GpuSvm::fault`], which finds out what memory the process has there, maps it
//! for DMA, and calls [`Driver::commit`] to write the device's page table. When the process unmaps,
//! forks, protects or migrates that memory, the core mm tells the library before it happens, and the
//! library calls [`Driver::stop`] and [`Driver::wait`], and unmaps the memory from the device.
//!
//! - A *window* (`window`) is an aligned stretch of addresses with one interval notifier and one
//!   lock, the *notifier lock*.
//! - A *range* (`range`) lies in a window, and is what a fault creates: as large as
//!   [`Driver::CHUNK_SIZES`] and the process's mappings allow. Its mutex serialises faults on it;
//!   faults on different ranges run side by side.
//! - *Pages* (`pages`) are what the device has of a range, in blocks of [`BLOCK_SIZE`] that are
//!   valid or not each by itself.
//! - [`ValidPages`] is the proof that pages are valid, and the only way to their device addresses.
//!
//! # Locks
//!
//! From the outside in: range mutex, mmap lock, (invalidation by the core mm), notifier lock, lookup
//! spinlock, the driver's own leaf locks. Nobody who holds the mmap lock or a folio lock takes a range
//! mutex. Nothing allocates with reclaim under a notifier lock, which lockdep is told when a window
//! is created. References to windows and ranges are dropped in process context without locks, since
//! the last one removes a notifier, which waits for invalidations.
//!
//! # Examples
//!
//! A driver whose page table is an array of words, one for each page of a fixed span.
//!
//! ```
//! use core::ops::Range;
//! use kernel::{
//!     device::{
//!         Bound,
//!         Device, //
//!     },
//!     drm::gpusvm::{
//!         page_span,
//!         Access,
//!         Driver,
//!         FaultError,
//!         FaultOptions,
//!         GpuSvm,
//!         Unresolved,
//!         ValidPages, //
//!     },
//!     mm::MmWithUser,
//!     page::PAGE_SIZE,
//!     sync::atomic::{
//!         Atomic,
//!         Release, //
//!     },
//! };
//!
//! /// The GPU's view of the address space, from `BASE` on.
//! struct Vm {
//!     table: KVVec<Atomic<u64>>,
//! }
//!
//! const BASE: usize = 0x10000000;
//!
//! impl Vm {
//!     /// Writes the entries of `va`; `entry` says what for which offset in it.
//!     fn write(&self, va: Range<usize>, entry: impl Fn(usize) -> u64) -> Result {
//!         for (offset, addr) in va.step_by(PAGE_SIZE).enumerate() {
//!             let index = addr.checked_sub(BASE).ok_or(EFAULT)? / PAGE_SIZE;
//!
//!             self.table
//!                 .get(index)
//!                 .ok_or(EFAULT)?
//!                 .store(entry(offset * PAGE_SIZE), Release);
//!         }
//!         Ok(())
//!     }
//! }
//!
//! impl Driver for Vm {
//!     fn prepare(&self, _span: Range<usize>) -> Result {
//!         // The table always exists.
//!         Ok(())
//!     }
//!
//!     fn commit(&self, pages: &ValidPages<'_>) -> Result {
//!         for seg in pages.iter() {
//!             let flags = if seg.write { 3 } else { 1 };
//!
//!             self.write(seg.va, |offset| (seg.dma + offset as u64) | flags)?;
//!         }
//!         Ok(())
//!     }
//!
//!     fn stop(&self, span: Range<usize>) {
//!         // What is not in the table has never been written.
//!         let _ = self.write(span, |_| 0);
//!         // Here hardware would be told to flush its TLB ...
//!     }
//!
//!     fn wait(&self) {
//!         // ... and here it would be waited for.
//!     }
//! }
//!
//! /// Makes one page of `mm` accessible at the same address for `dev`.
//! fn share(dev: &Device<Bound>, mm: &MmWithUser, vm: Vm, addr: usize) -> Result {
//!     let svm = GpuSvm::new(dev, mm, Ok::<_, Error>(vm))?;
//!     let page = page_span(addr).ok_or(EFAULT)?;
//!
//!     match svm.fault(page, Access::Write, &FaultOptions::default()) {
//!         Ok(done) => pr_info!("mapped after {} walks\n", done.walks),
//!         Err(Unresolved {
//!             error: FaultError::Unmapped,
//!             addr,
//!         }) => pr_info!("nothing at {:#x}\n", addr),
//!         Err(failed) => return Err(failed.into()),
//!     }
//!     // Stops the device and unmaps everything.
//!     drop(svm);
//!     Ok(())
//! }
//! ```
//!
//! The C counterpart is [`drivers/gpu/drm/drm_gpusvm.c`](srctree/drivers/gpu/drm/drm_gpusvm.c); this
//! is not a wrapper of it. See `Documentation/gpu/rust-gpusvm.rst`.

#![deny(unsafe_code, unsafe_op_in_unsafe_fn)]

mod ahead;
// What is marked calls C, or upholds the rules by which the pages are shared between threads.
#[allow(unsafe_code)]
mod collect;
#[allow(unsafe_code)]
mod debugfs;
#[allow(unsafe_code)]
mod device;
#[cfg(CONFIG_DEVICE_PRIVATE)]
mod devmem;
#[cfg(not(CONFIG_DEVICE_PRIVATE))]
#[path = "devmem_none.rs"]
mod devmem;
mod driver;
mod error;
#[allow(unsafe_code)]
mod fault;
#[allow(unsafe_code)]
mod lookup;
mod mirror;
#[allow(unsafe_code)]
mod pages;
// As `scratch`.
#[allow(unsafe_code)]
mod placement;
#[allow(unsafe_code)]
mod range;
// Its lock has a class, which the macro makes.
#[allow(unsafe_code)]
mod scratch;
mod snapshot;
mod span;
mod stats;
#[allow(unsafe_code)]
mod trace;
mod valid;
#[allow(unsafe_code)]
mod vma;
#[allow(unsafe_code)]
mod window;

#[cfg(CONFIG_DRM_GPUSVM_RUST_KUNIT_TEST)]
#[allow(unsafe_code)]
mod tests;

use core::ptr::NonNull;

use kernel::{
    device::{
        Bound,
        Device, //
    },
    devres::Devres,
    dma,
    mm::{
        Mm,
        MmWithUser, //
    },
    new_mutex, new_spinlock,
    prelude::*,
    rbtree::RBTree,
    static_lock_class,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        Arc,
        Mutex,
        SpinLock, //
    },
};

use self::{
    collect::Collector,
    debugfs::Directory,
    device::{
        Attachment,
        MirrorDevice, //
    },
    placement::Placements,
    scratch::Scratch,
    stats::Counters,
    trace::Id,
    window::{
        unmap_span,
        Notifier, //
    },
};

#[cfg(CONFIG_DEVICE_PRIVATE)]
pub use self::devmem::{
    CopyEngine,
    CopyOp,
    CopyPlan,
    Fence,
    Group,
    MemoryConfig,
    MemoryKind,
    MemoryStats,
    Signal,
    DEFAULT_CPU_WINDOW, //
};
pub use self::{
    devmem::{
        DevMem,
        MigrateOptions,
        Migrated, //
    },
    driver::Driver,
    error::{
        FaultError,
        Unresolved, //
    },
    fault::{
        page_span,
        FaultDone,
        FaultOptions, //
    },
    mirror::Destination,
    placement::Placement,
    span::BLOCK_SIZE,
    stats::Stats,
    valid::{
        Place,
        Segment,
        ValidPages, //
    },
};
pub use kernel::mm::hmm::Access;

/// The mirror of one process's address space for one device.
///
/// It holds the `mm_struct`, not the address space: a mirror does not keep a process's memory alive,
/// and after the process has exited every fault ends with [`FaultError::Gone`].
///
/// Dropping the last reference sleeps: it stops the device, unmaps everything and removes the
/// notifiers. It must be dropped in process context, with no lock held that [`Driver`] methods or
/// the core mm could take. When the device is unbound first, everything is stopped and unmapped then,
/// and the mirror stays as an empty shell.
///
/// Its memory is charged to the memory cgroup of the task that calls [`GpuSvm::fault`], so to nobody if
/// that is a kernel thread of the driver.
///
/// Follows `struct drm_gpusvm` of [`include/drm/drm_gpusvm.h`](srctree/include/drm/drm_gpusvm.h).
#[pin_data(PinnedDrop)]
pub struct GpuSvm<T: Driver> {
    mm: ARef<Mm>,
    dev: MirrorDevice,
    /// What this mirror is called in traces and in debugfs.
    id: Id,
    /// Set when the device goes away; checked under a notifier lock before anything is mapped.
    detached: Atomic<bool>,
    counters: Counters,
    /// The windows by their start address.
    #[pin]
    windows: SpinLock<RBTree<usize, Arc<Notifier<T>>>>,
    #[pin]
    scratch: Scratch,
    #[pin]
    collector: Collector<T>,
    #[pin]
    placements: Placements,
    #[pin]
    attachment: Mutex<Option<Devres<Attachment<T>>>>,
    /// `None` if there was no memory for it.
    #[pin]
    directory: Mutex<Option<Directory>>,
    #[pin]
    driver: T,
}

#[allow(unsafe_code)]
impl<T: Driver> GpuSvm<T> {
    /// Checked when the type is used.
    const CHECKS: () = {
        assert!(
            span::chunk_sizes_are_valid(T::CHUNK_SIZES),
            "CHUNK_SIZES must be descending powers of two that end in PAGE_SIZE or less"
        );
        assert!(T::NOTIFIER_SIZE.is_power_of_two());
        assert!(T::NOTIFIER_SIZE >= T::CHUNK_SIZES[0] && T::NOTIFIER_SIZE >= BLOCK_SIZE);
    };

    /// Creates an empty mirror of `mm` for `dev`. Sleeps.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` if the device cannot share memory with a process, see [`dma::check_mirror`];
    /// `ERESTARTSYS` if a signal is pending; `ENOMEM`; and what the driver's initialiser returns.
    pub fn new(
        dev: &Device<Bound>,
        mm: &MmWithUser,
        driver: impl PinInit<T, Error>,
    ) -> Result<Arc<Self>> {
        const { Self::CHECKS };

        dma::check_mirror(dev)?;
        window::prepare_mm(mm)?;
        let svm = Arc::pin_init(
            try_pin_init!(Self {
                mm: {
                    let mm: &Mm = mm;

                    mm.into()
                },
                dev: MirrorDevice::new(dev),
                id: Id::new(),
                detached: Atomic::new(false),
                counters: Counters::new(),
                windows <- new_spinlock!(RBTree::new(), "gpusvm::GpuSvm::windows"),
                scratch <- Scratch::new(),
                // SAFETY: This is the `collector` field, and `PinnedDrop` shuts it down.
                collector <- unsafe {
                    Collector::new(c"gpusvm::Collector", static_lock_class!())
                },
                placements <- Placements::new(),
                attachment <- new_mutex!(None, "gpusvm::GpuSvm::attachment"),
                directory <- new_mutex!(None, "gpusvm::GpuSvm::directory"),
                driver <- driver,
            }? Error),
            GFP_KERNEL,
        )?;
        // SAFETY: `PinnedDrop` drops `attachment` before the mirror is freed.
        let attachment = Devres::new(dev, unsafe { Attachment::new(&svm) })?;

        *svm.attachment.lock() = Some(attachment);
        // SAFETY: `PinnedDrop` drops `directory` before the mirror is freed.
        let directory = unsafe { Directory::new(NonNull::from(&*svm), dev, svm.id) };

        *svm.directory.lock() = directory.ok();
        Ok(svm)
    }

    /// The driver's part of the mirror.
    pub fn driver(&self) -> &T {
        &self.driver
    }

    /// Whether the caller runs in the address space that is mirrored.
    ///
    /// A file descriptor can be inherited by a child or sent to another process; a driver refuses
    /// requests from there with `EPERM`, since the addresses in them mean something else.
    pub fn mm_is_current(&self) -> bool {
        let this: *const Mm = &*self.mm;

        current!()
            .mm()
            .is_some_and(|mm: &MmWithUser| core::ptr::eq::<Mm>(&**mm, this))
    }

    /// The device.
    pub fn device(&self) -> &Device {
        self.dev.device()
    }

    /// Counters since the mirror exists.
    pub fn stats(&self) -> Stats {
        self.counters.read()
    }

    fn is_detached(&self) -> bool {
        self.detached.load(Acquire)
    }

    /// Stops the device for good, and unmaps everything from it. Sleeps.
    ///
    /// A fault that runs at the same time either has published its pages, and they are found here, or
    /// takes the notifier lock afterwards, and sees `detached`.
    fn detach(&self) {
        self.detached.store(true, Release);
        self.for_each_window(|window| {
            self.for_each_range(window, |range| {
                // Without the mutex: a fault may hold it while user space serves a page. It maps under
                // the notifier lock, where it looks at `detached`, so nothing is mapped after this.
                unmap_span(self, window, &range.span());
                let lock = window.write();
                // SAFETY: The only view: all others need the notifier lock.
                if let Some(mut pages) = unsafe { range.exclusive(&lock) } {
                    pages.free_iova();
                }
            });
        });
    }
}

#[allow(unsafe_code)]
#[pinned_drop]
impl<T: Driver> PinnedDrop for GpuSvm<T> {
    fn drop(self: Pin<&mut Self>) {
        kernel::task::might_sleep();

        // The device may be unbound right now: this waits for that, and after it nobody calls
        // `detach`. Nothing is mapped then, so the device is not needed any more.
        let this = &*self;
        let attachment = this.attachment.lock().take();
        drop(attachment);

        // Waits for readers of the files.
        let directory = this.directory.lock().take();
        drop(directory);

        // After this, `queue` does nothing.
        this.collector.shut_down();

        this.for_each_window(|window| {
            this.for_each_range(window, |range| this.retire(window, range));
            // The notifier is removed with the last reference, in the caller.
            this.forget_window(window);
        });
    }
}
