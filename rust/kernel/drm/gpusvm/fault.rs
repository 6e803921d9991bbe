// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The fault loop.

use core::ops;

use kernel::{
    bindings,
    io::PhysAddr,
    mm::{
        hmm::{
            self,
            Access,
            Held,
            Kind,
            Request, //
        },
        notifier::Seq,
        MmWithUser, //
    },
    page::PAGE_SIZE,
    prelude::*,
    ptr::{
        Alignable,
        Alignment, //
    },
    sync::Arc,
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta,
        Instant,
        Jiffies,
        Monotonic, //
    },
};

use super::{
    devmem::DevMem,
    pages::{
        self,
        covered_by,
        Segments, //
    },
    placement::Placement,
    range::{
        FaultState,
        Range, //
    },
    span::{
        block_start,
        contains,
        intersect,
        is_whole_pages,
        overlap,
        BLOCK_SIZE, //
    },
    stats::add,
    trace,
    valid::Place,
    vma::{
        for_each_mirrored,
        may_fault_held,
        Vma, //
    },
    window::{
        unmap_span,
        Notifier, //
    },
    Driver,
    FaultError,
    GpuSvm,
    Unresolved, //
};

/// How long a fault fights invalidations before it gives up, in milliseconds, as in C
/// (`HMM_RANGE_DEFAULT_TIMEOUT`).
const DEFAULT_TIMEOUT_MS: u32 = bindings::HMM_RANGE_DEFAULT_TIMEOUT;

/// Lost races after which a fault gives up, deadline or not: the last resort.
const MAX_RETRIES: u32 = 8192;

/// Lost races after which a fault begins to get out of the way of those who win them.
const EAGER_RETRIES: u32 = 64;

/// Lost races after which a fault asks for nothing but what must be mapped.
const NARROW_RETRIES: u32 = 8;

/// Lost races after which a fault holds the address space still, see [`Held`].
const HOLD_RETRIES: u32 = 16;

/// Lost races after which it does so again, if even that was in vain.
const HOLD_AGAIN_RETRIES: u32 = 64;

/// A walk fights invalidations for this part of a fault's time before it is a lost race.
const WALKS_PER_TIMEOUT: Jiffies = 8;

/// Failed DMA mappings after which a fault gives up; the wait between them doubles from 1 ms.
const MAX_DMA_FAILURES: u32 = 6;

/// Walks that ended with `EFAULT` although the VMA permits the access, after which that is the answer.
///
/// A VMA can be replaced while it is walked, which looks the same as memory that cannot be had.
const MAX_WALK_FAULTS: u32 = 3;

/// Attempts to have memory where it has to be.
const MAX_MISPLACED: u32 = 3;

/// Probes without a huge page after which a range is not probed any more, until a walk finds one.
const MAX_PROBE_MISSES: u32 = 2;

/// How a fault is to be handled.
#[derive(Copy, Clone, Debug)]
pub struct FaultOptions {
    /// How long to fight invalidations for one block, in jiffies: `None` for the default of one
    /// second, 0 for no deadline. The number of lost races is bounded either way. The time in which a
    /// page comes from disk, or from user space by userfaultfd, does not count.
    pub timeout: Option<Jiffies>,
    /// Give up when the current task is being killed.
    pub killable: bool,
    /// Also map memory near the span, as far as the range and the VMA go. It is populated, and copied
    /// where the process would copy on write, as if the process had made the same access there; but
    /// neither is a file written to, nor does user space get faults to handle. For faults of the
    /// hardware. What is there already is mapped either way.
    pub around: bool,
}

impl Default for FaultOptions {
    fn default() -> Self {
        Self {
            timeout: None,
            killable: true,
            around: true,
        }
    }
}

/// What a fault took.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultDone {
    /// Walks of the CPU page tables.
    pub walks: u32,
    /// Lost races.
    pub retries: u32,
    /// Everything was mapped already.
    pub short: bool,
}

/// Whether `span` is a non-empty run of whole pages in the user half of `mm`.
pub(super) fn is_user_span(mm: &MmWithUser, span: &ops::Range<usize>) -> bool {
    // SAFETY: `mm` is valid, and the task size is set when the address space is made.
    let end = unsafe { (*mm.as_raw()).__bindgen_anon_1.task_size };

    is_whole_pages(span) && span.end <= end
}

