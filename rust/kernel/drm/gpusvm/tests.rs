// SPDX-License-Identifier: GPL-2.0 OR MIT

//! KUnit tests against a real address space and a device without hardware.
//!
//! The device of these tests has no IOMMU, so segments are mapped one by one; the reservation of IOVA
//! space is tested by `kernel::dma::iova` and by the vsvm driver.

mod iova;
mod mock;
mod pages;
mod progress;

use kernel::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    kunit::mm::*,
    mm::{
        hmm::PageState,
        MmWithUser, //
    },
    page::PAGE_SIZE,
    prelude::*,
    sizes::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
};

use super::{
    ahead::WriteRun,
    span,
    Access,
    FaultDone,
    FaultError,
    FaultOptions,
    GpuSvm,
    Stats,
    Unresolved,
    BLOCK_SIZE, //
};

use self::mock::Mock;

/// A mirror of the test's own address space.
///
/// What is registered is on the heap: a failed assertion ends the thread without unwinding.
struct Fixture {
    svm: Arc<GpuSvm<Mock>>,
    _mm: ARef<MmWithUser>,
    dev: *mut bindings::device,
}

impl Fixture {
    fn new() -> Result<Self> {
        let mm = attach_mm()?;
        // SAFETY: This runs in a test; the device is unregistered when it ends, or before.
        let dev = unsafe {
            let test = bindings::kunit_get_current_test();

            bindings::kunit_device_register(test, c"gpusvm".as_char_ptr())
        };
        let dev = kernel::error::from_err_ptr(dev)?;
        // Only now the DMA core finds out that the device needs no syncs.
        //
        // SAFETY: It was just registered, and has a DMA mask.
        kernel::error::to_result(unsafe { bindings::dma_set_mask(dev, u64::MAX) })?;
        // SAFETY: It was just registered and is bound to KUnit's driver.
        let bound: &Device<Bound> = unsafe { <Device>::from_raw(dev).as_bound() };

        Ok(Self {
            svm: GpuSvm::new(bound, &mm, Mock::new())?,
            _mm: mm,
            dev,
        })
    }

    /// Unbinds the device while the mirror is alive.
    fn unbind(&self) {
        // SAFETY: The device was registered by this test and is unregistered once.
        unsafe {
            let test = bindings::kunit_get_current_test();

            bindings::kunit_device_unregister(test, self.dev);
        }
    }

    fn fault(&self, addr: usize, len: usize, access: Access) -> Result<FaultDone, FaultError> {
        self.try_fault(addr, len, access)
            .map_err(|failed| failed.error)
    }

    fn try_fault(&self, addr: usize, len: usize, access: Access) -> Result<FaultDone, Unresolved> {
        self.svm
            .fault(addr..addr + len, access, &FaultOptions::default())
    }

    /// As for an explicit request: nothing but the span.
    fn fault_exact(
        &self,
        addr: usize,
        len: usize,
        access: Access,
    ) -> Result<FaultDone, FaultError> {
        let options = FaultOptions {
            around: false,
            ..FaultOptions::default()
        };

        self.svm
            .fault(addr..addr + len, access, &options)
            .map_err(|failed| failed.error)
    }

    fn snapshot(
        &self,
        span: core::ops::Range<usize>,
        mut f: impl FnMut(usize, PageState),
    ) -> Result<(), FaultError> {
        self.svm.snapshot(span, |addr, state| {
            f(addr, state);
            Ok(())
        })
    }

    fn accessible(&self, addr: usize, len: usize) -> (usize, usize) {
        self.svm.driver().accessible(&(addr..addr + len))
    }

    fn stats(&self) -> Stats {
        self.svm.stats()
    }

    /// No rule was broken, and the gauges say what the page table says.
    fn is_sound(&self) -> bool {
        let stats = self.stats();

        self.svm.driver().broken.load(Relaxed) == 0
            && stats.segments == self.svm.driver().entries() as u64
            && stats.mapped_bytes as usize == self.accessible(0, usize::MAX).0
    }

