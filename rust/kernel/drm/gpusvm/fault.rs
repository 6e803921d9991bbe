// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The fault loop.

use core::ops;

use kernel::{
    bindings,
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
    pages,
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
    vma::Vma,
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

/// Lost races after which a fault gives up, deadline or not.
const MAX_RETRIES: u32 = 4096;

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
    /// How long to fight invalidations, in jiffies: `None` for the default of one second, 0 for no
    /// deadline. Time in which the fault makes progress (waiting for a page from disk, or from
    /// user space by userfaultfd) does not count.
    pub timeout: Option<Jiffies>,
    /// Give up when the current task is being killed.
    pub killable: bool,
    /// Also map memory near the span, as far as the range goes, where that has no side effects. For
    /// faults of the hardware; the answer to an explicit request is exact without it.
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
    timeout: Jiffies,
    retries: u32,
    dma_failures: u32,
    walk_faults: u32,
}

impl Budget {
    fn new(options: &FaultOptions) -> Self {
        Self {
            start: Instant::now(),
            timeout: options
                .timeout
                .unwrap_or_else(|| msecs_to_jiffies(DEFAULT_TIMEOUT_MS)),
            retries: 0,
            dma_failures: 0,
            walk_faults: 0,
        }
    }

    fn retry(&mut self) -> Result<(), FaultError> {
        self.retries += 1;
        if self.retries > MAX_RETRIES {
            return Err(FaultError::Retry);
        }
        // Asking for the time is cheaper than a walk, but most races are won the second time.
        if self.timeout != 0 && self.retries % 8 == 0 {
            // CAST: A timeout of more than half of the range means no deadline in practice.
            let timeout = Delta::from_millis(
                (self.timeout as u64).saturating_mul(1000 / u64::from(bindings::HZ)) as i64,
            );

            if self.start.elapsed() > timeout {
                return Err(FaultError::Timeout);
            }
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
}

impl<T: Driver> GpuSvm<T> {
    /// Makes `span` accessible to the device. Sleeps.
    ///
    /// For a fault of the hardware, `span` is the page that faulted; for a request to map memory
    /// ahead it can be of any size. Bytes, page aligned, half open. Called in process context with no
    /// lock held that [`Driver`] methods or the core mm take.
    ///
    /// When it returns, all of `span` was mapped with the permission for `access` at some moment
    /// during the call, page by page; an invalidation may have taken parts of it away again, and the
    /// device will fault there. It ends: races are retried until the deadline, and a bounded number
    /// of times.
    ///
    /// # Errors
    ///
    /// See [`FaultError`]; what was mapped before the address that failed stays mapped.
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
            match self.try_step(&want, access, mm, around, &budget, done) {
                Ok(reached) => return Ok(reached),
                Err(Stop::Fail(err)) => return Err(err),
                Err(Stop::Narrow) => around = false,
                Err(Stop::Again) => {
                    done.retries += 1;
                    budget.retry()?;
                }
                Err(Stop::Dma) => {
                    done.retries += 1;
                    budget.dma_failure()?;
                }
                Err(Stop::WalkFault) => {
                    done.retries += 1;
                    budget.walk_fault()?;
                }
            }
        }
    }