/// Why a step did not get through.
pub(super) enum Stop {
    /// It lost a race: try again.
    Again,
    /// A walk lost races until it had no more time: try again.
    Storm,
    /// The driver wants it tried again.
    NotYet,
    /// With the address space held it could not be done: try again without.
    NotHeld,
    /// Asking for more than the span has failed: try again with the span alone.
    Narrow,
    /// The walk failed although the VMA permits the access.
    WalkFault,
    /// The DMA mapping failed: back off, try again.
    Dma,
    /// A page is not where it has to be.
    Misplaced,
    /// A page is in a device's memory that this device cannot reach: bring it to system memory.
    Bring(DevMem),
    /// There is no way.
    Fail(FaultError),
}

impl From<FaultError> for Stop {
    fn from(err: FaultError) -> Self {
        Stop::Fail(err)
    }
}

/// What is left of a fault's patience.
pub(super) struct Budget {
    start: Instant<Monotonic>,
    /// Time that was spent in walks.
    walking: Delta,
    /// `None` for no deadline.
    timeout: Option<Delta>,
    /// That of a walk, in jiffies. Without a deadline walks have one nevertheless, since a walk that
    /// fights invalidations does not notice that its task is being killed.
    pub(super) walk_timeout: Jiffies,
    retries: u32,
    /// The number of lost races after which the address space is held still.
    hold_at: u32,
    /// That has been tried.
    was_held: bool,
    dma_failures: u32,
    walk_faults: u32,
    /// Times that memory was not where it has to be.
    misplaced: u32,
    /// The memory was moved to where it shall be, or could not be.
    pub(super) placed: bool,
}

impl Budget {
    pub(super) fn new(options: &FaultOptions) -> Self {
        let jiffies = options
            .timeout
            .unwrap_or_else(|| msecs_to_jiffies(DEFAULT_TIMEOUT_MS));
        let ms = (jiffies as u64).saturating_mul(1000) / u64::from(bindings::CONFIG_HZ);

        Self {
            start: Instant::now(),
            walking: Delta::ZERO,
            walk_timeout: if jiffies != 0 {
                jiffies.div_ceil(WALKS_PER_TIMEOUT)
            } else {
                msecs_to_jiffies(DEFAULT_TIMEOUT_MS)
            },
            timeout: (jiffies != 0)
                .then(|| Delta::from_millis(i64::try_from(ms).unwrap_or(i64::MAX))),
            retries: 0,
            hold_at: HOLD_RETRIES,
            was_held: false,
            dma_failures: 0,
            walk_faults: 0,
            misplaced: 0,
            placed: false,
        }
    }

    /// Runs a walk, whose time does not count.
    pub(super) fn walk<R>(&mut self, walk: impl FnOnce() -> R) -> R {
        let start: Instant<Monotonic> = Instant::now();
        let result = walk();

        // OVERFLOW: These are nanoseconds of the uptime.
        self.walking += start.elapsed();
        result
    }

    /// A race was lost. Gives how to try again.
    fn lost_race(&mut self, manner: Manner) -> Result<Manner, FaultError> {
        // Before the deadline in any case: it is what helps.
        let half = self.timeout.is_some_and(|timeout| {
            !self.was_held && self.fought() > Delta::from_nanos(timeout.as_nanos() / 2)
        });

        if half || self.retries.saturating_add(1) >= self.hold_at {
            self.retries = self.retries.saturating_add(1);
            self.was_held = true;
            self.hold_at = self.retries.saturating_add(HOLD_AGAIN_RETRIES);
            if self.retries > MAX_RETRIES {
                return Err(FaultError::Retry);
            }
            return Ok(Manner::Held);
        }
        self.retry()?;
        Ok(match manner {
            Manner::Around if self.retries < NARROW_RETRIES => Manner::Around,
            _ => Manner::Exact,
        })
    }

    /// A walk lost races for all the time that it had.
    fn lost_storm(&mut self, manner: Manner) -> Result<Manner, FaultError> {
        let jiffies = self.walk_timeout as u64;
        let ms = jiffies.saturating_mul(1000) / u64::from(bindings::CONFIG_HZ);

        // This part of its time counts.
        //
        // OVERFLOW: The walk took at least so long, but for rounding.
        self.walking -= Delta::from_millis(i64::try_from(ms).unwrap_or(i64::MAX));
        if !self.was_held {
            self.hold_at = self.retries;
        }
        self.lost_race(manner)
    }

