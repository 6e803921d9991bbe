// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A mirror and the memory of its device: where memory shall be, and how it gets there.

use core::{
    ops,
    ptr::NonNull, //
};

use kernel::{
    dma::DmaAddress,
    mm::{
        hmm::{
            self,
            Access,
            Kind, //
        },
        MmWithUser, //
    },
    page::PAGE_SIZE,
    prelude::*,
    time::{
        Delta,
        Instant,
        Monotonic, //
    }, //
};

use super::{
    devmem::{
        DevMem,
        MigrateOptions,
        Migrated, //
    },
    fault::{
        driver_error,
        is_being_killed,
        is_user_span,
        Budget,
        FaultDone,
        FaultOptions,
        Stop,
        Target, //
    },
    placement::Placement,
    range::FaultState,
    span::{
        block_start,
        intersect,
        is_whole_pages,
        union, //
    },
    valid::Place,
    vma::Vma,
    window::unmap_span,
    Driver,
    FaultError,
    GpuSvm, //
};

/// How often faults may move the memory of a range to the device, in one [`BOUNCE_TIME`].
///
/// CPU and device that use the same memory in turn have it copied to and fro for ever. Beyond this bound
/// the device uses the memory where the CPU has left it, until the time is over.
const MAX_BOUNCES: u32 = 8;

/// See [`MAX_BOUNCES`].
const BOUNCE_TIME: Delta = Delta::from_millis(1000);

/// How long the CPU leaves memory alone that has to be on the device.
const STRICT_TIMESLICE: Delta = Delta::from_millis(5);

/// How often faults have moved the memory of a range to the device lately.
pub(super) struct Bounces {
    since: Option<Instant<Monotonic>>,
    count: u32,
}

impl Bounces {
    pub(super) fn new() -> Self {
        Self {
            since: None,
            count: 0,
        }
    }

    /// Whether the memory may be moved once more.
    fn may_move(&mut self) -> bool {
        if self.since.is_none_or(|since| since.elapsed() > BOUNCE_TIME) {
            self.since = Some(Instant::now());
            self.count = 0;
        }
        if self.count >= MAX_BOUNCES {
            return false;
        }
        self.count += 1;
        true
    }
}

/// Where [`GpuSvm::prefetch`] moves memory.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To the memory of the mirror's device.
    Device,
    /// To system memory.
    System,
}

/// What an error of a migration means.
fn migration_error(err: Error) -> FaultError {
    match err {
        e if e == EINVAL => FaultError::Unmapped,
        e if e == EINTR => FaultError::Killed,
        e if e == ENODEV => FaultError::Gone,
        e if e == EIO => FaultError::Dma,
        _ => FaultError::NoMemory,
    }
}

impl<T: Driver> GpuSvm<T> {
    /// Moves the memory of the process in `span` to the device's memory, as far as it can move, and maps
    /// nothing. Sleeps. See [`DevMem::migrate_in`].
    ///
    /// # Errors
    ///
    /// Those of [`DevMem::migrate_in`]; `ENODEV` if the device has no memory; `ESRCH` if the address
    /// space has ended.
    pub fn migrate_to_device(
        &self,
        span: ops::Range<usize>,
        options: &MigrateOptions,
    ) -> Result<Migrated> {
        let memory = self.driver.memory().ok_or(ENODEV)?;
        let mm = self.mm.mmget_not_zero().ok_or(ESRCH)?;

        if !is_user_span(&mm, &span) {
            return Err(EINVAL);
        }
        memory.migrate_in(&mm, span, options)
    }

    /// Moves the memory of the process in `span` that is in the device's memory to system memory. Sleeps.
    ///
    /// # Errors
    ///
    /// As for [`migrate_to_device`](Self::migrate_to_device).
    pub fn migrate_to_system(
        &self,
        span: ops::Range<usize>,
        options: &MigrateOptions,
    ) -> Result<Migrated> {
        let memory = self.driver.memory().ok_or(ENODEV)?;
        let mm = self.mm.mmget_not_zero().ok_or(ESRCH)?;

        if !is_user_span(&mm, &span) {
            return Err(EINVAL);
        }
        memory.migrate_out(&mm, span, options)
    }