    fn try_step(
        &self,
        want: &ops::Range<usize>,
        access: Access,
        mm: &MmWithUser,
        around: bool,
        budget: &Budget,
        done: &mut FaultDone,
    ) -> Result<usize, Stop> {
        // Declared before everything that borrows them: the last reference to a window removes its
        // notifier, which no lock may be held for.
        let window: Arc<Notifier<T>> = self.window(want.start, mm)?;
        let Some(range) = self.range(&window, want.start, access, mm)? else {
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

        let vma = Vma::lookup(mm, want.start, access)?;
        let block = range.block_span(want.start);
        let target = Target {
            window: &window,
            range: &range,
            asked: intersect(&intersect(&(want.start..want.end), &block), &vma.span),
            around: if around { vma.around(&block) } else { None },
            block,
            access,
        };

        if self.is_resolved(&target)? {
            return Ok(target.asked.end);
        }
        self.driver
            .prepare(target.block.clone())
            .map_err(|_| FaultError::NoMemory)?;

        let seq = self
            .scratch
            .with(|scratch| self.walk(&target, mm, &mut state, scratch, budget, done))
            .map_err(|_| FaultError::NoMemory)??;
        self.driver.walked(target.block.clone());
        self.commit(&target, &mut state, seq)?;
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

    /// Finds out what memory the process has in the block, and leaves it in `state.staged`.
    fn walk(
        &self,
        target: &Target<'_, T>,
        mm: &MmWithUser,
        state: &mut FaultState,
        scratch: &mut hmm::Window,
        budget: &Budget,
        done: &mut FaultDone,
    ) -> Result<Seq, Stop> {
        if self.may_be_huge(target, state) {
            if let Some(seq) = self.probe(target, mm, state, scratch, budget, done)? {
                return Ok(seq);
            }
        }

        let request = Request {
            asked: Some((target.asked.clone(), target.access)),
            around: target.around.clone(),
            owner: None,
        };
        done.walks += 1;
        let walked = hmm::walk(
            target.window,
            mm,
            target.block.clone(),
            &request,
            scratch,
            budget.timeout,
        )
        .map_err(|err| self.classify(err, target, mm))?;

        state.staged.clear();
        state
            .staged
            .reserve(walked.segments().count(), GFP_KERNEL)
            .map_err(|_| FaultError::NoMemory)?;
        for seg in walked.segments() {
            stage(target, state, &seg)?;
        }
        if let [only] = state.staged[..] {
            if only.len() == BLOCK_SIZE {
                state.probe_misses = 0;
            }
        }
        Ok(walked.seq())
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
        budget: &Budget,
        done: &mut FaultDone,
    ) -> Result<Option<Seq>, Stop> {
        let first = target.block.start;
        let request = Request {
            // OVERFLOW: The block is larger than a page.
            asked: Some((first..first + PAGE_SIZE, target.access)),
            around: None,
            owner: None,
        };

        done.walks += 1;
        // An error is found again by the walk, which knows what is asked for.
        if let Ok(Some((seq, seg))) =
            hmm::probe(target.window, mm, first, &request, scratch, budget.timeout)
        {
            if contains(&seg.va, &target.block) {
                state.staged.clear();
                state
                    .staged
                    .reserve(1, GFP_KERNEL)
                    .map_err(|_| FaultError::NoMemory)?;
                stage(target, state, &seg)?;
                state.probe_misses = 0;
                return Ok(Some(seq));
            }
        }
        state.probe_misses += 1;
        Ok(None)
    }

    /// What an error of a walk means.
    fn classify(&self, err: Error, target: &Target<'_, T>, mm: &MmWithUser) -> Stop {
        if err == EINTR {
            return FaultError::Killed.into();
        }
        if err == EBUSY {
            return FaultError::Timeout.into();
        }
        // Something that was not asked for may be the cause: a poisoned neighbour, a guard region.
        let asked_more = target
            .around
            .as_ref()
            .is_some_and(|(around, _)| !contains(&target.asked, around));
        if asked_more {
            return Stop::Narrow;
        }
        if err == EHWPOISON {
            return FaultError::Poisoned.into();
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
    fn commit(&self, target: &Target<'_, T>, state: &mut FaultState, seq: Seq) -> Result<(), Stop> {
        let lock = target.window.read();

        if lock.retry(seq) || target.range.is_unmapped() {
            return Err(Stop::Again);
        }
        if self.is_detached() {
            return Err(FaultError::Gone.into());
        }
        let segments = state.staged.len() as u64;
        let bytes: u64 = state.staged.iter().map(|seg| seg.len() as u64).sum();
        let mut staged = core::mem::take(&mut state.staged);
        // SAFETY: `state` is this range's: `try_step` locked it. The mirror is not detached, and
        // `detach` takes the notifier lock for writing after it says so, so the device stays bound
        // as long as `lock` is held.
        let Some(mut pages) = (unsafe { target.range.filling(&lock, state) }) else {
            return Err(Stop::Again);
        };
        pages
            .publish(target.block.start, &mut staged)
            .map_err(|err| if err == EBUSY { Stop::Again } else { Stop::Dma })?;
        add(&self.counters.segments, segments);
        add(&self.counters.mapped_bytes, bytes);
        add(&self.counters.mapped_bytes_total, bytes);
        trace::map(self.id, &target.block, segments, bytes);

        let committed = self
            .driver
            .commit(&pages.shared().valid(target.block.clone()));
        drop(lock);
        state.staged = staged;
        if committed.is_err() {
            unmap_span(self, target.window, &target.block);
            return Err(FaultError::NoMemory.into());
        }
        Ok(())
    }
}

/// Adds a segment of a walk to the block that is being filled.
fn stage<T: Driver>(
    target: &Target<'_, T>,
    state: &mut FaultState,
    seg: &hmm::Segment,
) -> Result<(), Stop> {
    let va = intersect(&seg.va, &target.block);

    if !matches!(seg.kind, Kind::System) {
        if overlap(&va, &target.asked) {
            return Err(FaultError::Conflict.into());
        }
        return Ok(());
    }
    if va.is_empty() {
        return Ok(());
    }
    // OVERFLOW: `va` lies in the segment and in the block.
    let staged = pages::Segment::new(
        va.start - block_start(target.block.start),
        seg.phys + (va.start - seg.va.start) as kernel::io::PhysAddr,
        va.end - va.start,
        seg.write,
    );

    state
        .staged
        .push(staged, GFP_KERNEL)
        .map_err(|_| FaultError::NoMemory.into())
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