    /// How long invalidations have been fought.
    fn fought(&self) -> Delta {
        // OVERFLOW: These are nanoseconds of the uptime.
        self.start.elapsed() - self.walking
    }

    pub(super) fn retry(&mut self) -> Result<(), FaultError> {
        self.retries = self.retries.saturating_add(1);
        if self.timeout.is_some_and(|timeout| self.fought() > timeout) {
            return Err(FaultError::Timeout);
        }
        if self.retries > MAX_RETRIES {
            return Err(FaultError::Retry);
        }
        if self.retries > EAGER_RETRIES {
            fsleep(Delta::from_micros(100));
        }
        Ok(())
    }

    fn dma_failure(&mut self) -> Result<(), FaultError> {
        if self.dma_failures >= MAX_DMA_FAILURES {
            return Err(FaultError::Dma);
        }
        fsleep(Delta::from_millis(1 << self.dma_failures));
        self.dma_failures += 1;
        Ok(())
    }

    fn misplaced(&mut self) -> Result<(), FaultError> {
        self.misplaced += 1;
        if self.misplaced >= MAX_MISPLACED {
            return Err(FaultError::Placement);
        }
        self.placed = false;
        // Others who want the same page go on in the meantime.
        fsleep(Delta::from_millis(1 << self.misplaced));
        Ok(())
    }

    fn walk_fault(&mut self) -> Result<(), FaultError> {
        self.walk_faults += 1;
        if self.walk_faults >= MAX_WALK_FAULTS {
            return Err(FaultError::Inaccessible);
        }
        // Whoever replaces the VMA needs time to do so.
        fsleep(Delta::from_millis(1));
        Ok(())
    }
}

/// How a fault is tried.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Manner {
    /// With what is around.
    Around,
    /// What must be mapped, and what is there already.
    Exact,
    /// As `Exact`, with the address space held still.
    Held,
}

/// One block of one range, and what a fault wants of it.
pub(super) struct Target<'a, T: Driver> {
    pub(super) window: &'a Notifier<T>,
    pub(super) range: &'a Range<T>,
    /// The block, cut by the range.
    pub(super) block: ops::Range<usize>,
    /// What must be mapped; inside `block`.
    pub(super) asked: ops::Range<usize>,
    pub(super) access: Access,
    /// What shall be faulted in as well, for which access.
    pub(super) around: Option<(ops::Range<usize>, Access)>,
    /// How long a walk may fight invalidations, in jiffies.
    pub(super) timeout: Jiffies,
    /// Nothing must be mapped; what is in the device's own memory is, and nothing else.
    pub(super) resident: bool,
}

impl<T: Driver> Target<'_, T> {
    /// Whether memory in this place is to be mapped.
    fn takes(&self, place: Place) -> bool {
        !self.resident || place == Place::Own
    }

    /// Whether more is asked for than must be mapped.
    fn asks_more(&self) -> bool {
        self.around
            .as_ref()
            .is_some_and(|(around, _)| !contains(&self.asked, around))
    }
}

impl<T: Driver> GpuSvm<T> {
    /// Makes `span` accessible to the device. Sleeps.
    ///
    /// For a fault of the hardware, `span` is the page that faulted; for a request to map memory
    /// ahead it can be of any size. Bytes, page aligned, half open. Called in process context with no
    /// lock held that [`Driver`] methods or the core mm take.
    ///
    /// When it returns, all of `span` was mapped with the permission for `access` at some moment
    /// during the call, block by block; an invalidation may have taken parts of it away again, and the
    /// device will fault there. It ends: races are retried until the deadline, or a bounded number
    /// of times. Before that, a fault that loses again and again takes the locks that it needs to win,
    /// the mmap lock for writing among them; see "Forward progress" in
    /// `Documentation/gpu/rust-gpusvm.rst`.
    ///
    /// It may drop the last reference to the address space's memory, whose end then calls
    /// [`Driver::stop`] and [`Driver::wait`] from here.
    ///
    /// # Errors
    ///
    /// See [`FaultError`]; what is before the page that failed stays mapped.
    pub fn fault(
        &self,
        span: ops::Range<usize>,
        access: Access,
        options: &FaultOptions,
    ) -> Result<FaultDone, Unresolved> {
        add(&self.counters.faults, 1);
        let mut done = FaultDone::default();
        let mut addr = span.start;
        let result = self
            .fault_span(&span, access, options, &mut addr, &mut done)
            .map_err(|error| Unresolved { error, addr });

        add(&self.counters.walks, u64::from(done.walks));
        add(&self.counters.retries, u64::from(done.retries));
        trace::fault(
            self.id,
            &span,
            access,
            result.map_err(Error::from),
            done.walks,
            done.retries,
        );
        result?;
        Ok(done)
    }

