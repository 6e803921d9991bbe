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
    pages::{
        self,
        covered_by,
        Segments, //
    },
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
    vma::{
        for_each_mirrored,
        Vma, //
    },
    window::{
        unmap_span,
        Notifier, //
    },
    Driver,
    FaultError,
    GpuSvm, //
};

/// How long a fault fights invalidations before it gives up, in milliseconds, as in C
/// (`HMM_RANGE_DEFAULT_TIMEOUT`).
const DEFAULT_TIMEOUT_MS: u32 = bindings::HMM_RANGE_DEFAULT_TIMEOUT;

/// Lost races after which a fault gives up, deadline or not: the last resort.
const MAX_RETRIES: u32 = 8192;

/// Lost races after which a fault begins to get out of the way of those who win them.
const EAGER_RETRIES: u32 = 64;

/// Failed DMA mappings after which a fault gives up; the wait between them doubles from 1 ms.
const MAX_DMA_FAILURES: u32 = 6;

/// Walks that ended with `EFAULT` although the VMA permits the access, after which that is the answer.
///
/// A VMA can be replaced while it is walked, which looks the same as memory that cannot be had.
const MAX_WALK_FAULTS: u32 = 3;

/// Probes without a huge page after which a range is not probed any more, until a walk finds one.
const MAX_PROBE_MISSES: u32 = 2;

/// How a fault is to be handled.
#[derive(Copy, Clone, Debug)]
pub struct FaultOptions {
    /// How long to fight invalidations for one block, in jiffies: `None` for the default of one
    /// second, 0 for no deadline. The number of lost races is bounded either way. Walks of the CPU page
    /// tables do not count, so that a page may come from disk, or from user space by userfaultfd; each
    /// of them has the whole time to fight invalidations itself.
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
enum Stop {
    /// It lost a race: try again.
    Again,
    /// Asking for more than the span has failed: try again with the span alone.
    Narrow,
    /// The walk failed although the VMA permits the access.
    WalkFault,
    /// The DMA mapping failed: back off, try again.
    Dma,
    /// There is no way.
    Fail(FaultError),
}

impl From<FaultError> for Stop {
    fn from(err: FaultError) -> Self {
        Stop::Fail(err)
    }
}

/// What is left of a fault's patience.
struct Budget {
    start: Instant<Monotonic>,
    /// Time that was spent in walks.
    walking: Delta,
    /// `None` for no deadline.
    timeout: Option<Delta>,
    /// The same for a walk, in jiffies. Without a deadline walks have one nevertheless, since a walk
    /// that fights invalidations does not notice that its task is being killed.
    walk_timeout: Jiffies,
    retries: u32,
    dma_failures: u32,
    walk_faults: u32,
}

impl Budget {
    fn new(options: &FaultOptions) -> Self {
        let jiffies = options
            .timeout
            .unwrap_or_else(|| msecs_to_jiffies(DEFAULT_TIMEOUT_MS));
        let ms = (jiffies as u64).saturating_mul(1000) / u64::from(bindings::HZ);

        Self {
            start: Instant::now(),
            walking: Delta::ZERO,
            walk_timeout: if jiffies != 0 {
                jiffies
            } else {
                msecs_to_jiffies(DEFAULT_TIMEOUT_MS)
            },
            timeout: (jiffies != 0)
                .then(|| Delta::from_millis(i64::try_from(ms).unwrap_or(i64::MAX))),
            retries: 0,
            dma_failures: 0,
            walk_faults: 0,
        }
    }

    /// Runs a walk, whose time does not count.
    fn walk<R>(&mut self, walk: impl FnOnce() -> R) -> R {
        let start: Instant<Monotonic> = Instant::now();
        let result = walk();

        // OVERFLOW: These are nanoseconds of the uptime.
        self.walking += start.elapsed();
        result
    }

