// SPDX-License-Identifier: GPL-2.0

//! A DRM file: one GPU address space, and the ioctls on it.
//!
//! Each ioctl first looks who calls: a descriptor may have come to another process, in whose memory
//! the addresses mean something else. Then it checks all of its arguments, and then it acts.

use kernel::{
    drm::{
        self,
        gpusvm::{
            Access,
            FaultError,
            FaultOptions, //
        },
        Registered, //
    },
    page::PAGE_SIZE,
    prelude::*,
    sync::Arc,
    time::{
        msecs_to_jiffies,
        Jiffies, //
    },
    uaccess::UserSlice,
    uapi, //
};

use crate::{
    device::{
        Shared,
        VsvmDevice,
        VsvmDrm, //
    },
    engine::Command,
    ffi::UserCommand,
    memory::Memory,
    page_table::LIMIT,
    queue::{
        Job,
        Outcome, //
    },
    space::Space, //
};

/// One open file of the render node.
pub(crate) struct File {
    device: Arc<Shared>,
    space: Arc<Space>,
}

impl drm::file::DriverFile for File {
    type Driver = VsvmDrm;

    fn open(dev: &VsvmDevice) -> Result<Pin<KBox<Self>>> {
        let device: &Arc<Shared> = dev;

        Ok(KBox::new(
            Self {
                device: device.clone(),
                space: device.open()?,
            },
            GFP_KERNEL,
        )?
        .into())
    }
}

impl Drop for File {
    fn drop(&mut self) {
        self.device.close(&self.space);
    }
}

/// User memory of `len` bytes at `addr`.
fn user_slice(addr: u64, len: usize) -> Result<UserSlice> {
    Ok(UserSlice::new(
        UserPtr::from_addr(usize::try_from(addr)?),
        len,
    ))
}

/// A time in nanoseconds, rounded up; [`None`] if it is without limit.
fn timeout(ns: i64) -> Option<Jiffies> {
    let ms = u64::try_from(ns).ok()?.div_ceil(1_000_000);

    // CAST: Limited to what fits. Longer than that is not distinguished: 49 days.
    Some(msecs_to_jiffies(ms.min(u64::from(u32::MAX)) as u32))
}

impl File {
    /// The address space of a file, if it is that of the caller.
    fn own(file: &drm::File<File>) -> Result<&Space> {
        let space = &file.inner().get_ref().space;

        if !space.svm().mm_is_current() {
            return Err(EPERM);
        }
        Ok(space)
    }

    /// `DRM_IOCTL_VSVM_SUBMIT`.
    pub(crate) fn submit(
        _dev: &VsvmDevice<Registered>,
        _reg: &(),
        args: &mut uapi::drm_vsvm_submit,
        file: &drm::File<File>,
    ) -> Result<u32> {
        let space = Self::own(file)?;

        if args.flags != 0
            || args.pad != 0
            || args.num_commands == 0
            || args.num_commands > uapi::VSVM_MAX_COMMANDS
            || args.data_size > u64::from(uapi::VSVM_MAX_DATA)
        {
            return Err(EINVAL);
        }
        space.queue(args.queue)?;
        let count = args.num_commands as usize;
        let data_size = usize::try_from(args.data_size)?;
        // OVERFLOW: Both are limited.
        let mut reader = user_slice(args.commands, count * size_of::<UserCommand>())?.reader();
        // Charged to the caller, as much as it may be.
        let mut commands = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;

        for _ in 0..count {
            let command = reader.read::<UserCommand>()?;

            commands.push(
                Command::from_user(command.get(), data_size)?,
                GFP_KERNEL_ACCOUNT,
            )?;
        }
        let flags = GFP_KERNEL_ACCOUNT | __GFP_NOWARN;
        let mut data = KVVec::with_capacity(data_size, flags)?;

        user_slice(args.data, data_size)?.read_all(&mut data, flags)?;
        args.seqno = space
            .running_queue(args.queue)?
            .submit(Job { commands, data })?;
        Ok(0)
    }

    /// `DRM_IOCTL_VSVM_WAIT`.
    pub(crate) fn wait(
        _dev: &VsvmDevice<Registered>,
        _reg: &(),
        args: &mut uapi::drm_vsvm_wait,
        file: &drm::File<File>,
    ) -> Result<u32> {
        let space = Self::own(file)?;

        if args.flags != 0 || args.pad != 0 {
            return Err(EINVAL);
        }
        let queue = space.queue(args.queue)?;
        let data_size = usize::try_from(args.data_size)?;
        let (outcome, info) = queue.wait(args.seqno, timeout(args.timeout_ns))?;

        if data_size != 0 {
            let user = user_slice(args.data, data_size)?;

            queue.fetch(args.seqno, data_size, |data| {
                user.writer().write_slice(data)
            })?;
        }
        args.status = match outcome {
            Outcome::Done => uapi::drm_vsvm_status_VSVM_STATUS_DONE,
            Outcome::Failed => uapi::drm_vsvm_status_VSVM_STATUS_FAILED,
            Outcome::Cancelled => uapi::drm_vsvm_status_VSVM_STATUS_CANCELLED,
        };
        args.error = info
            .stop
            .map_or_else(Default::default, |stop| stop.to_user());
        Ok(0)
    }