    fn fault_span(
        &self,
        span: &ops::Range<usize>,
        access: Access,
        options: &FaultOptions,
        addr: &mut usize,
        done: &mut FaultDone,
    ) -> Result<(), FaultError> {
        if !is_whole_pages(span) {
            return Err(FaultError::Invalid);
        }
        // The short path needs no address space: what is mapped was checked then.
        *addr = self.skip_covered(span, access);
        if *addr >= span.end {
            done.short = true;
            add(&self.counters.short_faults, 1);
            return Ok(());
        }

        let mm = self.mm.mmget_not_zero().ok_or(FaultError::Gone)?;
        if !is_user_span(&mm, span) {
            return Err(FaultError::Invalid);
        }
        // The end of what is known to hold a page that cannot be had.
        let mut bad = 0;

        while *addr < span.end {
            let part = if *addr < bad {
                half(&(*addr..bad))
            } else {
                span.end
            };

            match self.fault_step(*addr..part, access, &mm, options, done) {
                Ok(reached) => *addr = self.skip_covered(&(reached..span.end), access),
                Err(_) if is_unstable(&mm) => return Err(FaultError::Gone),
                Err(err) => {
                    // A step is one block at most. If one of its pages is at fault, it is looked
                    // for, so that the others are mapped and its address is told.
                    let end = part.min(block_start(*addr).saturating_add(BLOCK_SIZE));
                    let is_single = end - *addr <= PAGE_SIZE;

                    if is_single || !err.is_about_a_page() {
                        return Err(err);
                    }
                    bad = end;
                }
            }
        }
        Ok(())
    }

    /// The first address of `span` that is not mapped for `access`.
    ///
    /// Takes neither the mmap lock nor a range mutex. No sequence number is needed: an invalidation
    /// changes blocks under the notifier lock only.
    fn skip_covered(&self, span: &ops::Range<usize>, access: Access) -> usize {
        let mut addr = span.start;

        while addr < span.end {
            let Some(window) = self.find_window(addr) else {
                return addr;
            };
            let lock = window.read();
            let Some(range) = lock.find(addr).filter(|range| !range.is_unmapped()) else {
                return addr;
            };
            let part = addr..range.span().end.min(span.end);
            let reached = match range.shared(&lock) {
                Some(pages) => pages.covered(&part, access),
                None => addr,
            };

            if reached < part.end {
                return reached;
            }
            addr = reached;
        }
        addr
    }

    /// Makes the beginning of `want` accessible, at most one block, and returns how far.
    fn fault_step(
        &self,
        want: ops::Range<usize>,
        access: Access,
        mm: &MmWithUser,
        options: &FaultOptions,
        done: &mut FaultDone,
    ) -> Result<usize, FaultError> {
        let mut budget = Budget::new(options);
        let mut manner = if options.around {
            Manner::Around
        } else {
            Manner::Exact
        };

        loop {
            if options.killable && is_being_killed() {
                return Err(FaultError::Killed);
            }
            if self.is_detached() {
                return Err(FaultError::Gone);
            }
            let stop = match self.try_step(&want, access, mm, manner, &mut budget, done) {
                Ok(reached) => return Ok(reached),
                Err(stop) => stop,
            };

            if !matches!(stop, Stop::Narrow | Stop::NotHeld | Stop::Fail(_)) {
                done.retries = done.retries.saturating_add(1);
            }
            match stop {
                Stop::Again => manner = budget.lost_race(manner)?,
                Stop::Storm => manner = budget.lost_storm(manner)?,
                Stop::NotYet => budget.retry()?,
                Stop::Narrow | Stop::NotHeld => manner = Manner::Exact,
                Stop::Dma => budget.dma_failure()?,
                Stop::WalkFault => budget.walk_fault()?,
                Stop::Fail(err) => {
                    self.tidy(want.start, err);
                    return Err(err);
                }
                Stop::Misplaced => budget.misplaced()?,
                Stop::Bring(memory) => {
                    let part = want.start..want.end.min(want.start.saturating_add(BLOCK_SIZE));

                    self.bring(&memory, mm, part)?;
                    budget.retry()?;
                }
            }
        }
    }