    /// Moves memory and, with `access`, maps it for the device. Sleeps.
    ///
    /// What cannot move is mapped where it is: this is a hint, unlike [`Placement::Strict`].
    ///
    /// # Errors
    ///
    /// See [`FaultError`].
    pub fn prefetch(
        &self,
        span: ops::Range<usize>,
        to: Destination,
        access: Option<Access>,
        options: &MigrateOptions,
    ) -> Result<Migrated, FaultError> {
        let moved = match to {
            Destination::Device => self.migrate_to_device(span.clone(), options),
            Destination::System => self.migrate_to_system(span.clone(), options),
        }
        .map_err(migration_error)?;

        if let Some(access) = access {
            let exact = FaultOptions {
                around: false,
                ..FaultOptions::default()
            };

            self.fault(span, access, &exact)
                .map_err(|failed| failed.error)?;
        }
        Ok(moved)
    }

    /// Says where faults of the device put the memory of `span`, from now on. Sleeps.
    ///
    /// Nothing is moved or unmapped. It is about addresses: it stays when memory is unmapped.
    ///
    /// # Errors
    ///
    /// `EINVAL`: `span` is empty or not page aligned; `ENODEV`: the device has no memory; `ENOMEM`.
    pub fn set_placement(&self, span: ops::Range<usize>, placement: Placement) -> Result {
        if !is_whole_pages(&span) {
            return Err(EINVAL);
        }
        if self.driver.memory().is_none() {
            return Err(ENODEV);
        }
        self.placements.set(&span, placement)
    }

    /// Maps what of `span` is in the device's own memory, and nothing else. Sleeps.
    ///
    /// Nothing is faulted in or moved: it is for a driver whose migrations are requests of user space,
    /// which ends when the device can use what has moved. Returns how many pages of `span` were mapped
    /// at some moment during the call.
    ///
    /// # Errors
    ///
    /// See [`FaultError`]; pages that were mapped before the error stay mapped.
    pub fn map_resident(&self, span: ops::Range<usize>) -> Result<usize, FaultError> {
        let mm = self.mm.mmget_not_zero().ok_or(FaultError::Gone)?;
        let mut pages = 0;
        let mut addr = span.start;

        if !is_user_span(&mm, &span) {
            return Err(FaultError::Invalid);
        }
        while addr < span.end {
            let mut budget = Budget::new(&FaultOptions::default());

            addr = loop {
                if is_being_killed() {
                    return Err(FaultError::Killed);
                }
                match self.resident_step(addr..span.end, &mm, &budget) {
                    Ok((reached, mapped)) => {
                        pages += mapped;
                        break reached;
                    }
                    Err(Stop::Fail(err)) => return Err(err),
                    Err(_) => budget.retry()?,
                }
            };
        }
        Ok(pages)
    }

    /// Maps what of the beginning of `want`, at most one block, is in the device's own memory. Gives how
    /// far, and how many pages.
    fn resident_step(
        &self,
        want: ops::Range<usize>,
        mm: &MmWithUser,
        budget: &Budget,
    ) -> Result<(usize, usize), Stop> {
        let vma = Vma::lookup(mm, want.start, Access::Read)?;
        let window = self.window(want.start, mm)?;
        let Some(range) = self.range(&window, want.start, &vma)? else {
            return Err(Stop::Again);
        };

        if range.is_unmapped() {
            self.retire(&window, &range);
            return Err(Stop::Again);
        }
        let mut state = range.fault_state().lock();
        if state.removed {
            return Err(Stop::Again);
        }
        let block = range.block_span(want.start);
        let target = Target {
            window: &window,
            range: &range,
            asked: intersect(&intersect(&want, &block), &vma.span),
            around: None,
            block,
            access: Access::Read,
            timeout: budget.walk_timeout,
            resident: true,
        };
        let (seq, staged) = self
            .scratch
            .with(|scratch| self.walk(&target, mm, &mut state, scratch, &mut FaultDone::default()))
            .map_err(|_| FaultError::NoMemory)??;
        let pages = staged.bytes_in(block_start(target.block.start), &target.asked) / PAGE_SIZE;

        if pages > 0 {
            unmap_span(self, &window, &target.block);
            self.driver
                .prepare(target.block.clone())
                .map_err(driver_error)?;
            self.commit(&target, &state, seq, staged)?;
        }
        drop(state);
        if range.is_unmapped() {
            self.collector.queue();
        }
        Ok((target.asked.end, pages))
    }