    fn retry(&mut self) -> Result<(), FaultError> {
        self.retries = self.retries.saturating_add(1);
        if let Some(timeout) = self.timeout {
            // OVERFLOW: Neither is negative.
            if self.start.elapsed() - self.walking > timeout {
                return Err(FaultError::Timeout);
            }
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

/// One block of one range, and what a fault wants of it.
struct Target<'a, T: Driver> {
    window: &'a Notifier<T>,
    range: &'a Range<T>,
    /// The block, cut by the range.
    block: ops::Range<usize>,
    /// What must be mapped; inside `block`.
    asked: ops::Range<usize>,
    access: Access,
    /// What shall be faulted in as well, for which access.
    around: Option<(ops::Range<usize>, Access)>,
    /// How long a walk may fight invalidations, in jiffies.
    timeout: Jiffies,
    /// A walk that took so long is no reason to give up.
    no_deadline: bool,
}

impl<T: Driver> Target<'_, T> {
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
    /// of times.
    ///
    /// It may drop the last reference to the address space's memory, whose end then calls
    /// [`Driver::stop`] and [`Driver::wait`] from here.
    ///
    /// # Errors
    ///
    /// See [`FaultError`]; blocks that were mapped before the one that failed stay mapped.
    pub fn fault(
        &self,
        span: ops::Range<usize>,
        access: Access,
        options: &FaultOptions,
    ) -> Result<FaultDone, FaultError> {
        add(&self.counters.faults, 1);
        let mut done = FaultDone::default();
        let result = self.fault_span(&span, access, options, &mut done);

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
        done: &mut FaultDone,
    ) -> Result<(), FaultError> {
        if !is_whole_pages(span) {
            return Err(FaultError::Invalid);
        }
        // The short path needs no address space: what is mapped was checked then.
        let mut addr = self.skip_covered(span, access);
        if addr >= span.end {
            done.short = true;
            add(&self.counters.short_faults, 1);
            return Ok(());
        }

        let mm = self.mm.mmget_not_zero().ok_or(FaultError::Gone)?;
        if !is_user_span(&mm, span) {
            return Err(FaultError::Invalid);
        }
        while addr < span.end {
            addr = self.fault_step(addr..span.end, access, &mm, options, done)?;
            addr = self.skip_covered(&(addr..span.end), access);
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
        let mut around = options.around;

        loop {
            if options.killable && is_being_killed() {
                return Err(FaultError::Killed);
            }
            if self.is_detached() {
                return Err(FaultError::Gone);
            }
            match self.try_step(&want, access, mm, around, &mut budget, done) {
                Ok(reached) => return Ok(reached),
                Err(Stop::Fail(err)) => {
                    self.tidy(want.start, err);
                    return Err(err);
                }
                Err(Stop::Narrow) => around = false,
                Err(Stop::Again) => {
                    done.retries = done.retries.saturating_add(1);
                    budget.retry()?;
                }
                Err(Stop::Dma) => {
                    done.retries = done.retries.saturating_add(1);
                    budget.dma_failure()?;
                }
                Err(Stop::WalkFault) => {
                    done.retries = done.retries.saturating_add(1);
                    budget.walk_fault()?;
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
        around: bool,
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
        let target = Target {
            window: &window,
            range: &range,
            asked: intersect(&intersect(&(want.start..want.end), &block), &vma.span),
            around: if around { vma.around(&block) } else { None },
            block,
            access,
            timeout: budget.walk_timeout,
            no_deadline: budget.timeout.is_none(),
        };

        if self.is_resolved(&target)? {
            return Ok(target.asked.end);
        }
        self.driver
            .prepare(target.block.clone())
            .map_err(driver_error)?;

        let (seq, staged) = budget
            .walk(|| {
                self.scratch
                    .with(|scratch| self.walk(&target, mm, &mut state, scratch, done))
            })
            .map_err(|_| FaultError::NoMemory)??;
        self.driver.walked(target.block.clone());
        self.commit(&target, &state, seq, staged)?;
        drop(state);
        if range.is_unmapped() {
            // The collector may have come by in vain while the mutex was held.
            self.collector.queue();
        }
        Ok(target.asked.end)
    }

    /// Whether somebody else resolved the fault while this one waited for the range.
    ///
    /// If the block is mapped, but not as it is wanted, it is unmapped here: because a write comes
    /// after a read (H-10), or because the VMAs have changed (H-4).
    fn is_resolved(&self, target: &Target<'_, T>) -> Result<bool, Stop> {
        let lock = target.window.read();
        let Some(pages) = target.range.shared(&lock) else {
            return Err(Stop::Again);
        };

        if pages.covered(&target.asked, target.access) >= target.asked.end {
            return Ok(true);
        }
        let absent = pages.is_absent(target.block.start);
        drop(lock);
        if !absent {
            unmap_span(self, target.window, &target.block);
        }
        Ok(false)
    }

    /// Finds out what memory the process has in the block.
    fn walk(
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
            asked: Some((target.asked.clone(), target.access)),
            around: target.around.clone(),
            owner: None,
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

        let staged = stage(target, mm, walked.seq(), walked.segments())?;
        if let [only] = staged.as_slice() {
            if only.len() == BLOCK_SIZE {
                state.probe_misses = 0;
            }
        }
        Ok((walked.seq(), staged))
    }

    /// Whether one entry of the CPU page table may map the whole block, and it is asked for anyway.
    fn may_be_huge(&self, target: &Target<'_, T>, state: &FaultState) -> bool {
        state.probe_misses < MAX_PROBE_MISSES
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
            owner: None,
        };

        done.walks = done.walks.saturating_add(1);
        // An error is found again by the walk, which knows what is asked for.
        if let Ok(Some((seq, seg))) =
            hmm::probe(target.window, mm, first, &request, scratch, target.timeout)
        {
            if contains(&seg.va, &target.block) {
                let staged = stage(target, mm, seq, core::iter::once(seg))?;

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
        if err == EHWPOISON {
            // This one is about what must be mapped.
            return FaultError::Poisoned.into();
        }
        // Something that was not asked for may be the cause: a poisoned neighbour, a guard region.
        if target.asks_more() {
            return Stop::Narrow;
        }
        if err == EBUSY {
            return if target.no_deadline {
                Stop::Again
            } else {
                FaultError::Timeout.into()
            };
        }
        if err == ENOMEM {
            return FaultError::NoMemory.into();
        }
        match Vma::lookup(mm, target.asked.start, target.access) {
            Ok(_) => Stop::WalkFault,
            Err(err) => err.into(),
        }
    }

    /// Maps what was walked for the device, and has the driver write its page table.
    fn commit(
        &self,
        target: &Target<'_, T>,
        state: &FaultState,
        seq: Seq,
        mut staged: Segments,
    ) -> Result<(), Stop> {
        // OVERFLOW: The number of segments and their sum are limited by the size of the block.
        let (segments, bytes) = (staged.as_slice().len() as u64, staged.bytes() as u64);
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

        pages
            .publish(target.block.start, &mut staged)
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

        let committed = self
            .driver
            .commit(&pages.shared().valid(target.block.clone()));
        drop(lock);
        committed.map_err(|err| {
            unmap_span(self, target.window, &target.block);
            driver_error(err)
        })
    }
}

/// What an error of the driver means.
fn driver_error(err: Error) -> Stop {
    match err {
        e if e == EAGAIN => Stop::Again,
        e if e == EINTR => FaultError::Killed.into(),
        e if e == ENODEV || e == ENXIO => FaultError::Gone.into(),
        _ => FaultError::NoMemory.into(),
    }
}

/// Makes the block out of `walked`, the segments of a walk with the sequence number `seq`. May sleep.
///
/// Only what is in VMAs that a device may see gets in.
fn stage<T: Driver>(
    target: &Target<'_, T>,
    mm: &MmWithUser,
    seq: Seq,
    walked: impl Iterator<Item = hmm::Segment>,
) -> Result<Segments, Stop> {
    let start = block_start(target.block.start);
    let mut walked = walked.peekable();
    let mut staged = Segments::new();

    for_each_mirrored(mm, &target.block, |part| {
        // Both VMAs and segments are in order; a segment may reach into the next VMA.
        while let Some(seg) = walked.peek().filter(|seg| seg.va.start < part.end).cloned() {
            if seg.va.end <= part.end {
                walked.next();
            }
            let va = intersect(&seg.va, &part);
            let more = seg.va.end > part.end;

            let is_system = matches!(seg.kind, Kind::System);

            if !is_system && !va.is_empty() && overlap(&va, &target.asked) {
                return Err(FaultError::Conflict);
            }
            if !is_system || va.is_empty() {
                if more {
                    break;
                }
                continue;
            }
            // OVERFLOW: `va` lies in the segment and in the block.
            let phys = seg.phys + (va.start - seg.va.start) as PhysAddr;

            staged
                .push(pages::Segment::new(
                    va.start - start,
                    phys,
                    va.end - va.start,
                    seg.write,
                ))
                .map_err(|_| FaultError::NoMemory)?;
            if more {
                break;
            }
        }
        Ok(())
    })?;

    // Without this check, a fault could succeed without its page being mapped, over and over.
    let reached = covered_by(staged.as_slice(), start, target.asked.start, target.access);
    if reached < target.asked.end {
        return Err(if target.window.read().retry(seq) {
            Stop::Again
        } else {
            Stop::WalkFault
        });
    }
    staged.shrink().map_err(|_| FaultError::NoMemory)?;
    Ok(staged)
}

/// Whether the current task is being killed.
fn is_being_killed() -> bool {
    // SAFETY: `current` is valid for the duration of the call.
    unsafe { bindings::fatal_signal_pending(kernel::task::Task::current_raw()) != 0 }
}

/// The smallest span of whole pages that contains the byte at `addr`.
///
/// For drivers whose hardware reports the address of a fault to the byte. `None` where the page would
/// leave the address space.
pub fn page_span(addr: usize) -> Option<ops::Range<usize>> {
    let start = addr.align_down(Alignment::new::<PAGE_SIZE>());

    Some(start..start.checked_add(PAGE_SIZE)?)
}