    /// `DRM_IOCTL_VSVM_QUEUE`.
    pub(crate) fn queue(
        _dev: &VsvmDevice<Registered>,
        _reg: &(),
        args: &mut uapi::drm_vsvm_queue,
        file: &drm::File<File>,
    ) -> Result<u32> {
        let space = Self::own(file)?;

        if args.flags & !uapi::VSVM_QUEUE_RESET != 0 || args.pad != 0 {
            return Err(EINVAL);
        }
        let info = space
            .queue(args.queue)?
            .inspect(args.flags & uapi::VSVM_QUEUE_RESET != 0);

        args.submitted = info.submitted;
        args.completed = info.completed;
        args.stopped = info.stop.is_some().into();
        args.error = info
            .stop
            .map_or_else(Default::default, |stop| stop.to_user());
        Ok(0)
    }

    /// `DRM_IOCTL_VSVM_MAP_AHEAD`.
    ///
    /// An ioctl keeps the device from being unbound, and this one may wait for user space, where
    /// that handles page faults. It ends when the process is killed.
    pub(crate) fn map_ahead(
        _dev: &VsvmDevice<Registered>,
        _reg: &(),
        args: &mut uapi::drm_vsvm_map_ahead,
        file: &drm::File<File>,
    ) -> Result<u32> {
        let space = Self::own(file)?;
        let addr = usize::try_from(args.addr)?;
        let len = usize::try_from(args.len)?;
        let end = addr.checked_add(len).ok_or(EINVAL)?;

        if args.flags & !uapi::VSVM_MAP_WRITE != 0
            || args.pad != 0
            || len == 0
            || end > LIMIT
            || addr % PAGE_SIZE != 0
            || len % PAGE_SIZE != 0
        {
            return Err(EINVAL);
        }
        let access = if args.flags & uapi::VSVM_MAP_WRITE != 0 {
            Access::Write
        } else {
            Access::Read
        };
        let options = FaultOptions {
            around: false,
            ..FaultOptions::default()
        };

        args.failed = 0;
        match space.svm().fault(addr..end, access, &options) {
            Ok(_) => Ok(0),
            Err(failed) => {
                // DRM copies it to user space in case of an error, too.
                args.failed = failed.addr as u64;
                Err(match failed.error {
                    // The span is well-formed, but no process can have all of it.
                    FaultError::Invalid => EFAULT,
                    error => error.into(),
                })
            }
        }
    }

    /// `DRM_IOCTL_VSVM_STATS`.
    pub(crate) fn stats(
        _dev: &VsvmDevice<Registered>,
        _reg: &(),
        args: &mut uapi::drm_vsvm_stats,
        file: &drm::File<File>,
    ) -> Result<u32> {
        let space = Self::own(file)?;

        if args.flags != 0 || args.engine != 0 {
            return Err(EINVAL);
        }
        let library = space.svm().stats();
        let vm = space.svm().driver();
        let counters = vm.counters();
        let injector = vm.injector();
        let (leaves_4k, leaves_2m) = vm.page_table().leaves();
        let (engine, dma_transfers) = match vm.device().memory() {
            Memory::Cpu => (uapi::drm_vsvm_engine_VSVM_ENGINE_CPU, 0),
            Memory::Dma(edu) => (uapi::drm_vsvm_engine_VSVM_ENGINE_DMA, edu.transfers.get()),
        };

        *args = uapi::drm_vsvm_stats {
            flags: 0,
            engine,
            faults: library.faults,
            short_faults: library.short_faults,
            walks: library.walks,
            retries: library.retries,
            invalidations: library.invalidations,
            blocks_invalidated: library.blocks_invalidated,
            ranges: library.ranges,
            segments: library.segments,
            mapped_bytes: library.mapped_bytes,
            mapped_bytes_total: library.mapped_bytes_total,
            collected: library.collected,
            gpu_faults: counters.gpu_faults.get(),
            commits: counters.commits.get(),
            stops: counters.stops.get(),
            leaves_4k,
            leaves_2m,
            tlb_hits: counters.tlb_hits.get(),
            tlb_misses: counters.tlb_misses.get(),
            tlb_flushes: vm.flushes_done(),
            late_uses: counters.late_uses.get(),
            stale_uses: counters.stale_uses.get(),
            bus_errors: counters.bus_errors.get(),
            bytes_read: counters.bytes_read.get(),
            bytes_written: counters.bytes_written.get(),
            dma_transfers,
            jobs_done: counters.jobs_done.get(),
            jobs_failed: counters.jobs_failed.get(),
            barriers_met: injector.met.get(),
            barriers_missed: injector.missed.get(),
            injected: injector.injected.get(),
        };
        Ok(0)
    }

    /// `DRM_IOCTL_VSVM_DEBUG`.
    pub(crate) fn debug(
        _dev: &VsvmDevice<Registered>,
        _reg: &(),
        args: &mut uapi::drm_vsvm_debug,
        file: &drm::File<File>,
    ) -> Result<u32> {
        let space = Self::own(file)?;

        if !crate::module_parameters::debug.value() {
            return Err(EOPNOTSUPP);
        }
        space.svm().driver().inject(args)?;
        Ok(0)
    }
}