    /// Takes away what a fault at `addr` left behind that failed with `err`.
    fn tidy(&self, addr: usize, err: FaultError) {
        let Some(window) = self.find_window(addr) else {
            return;
        };

        if err == FaultError::Unmapped {
            // Nothing says that the memory of a range is gone if it went while the range was made, or
            // if it is in huge pages of hugetlbfs that were moved.
            let stale = window.read().find(addr).cloned();

            if let Some(range) = stale {
                self.retire(&window, &range);
            }
        }
        self.forget_if_empty(&window);
    }

    fn try_step(
        &self,
        want: &ops::Range<usize>,
        access: Access,
        mm: &MmWithUser,
        manner: Manner,
        budget: &mut Budget,
        done: &mut FaultDone,
    ) -> Result<usize, Stop> {
        let vma = Vma::lookup(mm, want.start, access)?;

        // Declared before everything that borrows them: the last reference to a window removes its
        // notifier, which no lock may be held for.
        let window: Arc<Notifier<T>> = self.window(want.start, mm)?;
        let Some(range) = self.range(&window, want.start, &vma)? else {
            return Err(Stop::Again);
        };

        if range.is_unmapped() {
            // Its memory is gone, at least in part; what is left gets new ranges.
            self.retire(&window, &range);
            return Err(Stop::Again);
        }
        let mut state = range.fault_state().lock();
        if state.removed {
            return Err(Stop::Again);
        }

        let block = range.block_span(want.start);
        let mut target = Target {
            window: &window,
            range: &range,
            asked: intersect(&intersect(&(want.start..want.end), &block), &vma.span),
            around: None,
            block,
            access,
            timeout: budget.walk_timeout,
            resident: false,
        };

        if self.is_resolved(&target)? {
            return Ok(target.asked.end);
        }
        if manner == Manner::Around {
            target.around = vma.around(&target.block, &target.asked, access, &mut state.writes);
        } else {
            state.writes.stop();
        }
        let placement = self.place(&target, mm, &mut state, budget)?;
        self.driver
            .prepare(target.block.clone())
            .map_err(driver_error)?;

        // From here to the commit, if it comes to that: after the range's mutex, before the notifier
        // lock.
        let held = match manner {
            Manner::Held => {
                add(&self.counters.held, 1);
                Some(Held::new(mm, target.block.clone()).map_err(|_| FaultError::Killed)?)
            }
            _ => None,
        };
        let (seq, staged) = budget
            .walk(|| {
                self.scratch.with(|scratch| match &held {
                    Some(held) => self.walk_held(&target, held, scratch, done),
                    None => self.walk(&target, mm, &mut state, scratch, done),
                })
            })
            .map_err(|_| FaultError::NoMemory)??;
        if held.is_none() {
            self.driver.walked(target.block.clone());
        }
        let own = own_memory(&staged);
        if placement == Placement::Strict && !is_own(&target, &staged) {
            return Err(Stop::Misplaced);
        }
        self.commit(&target, &state, seq, staged)?;
        drop(held);
        drop(state);
        if let (Some(memory), Some(offset)) = (self.driver.memory(), own) {
            memory.touch(offset);
        }
        if range.is_unmapped() {
            // The collector may have come by in vain while the mutex was held.
            self.collector.queue();
        }
        Ok(target.asked.end)
    }

    /// Whether somebody else resolved the fault while this one waited for the range.
    fn is_resolved(&self, target: &Target<'_, T>) -> Result<bool, Stop> {
        let lock = target.window.read();
        let Some(pages) = target.range.shared(&lock) else {
            return Err(Stop::Again);
        };

        Ok(pages.covered(&target.asked, target.access) >= target.asked.end)
    }