    /// Waits until the collector has left `count` ranges.
    fn wait_for_ranges(&self, count: u64) -> bool {
        for _ in 0..200 {
            if self.stats().ranges == count {
                return true;
            }
            fsleep(Delta::from_millis(5));
        }
        false
    }
}

/// Anonymous memory, aligned to a window of the mock, that CPU and mirror use page by page.
fn map_pages(len: usize, prot: usize) -> Result<usize> {
    let addr = vm_mmap_aligned(len, SZ_8M, prot)?;

    madvise(addr, len, Advice::NoHugePage)?;
    Ok(addr)
}

#[kernel::macros::kunit_tests(drm_gpusvm_span)]
mod span_tests {
    use super::*;

    #[test]
    fn chunk_is_the_largest_that_fits() {
        // Covers B-23 and H-12.
        const SMALL: usize = PAGE_SIZE;
        const MEDIUM: usize = 16 * PAGE_SIZE;
        const LARGE: usize = 512 * PAGE_SIZE;

        let sizes = &[LARGE, MEDIUM, SMALL];
        let all = |_: &core::ops::Range<usize>| true;
        let vma = LARGE + SMALL..4 * LARGE;

        // The window around the address begins before the VMA.
        assert_eq!(
            span::choose_chunk(LARGE + 2 * SMALL, sizes, &vma, all),
            Some(LARGE + 2 * SMALL..LARGE + 3 * SMALL)
        );
        assert_eq!(
            span::choose_chunk(LARGE + MEDIUM, sizes, &vma, all),
            Some(LARGE + MEDIUM..LARGE + 2 * MEDIUM)
        );
        assert_eq!(
            span::choose_chunk(2 * LARGE + 12345, sizes, &vma, all),
            Some(2 * LARGE..3 * LARGE)
        );
        // One step to either side of the boundary.
        assert_eq!(
            span::choose_chunk(3 * LARGE, sizes, &vma, all),
            Some(3 * LARGE..4 * LARGE)
        );
        assert_eq!(span::choose_chunk(4 * LARGE, sizes, &vma, all), None);
        // A neighbour is in the way of the large ones.
        assert_eq!(
            span::choose_chunk(2 * LARGE, sizes, &vma, |c| c.end - c.start < MEDIUM),
            Some(2 * LARGE..2 * LARGE + SMALL)
        );
    }

    #[test]
    fn writes_in_a_run_are_continued() {
        let limit = 0..BLOCK_SIZE;
        let page = |i: usize| i * PAGE_SIZE..(i + 1) * PAGE_SIZE;
        let mut writes = WriteRun::NONE;
        let (mut at, mut faults) = (1, 0);

        // A page beside the run is on its own.
        assert_eq!(writes.ahead(&page(7), &limit), page(7));
        assert_eq!(writes.ahead(&page(1), &limit), page(1));
        assert_eq!(writes.ahead(&page(2), &limit), page(2).start..page(3).end);
        assert_eq!(writes.ahead(&page(1), &limit), page(1));
        // A block takes as many faults as its number of pages has bits.
        while at < BLOCK_SIZE / PAGE_SIZE {
            let ahead = writes.ahead(&page(at), &limit);

            assert!(at < 3 || ahead.end - ahead.start <= ahead.start);
            assert!(ahead.start == page(at).start && ahead.end <= limit.end);
            at = ahead.end / PAGE_SIZE;
            faults += 1;
        }
        assert!(faults <= 10);
        // It ends when what is ahead cannot be had.
        assert_eq!(writes.ahead(&page(1), &limit), page(1));
        writes.stop();
        assert_eq!(writes.ahead(&page(2), &limit), page(2));
    }

    #[test]
    fn arithmetic_holds_at_the_ends() {
        assert_eq!(span::block_count(&(0..1)), 1);
        assert_eq!(span::block_count(&(BLOCK_SIZE - 1..BLOCK_SIZE + 1)), 2);
        assert_eq!(span::block_count(&(usize::MAX - BLOCK_SIZE..usize::MAX)), 2);
        assert!(span::aligned_window(usize::MAX, SZ_2M).is_none());
        assert!(span::intersect(&(0..10), &(20..30)).is_empty());
        assert!(!span::overlap(&(0..10), &(10..20)));
        assert!(!span::is_whole_pages(&(PAGE_SIZE..PAGE_SIZE)));
        assert!(!span::is_whole_pages(&(1..PAGE_SIZE)));
        assert!(span::chunk_sizes_are_valid(&[SZ_2M, SZ_4K]));
        assert!(!span::chunk_sizes_are_valid(&[SZ_4K, SZ_2M]));
        assert!(!span::chunk_sizes_are_valid(&[]));
    }
}