    /// What walks name to see device memory that this mirror can perhaps reach.
    pub(super) fn owner(&self) -> Option<NonNull<c_void>> {
        self.driver
            .memory()
            .map(|memory| memory.group().owner_ptr())
    }

    /// Moves the memory of a fault to where it shall be, once. The range's mutex is held. Sleeps.
    pub(super) fn place(
        &self,
        target: &Target<'_, T>,
        mm: &MmWithUser,
        state: &mut FaultState,
        budget: &mut Budget,
    ) -> Result<Placement, Stop> {
        let (placement, same) = self.placements.at(target.asked.start);
        let Some(memory) = self
            .driver
            .memory()
            .filter(|_| placement != Placement::Stay)
        else {
            return Ok(Placement::Stay);
        };
        let is_strict = placement == Placement::Strict;

        if budget.placed || !(is_strict || state.bounces.may_move()) {
            return Ok(placement);
        }
        budget.placed = true;
        let wanted = match &target.around {
            Some((around, _)) => union(around, &target.asked),
            None => target.asked.clone(),
        };
        let options = MigrateOptions {
            timeslice: is_strict.then_some(STRICT_TIMESLICE),
            ..MigrateOptions::default()
        };

        // Like a walk: it may take long, and that is no reason to give up.
        match budget.walk(|| memory.migrate_in(mm, intersect(&wanted, &same), &options)) {
            Err(err) if err == EINTR => Err(FaultError::Killed.into()),
            // Whatever it was, it is mapped where it is, unless that is not good enough.
            _ => Ok(placement),
        }
    }

    /// Brings memory of another device to system memory, for this device cannot reach it.
    pub(super) fn bring(
        &self,
        memory: &DevMem,
        mm: &MmWithUser,
        span: ops::Range<usize>,
    ) -> Result<(), FaultError> {
        match memory.migrate_out(mm, span, &MigrateOptions::default()) {
            // Who removes the memory brings it back himself.
            Err(err) if err != ENODEV && err != EINVAL => Err(migration_error(err)),
            _ => Ok(()),
        }
    }

    /// How this device reaches the beginning of `seg`, which is in device memory. `len` becomes the
    /// number of bytes for which that is so.
    ///
    /// # Errors
    ///
    /// It cannot; gives the memory, if it is known.
    pub(super) fn locate(
        &self,
        seg: &hmm::Segment,
        len: &mut usize,
    ) -> Result<(Place, DmaAddress), Option<DevMem>> {
        let own = self.driver.memory();
        // Coherent memory that is not known here is as good as system memory.
        let other = |memory| match seg.kind {
            Kind::DeviceCoherent => Ok((Place::System, 0)),
            _ => Err(memory),
        };
        let cut = |memory: &DevMem, offset: u64, len: &mut usize| {
            // CAST: Not more than `len`.
            *len = (memory.size() - offset).min(*len as u64) as usize;
        };

        if let Some((memory, offset)) = own.and_then(|own| Some((own, own.offset_of(seg.phys)?))) {
            cut(memory, offset, len);
            return Ok((Place::Own, offset));
        }
        let Some((memory, offset)) =
            own.and_then(|own| own.group().find(seg.phys))
                .and_then(|memory| {
                    let offset = memory.offset_of(seg.phys)?;

                    Some((memory, offset))
                })
        else {
            return other(None);
        };

        cut(&memory, offset, len);
        // OVERFLOW: Inside of the memory.
        match self
            .driver
            .peer_address(&memory, offset..offset + *len as u64)
        {
            Some(addr) => Ok((Place::Peer, addr)),
            None => other(Some(memory)),
        }
    }
}