    /// Makes room for a block that was walked anew. The range's mutex is held.
    ///
    /// It may be mapped, but not as it is wanted: because a write comes after a read (H-10), because
    /// other pages of it were asked for, or because the VMAs have changed (H-4).
    fn make_absent(&self, target: &Target<'_, T>) {
        let lock = target.window.read();
        let absent = target
            .range
            .shared(&lock)
            .is_none_or(|pages| pages.is_absent(target.block.start));

        drop(lock);
        if !absent {
            unmap_span(self, target.window, &target.block);
        }
    }

    /// Finds out what memory the process has in the block.
    pub(super) fn walk(
        &self,
        target: &Target<'_, T>,
        mm: &MmWithUser,
        state: &mut FaultState,
        scratch: &mut hmm::Window,
        done: &mut FaultDone,
    ) -> Result<(Seq, Segments), Stop> {
        if self.may_be_huge(target, state) {
            if let Some(found) = self.probe(target, mm, state, scratch, done)? {
                return Ok(found);
            }
        }

        let request = Request {
            asked: (!target.resident).then(|| (target.asked.clone(), target.access)),
            around: target.around.clone(),
            owner: self.owner(),
        };
        done.walks = done.walks.saturating_add(1);
        let walked = hmm::walk(
            target.window,
            mm,
            target.block.clone(),
            &request,
            scratch,
            target.timeout,
        )
        .map_err(|err| self.classify(err, target, mm))?;

        let staged = self.stage(target, mm, None, walked.seq(), walked.segments())?;
        if let [only] = staged.as_slice() {
            if only.len() == BLOCK_SIZE {
                state.probe_misses = 0;
            }
        }
        Ok((walked.seq(), staged))
    }

    /// As `walk`, with the address space held still.
    fn walk_held(
        &self,
        target: &Target<'_, T>,
        held: &Held<'_>,
        scratch: &mut hmm::Window,
        done: &mut FaultDone,
    ) -> Result<(Seq, Segments), Stop> {
        let request = Request {
            // Otherwise what is there must do.
            asked: may_fault_held(held, &target.asked)
                .then(|| (target.asked.clone(), target.access)),
            around: None,
            owner: self.owner(),
        };

        done.walks = done.walks.saturating_add(1);
        let walked = hmm::walk_held(target.window, held, target.block.clone(), &request, scratch)
            .map_err(|err| match err {
            e if e == EBUSY => Stop::Again,
            // It is found again without holding anything.
            _ => Stop::NotHeld,
        })?;
        let staged = self.stage(
            target,
            held.mm(),
            Some(held),
            walked.seq(),
            walked.segments(),
        );

        Ok((
            walked.seq(),
            staged.map_err(|stop| match stop {
                Stop::WalkFault => Stop::NotHeld,
                stop => stop,
            })?,
        ))
    }

    /// Whether one entry of the CPU page table may map the whole block, and it is asked for anyway.
    fn may_be_huge(&self, target: &Target<'_, T>, state: &FaultState) -> bool {
        state.probe_misses < MAX_PROBE_MISSES
            && !target.resident
            && target.block.end - target.block.start == BLOCK_SIZE
            && (contains(&target.asked, &target.block)
                || target.around.as_ref().is_some_and(|(around, access)| {
                    contains(around, &target.block) && *access == target.access
                }))
    }

    /// Looks at the first page of the block only: if a huge page is there, it implies the others, and
    /// the CPU page tables are neither walked nor faulted 512 times.
    fn probe(
        &self,
        target: &Target<'_, T>,
        mm: &MmWithUser,
        state: &mut FaultState,
        scratch: &mut hmm::Window,
        done: &mut FaultDone,
    ) -> Result<Option<(Seq, Segments)>, Stop> {
        let first = target.block.start;
        let request = Request {
            // OVERFLOW: The block is larger than a page.
            asked: Some((first..first + PAGE_SIZE, target.access)),
            around: None,
            owner: self.owner(),
        };

        done.walks = done.walks.saturating_add(1);
        // An error is found again by the walk, which knows what is asked for.
        if let Ok(Some((seq, seg))) =
            hmm::probe(target.window, mm, first, &request, scratch, target.timeout)
        {
            if contains(&seg.va, &target.block) {
                let staged = self.stage(target, mm, None, seq, core::iter::once(seg))?;

                state.probe_misses = 0;
                return Ok(Some((seq, staged)));
            }
        }
        state.probe_misses = state.probe_misses.saturating_add(1);
        Ok(None)
    }