#[kernel::macros::kunit_tests(drm_gpusvm)]
mod fault_tests {
    use super::*;

    #[test]
    fn fault_maps_and_second_fault_is_short() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;

        let first = t.fault(addr, PAGE_SIZE, Access::Write);
        assert!(first.is_ok_and(|done| !done.short && done.walks > 0));
        // The neighbourhood came along.
        assert_eq!(t.accessible(addr, BLOCK_SIZE), (BLOCK_SIZE, BLOCK_SIZE));
        let second = t.fault(addr + 5 * PAGE_SIZE, PAGE_SIZE, Access::Write);
        assert!(second.is_ok_and(|done| done.short && done.walks == 0));
        assert_eq!(t.stats().short_faults, 1);
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn exact_request_leaves_neighbours_alone() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;

        let done = t.fault_exact(addr + 3 * PAGE_SIZE, 2 * PAGE_SIZE, Access::Write);
        assert!(done.is_ok());
        assert_eq!(
            t.accessible(addr, BLOCK_SIZE),
            (2 * PAGE_SIZE, 2 * PAGE_SIZE)
        );
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn munmap_stops_the_device_before_it_returns() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(2 * BLOCK_SIZE, PROT_RW)?;

        assert!(t.fault(addr, 2 * BLOCK_SIZE, Access::Write).is_ok());
        assert_eq!(t.stats().ranges, 2);
        vm_munmap(addr, 2 * BLOCK_SIZE)?;
        assert_eq!(t.accessible(addr, 2 * BLOCK_SIZE), (0, 0));
        assert_eq!(t.stats().mapped_bytes, 0);
        assert!(t.svm.driver().waited.load(Relaxed) > 0);
        // One stop for both ranges: their blocks are adjacent.
        assert_eq!(t.svm.driver().stopped.load(Relaxed), 1);
        assert!(t.wait_for_ranges(0));
        assert_eq!(t.svm.driver().released.load(Relaxed), 2);
        assert_eq!(
            t.fault(addr, PAGE_SIZE, Access::Read),
            Err(FaultError::Unmapped)
        );
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn partial_munmap_leaves_the_rest_usable() -> Result {
        // Covers B-25c: what is gone is not mapped again.
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;
        let half = BLOCK_SIZE / 2;

        assert!(t.fault(addr, PAGE_SIZE, Access::Write).is_ok());
        vm_munmap(addr + half, half)?;
        assert_eq!(t.accessible(addr, BLOCK_SIZE), (0, 0));
        // Right away, without waiting for the collector.
        assert!(t.fault(addr, half, Access::Write).is_ok());
        assert_eq!(t.accessible(addr, BLOCK_SIZE), (half, half));
        assert_eq!(
            t.fault(addr + half, PAGE_SIZE, Access::Read),
            Err(FaultError::Unmapped)
        );
        // A fault across the end maps what there is, and says that it did not get all of it.
        assert_eq!(
            t.fault(addr + half - PAGE_SIZE, 2 * PAGE_SIZE, Access::Read),
            Err(FaultError::Unmapped)
        );
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn existing_range_is_checked_against_todays_vmas() -> Result {
        // Covers H-4: in C this fault never ends.
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;

        assert!(t.fault(addr, PAGE_SIZE, Access::Write).is_ok());
        mprotect(addr + PAGE_SIZE, PAGE_SIZE, PROT_NONE)?;
        mprotect(addr + 2 * PAGE_SIZE, PAGE_SIZE, PROT_READ)?;
        assert!(t.fault(addr, PAGE_SIZE, Access::Write).is_ok());
        assert_eq!(
            t.fault(addr + PAGE_SIZE, PAGE_SIZE, Access::Read),
            Err(FaultError::Inaccessible)
        );
        assert_eq!(
            t.fault(addr + 2 * PAGE_SIZE, PAGE_SIZE, Access::Write),
            Err(FaultError::Access)
        );
        assert!(t
            .fault(addr + 2 * PAGE_SIZE, PAGE_SIZE, Access::Read)
            .is_ok());
        assert!(t
            .fault(addr + 3 * PAGE_SIZE, PAGE_SIZE, Access::Write)
            .is_ok());
        assert_eq!(t.stats().ranges, 1);
        assert_eq!(t.accessible(addr + PAGE_SIZE, PAGE_SIZE), (0, 0));
        assert_eq!(
            t.accessible(addr + 2 * PAGE_SIZE, PAGE_SIZE),
            (PAGE_SIZE, 0)
        );
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn write_after_read_gets_write_permission() -> Result {
        // Covers H-10: a mapping for reading must not satisfy a write.
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;

        // Never touched, so a read fault finds the zero page, which is read-only.
        assert!(t.fault(addr, PAGE_SIZE, Access::Read).is_ok());
        assert_eq!(t.accessible(addr, PAGE_SIZE), (PAGE_SIZE, 0));
        let done = t.fault(addr, PAGE_SIZE, Access::Write);
        assert!(done.is_ok_and(|done| !done.short));
        assert_eq!(t.accessible(addr, PAGE_SIZE), (PAGE_SIZE, PAGE_SIZE));
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn read_of_a_writable_page_maps_it_writable() -> Result {
        // W-29.
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;

        write_user(addr, 1)?;
        assert!(t.fault(addr, PAGE_SIZE, Access::Read).is_ok());
        assert_eq!(t.accessible(addr, PAGE_SIZE), (PAGE_SIZE, PAGE_SIZE));
        assert!(t
            .fault(addr, PAGE_SIZE, Access::Write)
            .is_ok_and(|done| done.short));
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn bad_spans_are_refused() -> Result {
        // Covers H-12: the first address behind the end is refused, the last one before it is not.
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;
        let invalid = Err(FaultError::Invalid);
        let top = usize::MAX - PAGE_SIZE + 1;

        assert_eq!(t.fault(addr + 1, PAGE_SIZE, Access::Read), invalid);
        assert_eq!(t.fault(addr, PAGE_SIZE - 1, Access::Read), invalid);
        assert_eq!(t.fault(addr, 0, Access::Read), invalid);
        assert_eq!(t.fault(top - PAGE_SIZE, PAGE_SIZE, Access::Read), invalid);
        // The last page of the user half exists, but is not mapped; the first beyond it is refused.
        // SAFETY: The address space is valid; its size does not change.
        let end = unsafe { (*t._mm.as_raw()).__bindgen_anon_1.task_size };
        assert_eq!(t.fault(end, PAGE_SIZE, Access::Read), invalid);
        assert_eq!(
            t.fault(end - PAGE_SIZE, PAGE_SIZE, Access::Read),
            Err(FaultError::Unmapped)
        );
        assert_eq!(t.stats().ranges, 0);
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn huge_page_is_one_segment_and_one_walk() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = vm_mmap_aligned(BLOCK_SIZE, BLOCK_SIZE, PROT_RW)?;

        madvise(addr, BLOCK_SIZE, Advice::HugePage)?;
        write_user(addr, 1)?;
        if !is_huge(&t, addr)? {
            skip(c"no huge page to be had");
            return Ok(());
        }
        // In the middle: the probe looks at the first page of the block (W-1).
        let done = t.fault(addr + 77 * PAGE_SIZE, PAGE_SIZE, Access::Write);
        assert!(done.is_ok_and(|done| done.walks == 1));
        assert_eq!(t.svm.driver().entries(), 1);
        assert_eq!(t.accessible(addr, BLOCK_SIZE), (BLOCK_SIZE, BLOCK_SIZE));
        assert!(t.is_sound());
        Ok(())
    }

    /// Whether a huge page is mapped at `addr`.
    fn is_huge(t: &Fixture, addr: usize) -> Result<bool> {
        let mut huge = false;

        t.snapshot(addr..addr + PAGE_SIZE, |_, state| {
            huge = matches!(
                state,
                PageState::Mapped { order, .. } if PAGE_SIZE << order >= BLOCK_SIZE
            );
        })?;
        Ok(huge)
    }

    #[test]
    fn range_inside_a_huge_page_stays_inside() -> Result {
        // Covers B-1: the order that HMM reports is that of the CPU's mapping.
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = vm_mmap_aligned(BLOCK_SIZE, BLOCK_SIZE, PROT_RW)?;

        madvise(addr, BLOCK_SIZE, Advice::HugePage)?;
        write_user(addr, 1)?;
        assert!(t
            .fault_exact(addr + 5 * PAGE_SIZE, PAGE_SIZE, Access::Read)
            .is_ok());
        // What is not asked for may be mapped as well, but nothing outside of the mapping.
        let (read, _) = t.accessible(0, usize::MAX);
        assert_eq!(read, t.accessible(addr, BLOCK_SIZE).0);
        assert_eq!(t.accessible(addr + 5 * PAGE_SIZE, PAGE_SIZE).0, PAGE_SIZE);
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn span_may_cross_windows_and_ranges() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        // Windows of the mock are 8 MiB.
        let room = vm_mmap_aligned(2 * SZ_8M, SZ_8M, PROT_RW)?;
        let addr = room + SZ_8M - 3 * PAGE_SIZE;

        madvise(room, 2 * SZ_8M, Advice::NoHugePage)?;
        assert!(t.fault_exact(addr, 7 * PAGE_SIZE, Access::Write).is_ok());
        assert_eq!(
            t.accessible(addr, 7 * PAGE_SIZE),
            (7 * PAGE_SIZE, 7 * PAGE_SIZE)
        );
        assert_eq!(t.stats().ranges, 2);
        vm_munmap(room, 2 * SZ_8M)?;
        assert!(t.wait_for_ranges(0));
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn invalidation_between_walk_and_commit_is_noticed() -> Result {
        // Covers B-33: the second walk has a sequence number of its own.
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;

        write_user(addr, 1)?;
        t.svm.driver().set_hook(|span| {
            let _ = madvise(span.start, PAGE_SIZE, Advice::DontNeed);
        });
        let done = t.fault(addr, PAGE_SIZE, Access::Write);
        assert!(done.is_ok_and(|done| done.retries == 1));
        assert_eq!(t.accessible(addr, PAGE_SIZE), (PAGE_SIZE, PAGE_SIZE));
        // What was committed is the new page: another madvise finds and stops it.
        madvise(addr, PAGE_SIZE, Advice::DontNeed)?;
        assert_eq!(t.accessible(addr, PAGE_SIZE), (0, 0));
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn munmap_between_walk_and_commit_ends_the_fault() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;

        t.svm.driver().set_hook(|span| {
            let _ = vm_munmap(span.start, span.end - span.start);
        });
        assert_eq!(
            t.fault(addr, PAGE_SIZE, Access::Write),
            Err(FaultError::Unmapped)
        );
        assert!(t.wait_for_ranges(0));
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn invalidation_across_ranges_stops_all_of_them() -> Result {
        // Covers H-6: it begins in the middle of the first range and ends in that of the last one.
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(3 * BLOCK_SIZE, PROT_RW)?;

        assert!(t.fault(addr, 3 * BLOCK_SIZE, Access::Write).is_ok());
        assert_eq!(t.stats().ranges, 3);
        madvise(
            addr + BLOCK_SIZE - PAGE_SIZE,
            BLOCK_SIZE + 2 * PAGE_SIZE,
            Advice::DontNeed,
        )?;
        assert_eq!(t.accessible(addr, 3 * BLOCK_SIZE), (0, 0));
        assert_eq!(t.svm.driver().stopped.load(Relaxed), 1);
        assert_eq!(t.stats().mapped_bytes, 0);
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn faults_in_vain_leave_no_lock_held() -> Result {
        // Covers B-2.
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;
        let mut errors = 0;

        mprotect(addr, PAGE_SIZE, PROT_NONE)?;
        vm_munmap(addr + PAGE_SIZE, PAGE_SIZE)?;
        for page in [0, 1] {
            if t.fault(addr + page * PAGE_SIZE, PAGE_SIZE, Access::Read)
                .is_err()
            {
                errors += 1;
            }
        }
        t.snapshot(addr..addr + BLOCK_SIZE, |_, _| {})?;
        *t.svm.driver().prepare_error.lock() = Some(ENOSPC);
        if t.fault(addr + 2 * PAGE_SIZE, PAGE_SIZE, Access::Read)
            .is_err()
        {
            errors += 1;
        }
        assert_eq!(errors, 3);
        assert!(t._mm.mmap_read_trylock().is_some());
        // Takes the mmap lock and the notifier lock for writing, and the collector the range's mutex.
        assert!(t
            .fault(addr + 2 * PAGE_SIZE, PAGE_SIZE, Access::Read)
            .is_ok());
        vm_munmap(addr, BLOCK_SIZE)?;
        assert!(t.wait_for_ranges(0));
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn fault_in_vain_leaves_no_window_behind() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;

        vm_munmap(addr, BLOCK_SIZE)?;
        assert_eq!(
            t.fault(addr, PAGE_SIZE, Access::Read),
            Err(FaultError::Unmapped)
        );
        t.snapshot(addr..addr + 2 * PAGE_SIZE, |_, _| {})?;
        assert!(t.svm.find_window(addr).is_none());
        Ok(())
    }

    #[test]
    fn driver_can_ask_for_another_try() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;

        t.svm.driver().again_commit.store(3, Relaxed);
        let done = t.fault(addr, PAGE_SIZE, Access::Write);
        assert!(done.is_ok_and(|done| done.retries == 3));
        assert!(t.is_sound());
        // For ever: the deadline ends it.
        let options = FaultOptions {
            timeout: Some(kernel::time::msecs_to_jiffies(20)),
            ..FaultOptions::default()
        };
        t.svm.driver().again_commit.store(u32::MAX, Relaxed);
        let span = addr + BLOCK_SIZE / 2..addr + BLOCK_SIZE / 2 + PAGE_SIZE;
        madvise(span.start, PAGE_SIZE, Advice::DontNeed)?;
        let late = t.svm.fault(span, Access::Write, &options);
        assert!(late.is_err_and(|failed| failed.error == FaultError::Timeout));
        assert_eq!(t.stats().mapped_bytes, 0);
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn read_only_neighbour_is_mapped_with_what_it_has() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;

        for i in 0..8 {
            write_user(addr + i * PAGE_SIZE, 1)?;
        }
        // The range is made over all of it; later it is in three VMAs.
        assert!(t.fault(addr, PAGE_SIZE, Access::Write).is_ok());
        mprotect(addr + 2 * PAGE_SIZE, 2 * PAGE_SIZE, PROT_READ)?;
        assert!(t.fault(addr, PAGE_SIZE, Access::Write).is_ok());
        assert_eq!(
            t.accessible(addr + 2 * PAGE_SIZE, 2 * PAGE_SIZE),
            (2 * PAGE_SIZE, 0)
        );
        assert_eq!(
            t.accessible(addr + 4 * PAGE_SIZE, 4 * PAGE_SIZE),
            (4 * PAGE_SIZE, 4 * PAGE_SIZE)
        );
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn failed_commit_leaves_nothing_mapped() -> Result {
        // Covers B-6.
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;

        t.svm.driver().fail_commit.store(1, Relaxed);
        assert_eq!(
            t.fault(addr, PAGE_SIZE, Access::Write),
            Err(FaultError::NoMemory)
        );
        assert_eq!(t.stats().mapped_bytes, 0);
        assert!(t.is_sound());
        t.svm.driver().fail_prepare.store(1, Relaxed);
        assert_eq!(
            t.fault(addr, PAGE_SIZE, Access::Write),
            Err(FaultError::NoMemory)
        );
        assert!(t.fault(addr, PAGE_SIZE, Access::Write).is_ok());
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn commit_that_failed_half_way_is_taken_back() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;
        let driver = t.svm.driver();

        driver.fail_late.store(1, Relaxed);
        assert_eq!(
            t.fault(addr, PAGE_SIZE, Access::Write),
            Err(FaultError::Driver(EIO))
        );
        // By stop and wait, and not behind the driver's back.
        assert_eq!(driver.stopped.load(Relaxed), 1);
        assert_eq!(driver.waited.load(Relaxed), 1);
        assert_eq!(t.accessible(addr, BLOCK_SIZE), (0, 0));
        assert_eq!(t.stats().mapped_bytes, 0);
        assert!(t.fault(addr, PAGE_SIZE, Access::Write).is_ok());
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn errno_of_the_driver_is_kept() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;

        for (errno, error) in [
            (ENOMEM, FaultError::NoMemory),
            (EINTR, FaultError::Killed),
            (ENODEV, FaultError::Gone),
            (ENXIO, FaultError::Gone),
            (ENOSPC, FaultError::Driver(ENOSPC)),
            (EFAULT, FaultError::Driver(EFAULT)),
        ] {
            *t.svm.driver().prepare_error.lock() = Some(errno);
            assert_eq!(t.fault(addr, PAGE_SIZE, Access::Write), Err(error));
        }
        assert_eq!(Error::from(FaultError::Driver(ENOSPC)), ENOSPC);
        assert!(t.fault(addr, PAGE_SIZE, Access::Write).is_ok());
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn failed_request_tells_the_page() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(2 * BLOCK_SIZE, PROT_RW)?;
        let unresolved = |error, page: usize| {
            Err(Unresolved {
                error,
                addr: addr + page * PAGE_SIZE,
            })
        };

        // Neither at the beginning of a block, nor of a power of two of pages.
        let all = 2 * BLOCK_SIZE / PAGE_SIZE;
        for page in [1, all / 7, all / 2 + 1, all - 1] {
            // In the VMA itself, as a guard region is: only a walk can find it.
            madvise(addr + page * PAGE_SIZE, PAGE_SIZE, Advice::GuardInstall)?;
            assert_eq!(
                t.try_fault(addr, 2 * BLOCK_SIZE, Access::Read),
                unresolved(FaultError::Inaccessible, page)
            );
            // Everything before it was mapped.
            let len = page * PAGE_SIZE;
            assert_eq!(t.accessible(addr, len).0, len);
            assert_eq!(t.accessible(addr + len, PAGE_SIZE), (0, 0));
            madvise(addr + page * PAGE_SIZE, PAGE_SIZE, Advice::GuardRemove)?;
        }
        let page = all / 2 + all / 10;
        mprotect(addr + page * PAGE_SIZE, PAGE_SIZE, PROT_READ)?;
        assert_eq!(
            t.try_fault(addr, 2 * BLOCK_SIZE, Access::Write),
            unresolved(FaultError::Access, page)
        );
        let page = all / 2 + all / 5;
        vm_munmap(addr + page * PAGE_SIZE, PAGE_SIZE)?;
        assert_eq!(
            t.try_fault(addr + (page - 1) * PAGE_SIZE, 2 * PAGE_SIZE, Access::Write),
            unresolved(FaultError::Unmapped, page)
        );
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn address_space_that_is_reaped_is_gone() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;

        write_user(addr, 1)?;
        // As the OOM reaper does before it takes pages away.
        set_unstable(&t._mm, true);
        let reaped = t.fault(addr, PAGE_SIZE, Access::Write);
        let hole = t.fault(PAGE_SIZE, PAGE_SIZE, Access::Write);
        set_unstable(&t._mm, false);
        assert_eq!(reaped, Err(FaultError::Gone));
        assert_eq!(hole, Err(FaultError::Gone));
        assert!(t.fault(addr, PAGE_SIZE, Access::Write).is_ok());
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn unbind_unmaps_and_ends_faults() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(2 * BLOCK_SIZE, PROT_RW)?;

        assert!(t.fault(addr, BLOCK_SIZE, Access::Write).is_ok());
        t.unbind();
        assert_eq!(t.accessible(addr, 2 * BLOCK_SIZE), (0, 0));
        assert_eq!(t.stats().mapped_bytes, 0);
        let gone = Err(FaultError::Gone);
        assert_eq!(t.fault(addr, PAGE_SIZE, Access::Write), gone);
        assert_eq!(t.fault(addr + BLOCK_SIZE, PAGE_SIZE, Access::Write), gone);
        // The address space can change as before.
        vm_munmap(addr, 2 * BLOCK_SIZE)?;
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn drop_unmaps_while_memory_is_in_use() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;

        assert!(t.fault(addr, BLOCK_SIZE, Access::Write).is_ok());
        drop(t);
        // Would call into the freed mirror if its notifier were still there.
        write_user(addr, 1)?;
        madvise(addr, BLOCK_SIZE, Advice::DontNeed)?;
        assert_eq!(read_user(addr)?, 0);
        vm_munmap(addr, BLOCK_SIZE)?;
        Ok(())
    }

    #[test]
    fn end_of_the_address_space_ends_the_mirror() -> Result {
        // Covers B-8: a fault that failed has put its reference to the address space.
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        // SAFETY: The device is bound until the test ends.
        let dev = unsafe { <Device>::from_raw(t.dev).as_bound() };
        let other = new_mm()?;
        // No program was started in it, which is when the size is set.
        //
        // SAFETY: Nobody else uses the new address space; that of the test is valid.
        unsafe {
            (*other.as_raw()).__bindgen_anon_1.task_size =
                (*t._mm.as_raw()).__bindgen_anon_1.task_size
        };
        let svm = GpuSvm::new(dev, &other, Mock::new())?;
        let options = FaultOptions::default();
        let span = SZ_2M..SZ_2M + PAGE_SIZE;

        assert!(!svm.mm_is_current());
        assert!(t.svm.mm_is_current());
        let fault = || {
            svm.fault(span.clone(), Access::Read, &options)
                .map_err(|failed| failed.error)
        };

        assert_eq!(fault(), Err(FaultError::Unmapped));
        // The mirror does not keep the address space alive.
        drop(other);
        assert_eq!(fault(), Err(FaultError::Gone));
        Ok(())
    }

    #[test]
    fn snapshot_of_a_long_span_has_every_page_once() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        // Over two borders of windows, which are 8 MiB, and not aligned to a block.
        let len = 2 * SZ_8M;
        let room = map_pages(len, PROT_RW)?;
        let span = room + 3 * PAGE_SIZE..room + len - PAGE_SIZE;
        let (mut next, mut mapped, mut wrong) = (span.start, 0, 0);

        write_user(room + SZ_8M, 1)?;
        t.snapshot(span.clone(), |at, state| {
            if at != next {
                wrong += 1;
            }
            next = at + PAGE_SIZE;
            if matches!(state, PageState::Mapped { .. }) {
                mapped += 1;
            }
        })?;
        assert_eq!((next, mapped, wrong), (span.end, 1, 0));
        // It ends when it is told to, and no window is left.
        let mut calls = 0;
        let ended = t.svm.snapshot(span.clone(), |_, _| {
            calls += 1;
            Err(FaultError::Invalid)
        });
        assert_eq!((ended, calls), (Err(FaultError::Invalid), 1));
        assert!(t.svm.find_window(span.start).is_none());
        assert!(t.svm.find_window(span.end).is_none());
        Ok(())
    }

    #[test]
    fn snapshot_does_not_fault() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(64 * PAGE_SIZE, PROT_RW)?;
        let (mut mapped, mut seen) = (0, 0);

        write_user(addr + 40 * PAGE_SIZE, 1)?;
        t.snapshot(addr..addr + 64 * PAGE_SIZE, |at, state| {
            seen += 1;
            if let PageState::Mapped { write, .. } = state {
                mapped += 1;
                if at != addr + 40 * PAGE_SIZE || !write {
                    mapped += 100;
                }
            }
        })?;
        assert_eq!((seen, mapped), (64, 1));
        assert_eq!(t.stats().ranges, 0);
        assert!(t.is_sound());
        Ok(())
    }
}