    /// What an error of a walk means.
    fn classify(&self, err: Error, target: &Target<'_, T>, mm: &MmWithUser) -> Stop {
        if err == EINTR {
            return FaultError::Killed.into();
        }
        if err == EAGAIN {
            return Stop::Again;
        }
        if err == EBUSY {
            return Stop::Storm;
        }
        if err == EHWPOISON {
            // This one is about what must be mapped.
            return FaultError::Poisoned.into();
        }
        // Something that was not asked for may be the cause: a poisoned neighbour, a guard region.
        if target.asks_more() {
            return Stop::Narrow;
        }
        if err == ENOMEM {
            return FaultError::NoMemory.into();
        }
        match Vma::lookup(mm, target.asked.start, target.access) {
            Ok(_) => Stop::WalkFault,
            Err(err) => err.into(),
        }
    }

    /// Makes the block out of `walked`, the segments of a walk with the sequence number `seq`. May
    /// sleep.
    ///
    /// Only what is in VMAs that a device may see gets in.
    fn stage(
        &self,
        target: &Target<'_, T>,
        mm: &MmWithUser,
        held: Option<&Held<'_>>,
        seq: Seq,
        walked: impl Iterator<Item = hmm::Segment>,
    ) -> Result<Segments, Stop> {
        let start = block_start(target.block.start);
        let mut walked = walked.peekable();
        let mut staged = Segments::new();

        for_each_mirrored(mm, held, &target.block, |part| {
            // Both VMAs and segments are in order; a segment may reach into the next VMA.
            while let Some(seg) = walked.peek().filter(|seg| seg.va.start < part.end).cloned() {
                let more = seg.va.end > part.end;
                let va = intersect(&seg.va, &part);

                if !more {
                    walked.next();
                }
                if !va.is_empty() {
                    // OVERFLOW: `va` lies in the segment.
                    let phys = seg.phys + (va.start - seg.va.start) as PhysAddr;

                    self.stage_part(target, hmm::Segment { va, phys, ..seg }, &mut staged)?;
                }
                if more {
                    break;
                }
            }
            Ok::<(), Stop>(())
        })?;

        // Without this check, a fault could succeed without its page being mapped, over and over.
        let reached = covered_by(staged.as_slice(), start, target.asked.start, target.access);
        if reached < target.asked.end && !target.resident {
            return Err(if target.window.read().retry(seq) {
                Stop::Again
            } else {
                Stop::WalkFault
            });
        }
        staged.shrink().map_err(|_| FaultError::NoMemory)?;
        Ok(staged)
    }

    /// Adds a segment that is in one VMA.
    fn stage_part(
        &self,
        target: &Target<'_, T>,
        seg: hmm::Segment,
        staged: &mut Segments,
    ) -> Result<(), Stop> {
        let start = block_start(target.block.start);
        let mut rest = seg;

        while !rest.va.is_empty() {
            let must = overlap(&rest.va, &target.asked);
            // OVERFLOW: The segment lies in the block, this and below.
            let offset = rest.va.start - start;
            let mut len = rest.va.end - rest.va.start;
            let found = match rest.kind {
                Kind::System => Some((Place::System, 0)),
                Kind::DevicePrivate | Kind::DeviceCoherent => match self.locate(&rest, &mut len) {
                    Ok(found) => Some(found),
                    Err(Some(memory)) if must => return Err(Stop::Bring(memory)),
                    Err(None) if must => return Err(FaultError::Conflict.into()),
                    Err(_) => None,
                },
                _ if must => return Err(FaultError::Conflict.into()),
                _ => None,
            };

            if let Some((place, dma)) = found.filter(|(place, _)| target.takes(*place)) {
                staged
                    .push(pages::Segment::new_in(
                        offset, rest.phys, len, rest.write, place, dma,
                    ))
                    .map_err(|_| FaultError::NoMemory)?;
            }
            rest.va.start += len;
            rest.phys += len as PhysAddr;
        }
        Ok(())
    }

    /// Maps what was walked for the device, and has the driver write its page table.
    pub(super) fn commit(
        &self,
        target: &Target<'_, T>,
        state: &FaultState,
        seq: Seq,
        mut staged: Segments,
    ) -> Result<(), Stop> {
        // OVERFLOW: The number of segments and their sum are limited by the size of the block.
        let (segments, bytes) = (staged.as_slice().len() as u64, staged.bytes() as u64);

        self.make_absent(target);
        let lock = target.window.read();

        if lock.retry(seq) || target.range.is_unmapped() {
            return Err(Stop::Again);
        }
        if self.is_detached() {
            return Err(FaultError::Gone.into());
        }
        // SAFETY: `state` is this range's: `try_step` locked it. The mirror is not detached, and
        // `detach` takes the notifier lock for writing after it says so, so the device stays bound
        // as long as `lock` is held.
        let Some(mut pages) = (unsafe { target.range.filling(&lock, state) }) else {
            return Err(Stop::Again);
        };

        let filled = pages
            .fill(target.block.start, &mut staged)
            .map_err(|err| match err {
                e if e == EBUSY => Stop::Again,
                // No memory for IOMMU page tables, or no IOVA: both may pass.
                e if e == ENOMEM => Stop::Dma,
                _ => FaultError::Dma.into(),
            })?;
        add(&self.counters.segments, segments);
        add(&self.counters.mapped_bytes, bytes);
        add(&self.counters.mapped_bytes_total, bytes);
        trace::map(self.id, &target.block, segments, bytes);

        let committed = self.driver.commit(&pages.valid(target.block.clone()));
        if committed.is_ok() {
            filled.publish();
        }
        drop(lock);
        committed.map_err(|err| {
            // Some of it may be in the page table.
            unmap_span(self, target.window, &target.block);
            driver_error(err)
        })
    }
}

/// What an error of the driver means.
pub(super) fn driver_error(err: Error) -> Stop {
    match err {
        e if e == EAGAIN => Stop::NotYet,
        e if e == EINTR => FaultError::Killed.into(),
        e if e == ENODEV || e == ENXIO => FaultError::Gone.into(),
        e if e == ENOMEM => FaultError::NoMemory.into(),
        e => FaultError::Driver(e).into(),
    }
}

/// Whether all that must be mapped is in the device's own memory.
fn is_own<T: Driver>(target: &Target<'_, T>, staged: &Segments) -> bool {
    let start = block_start(target.block.start);

    staged.as_slice().iter().all(|seg| {
        // OVERFLOW: Offsets stay inside the block, which is a valid span of addresses.
        seg.place() == Place::Own
            || !overlap(&(start + seg.offset()..start + seg.end()), &target.asked)
    })
}

/// Where in the device's own memory the first segment there is.
fn own_memory(staged: &Segments) -> Option<u64> {
    staged
        .as_slice()
        .iter()
        .find(|seg| seg.place() == Place::Own)
        .map(|seg| seg.dma())
}

/// Whether the OOM reaper takes the memory of `mm` away: what it has is not what the process had.
fn is_unstable(mm: &MmWithUser) -> bool {
    // SAFETY: `mm` is valid.
    unsafe { bindings::check_stable_address_space(mm.as_raw()) != 0 }
}

/// The end of the first half of `span`, which consists of whole pages and is not empty.
fn half(span: &ops::Range<usize>) -> usize {
    // OVERFLOW: Both are inside of the span, whose length is a multiple of the page size.
    span.start + ((span.end - span.start) / PAGE_SIZE).div_ceil(2) * PAGE_SIZE
}

/// Whether the current task is being killed.
pub(super) fn is_being_killed() -> bool {
    // SAFETY: `current` is valid for the duration of the call.
    unsafe { bindings::fatal_signal_pending(kernel::task::Task::current_raw()) != 0 }
}

/// The smallest span of whole pages that contains the byte at `addr`.
///
/// For drivers whose hardware reports the address of a fault to the byte. `None` where the page would
/// leave the address space.
///
/// # Examples
///
/// ```
/// use kernel::drm::gpusvm::page_span;
/// use kernel::page::PAGE_SIZE;
///
/// assert_eq!(page_span(PAGE_SIZE + 5), Some(PAGE_SIZE..2 * PAGE_SIZE));
/// assert_eq!(page_span(PAGE_SIZE), Some(PAGE_SIZE..2 * PAGE_SIZE));
/// assert_eq!(page_span(usize::MAX), None);
/// ```
pub fn page_span(addr: usize) -> Option<ops::Range<usize>> {
    let start = addr.align_down(Alignment::new::<PAGE_SIZE>());

    Some(start..start.checked_add(PAGE_SIZE)?)
}
