// SPDX-License-Identifier: GPL-2.0 OR MIT

//! KUnit tests of device memory, with a real address space, and a GPU whose memory is a vector.
//!
//! The device has no IOMMU, so that a DMA address is a physical address.

mod gpu;

use kernel::{
    kunit::mm::*,
    page::PAGE_SIZE,
    prelude::*,
    sizes::*,
    time::Delta, //
};

use super::{
    super::{
        Access,
        FaultError,
        Placement,
        BLOCK_SIZE, //
    },
    alloc::{
        Allocator,
        PAGES, //
    },
    Fence,
    MigrateOptions,
    Migrated, //
};

use self::gpu::{
    Fixture,
    PATTERN, //
};

/// Base pages, each with a number of its own.
fn pages(len: usize) -> Result<usize> {
    let addr = vm_mmap_aligned(len, BLOCK_SIZE, PROT_RW)?;

    madvise(addr, len, Advice::NoHugePage)?;
    fill(addr, len)?;
    Ok(addr)
}

/// Memory in huge pages, each page with a number of its own; `None` if there are none.
fn huge(len: usize) -> Result<Option<usize>> {
    let addr = vm_mmap_aligned(len, BLOCK_SIZE, PROT_RW)?;

    fill(addr, len)?;
    Ok(madvise(addr, len, Advice::Collapse).is_ok().then_some(addr))
}

fn fill(addr: usize, len: usize) -> Result {
    for page in (addr..addr + len).step_by(PAGE_SIZE) {
        write_user(page, number(page))?;
    }
    Ok(())
}

fn number(page: usize) -> u64 {
    page as u64 ^ PATTERN
}

/// Whether all pages have their numbers, as the CPU sees it.
fn is_intact(addr: usize, len: usize) -> bool {
    (addr..addr + len)
        .step_by(PAGE_SIZE)
        .all(|page| read_user(page) == Ok(number(page)))
}

fn moved(migrated: Result<Migrated>) -> usize {
    migrated.map_or(0, |migrated| migrated.moved)
}

#[kernel::macros::kunit_tests(drm_gpusvm_devmem_alloc)]
mod alloc_tests {
    use super::*;

    fn allocator(chunks: usize) -> Result<Pin<KBox<Allocator>>> {
        KBox::pin_init(Allocator::new((chunks * BLOCK_SIZE) as u64), GFP_KERNEL)
    }

    #[test]
    fn what_is_not_taken_comes_back() -> Result {
        let alloc = allocator(2)?;
        let all = alloc.available();
        let room = alloc.reserve(5, false)?;

        assert_eq!(room.total(), 5);
        assert_eq!(alloc.used(), 5);
        assert_eq!(alloc.available(), all - BLOCK_SIZE as u64);
        drop(room);
        assert_eq!(alloc.used(), 0);
        assert_eq!(alloc.available(), all);
        Ok(())
    }

    #[test]
    fn pages_share_a_chunk_and_the_last_one_gives_it_back() -> Result {
        let alloc = allocator(2)?;
        let all = alloc.available();
        let mut first = alloc.reserve(3, false)?;
        let mut second = alloc.reserve(4, false)?;
        let (a, b) = (first.page(0), second.page(0));

        assert_eq!(a.map(|page| page / PAGES), b.map(|page| page / PAGES));
        assert!(second.whole().is_none());
        first.take(0..3);
        second.take(0..4);
        drop(first);
        drop(second);
        assert_eq!(alloc.used(), 7);
        alloc.free(a.ok_or(EINVAL)?, 3);
        assert_eq!(alloc.used(), 4);
        assert_eq!(alloc.available(), all - BLOCK_SIZE as u64);
        alloc.free(b.ok_or(EINVAL)?, 4);
        assert_eq!(alloc.available(), all);
        Ok(())
    }

    #[test]
    fn holes_between_pages_are_found() -> Result {
        let alloc = allocator(1)?;
        let mut room = alloc.reserve(PAGES, false)?;
        let base = room.page(0).ok_or(EINVAL)?;

        assert_eq!(room.total(), PAGES);
        room.take(0..PAGES);
        drop(room);
        assert_eq!(alloc.reserve(1, false)?.total(), 0);
        // Every third page, across the borders of words.
        for page in (0..PAGES).step_by(3) {
            alloc.free(base + page, 1);
        }
        let room = alloc.reserve(PAGES, false)?;

        assert_eq!(room.total(), PAGES.div_ceil(3));
        for i in 0..room.total() {
            assert_eq!(room.page(i), Some(base + 3 * i));
        }
        assert_eq!(room.page(room.total()), None);
        Ok(())
    }

    #[test]
    fn whole_chunks_first_then_pages() -> Result {
        let alloc = allocator(2)?;
        let mut small = alloc.reserve(1, false)?;
        let whole = alloc.reserve(PAGES, true)?;

        assert!(whole.whole().is_some());
        // There is no third chunk: pages of the first one, without the one that is in use.
        let rest = alloc.reserve(PAGES, true)?;
        assert!(rest.whole().is_none());
        assert_eq!(rest.total(), PAGES - 1);
        small.take(0..1);
        Ok(())
    }

    #[test]
    fn the_least_recently_used_chunk_is_the_victim() -> Result {
        let alloc = allocator(3)?;
        let mut chunks = [0; 3];

        for chunk in &mut chunks {
            let mut room = alloc.reserve(PAGES, true)?;

            *chunk = room.whole().ok_or(EINVAL)?;
            room.take(0..PAGES);
        }
        alloc.touch(chunks[0]);
        let now = alloc.clock();
        let first = alloc.victim(now);
        assert_eq!(first.as_ref().map(|v| v.pages().start), Some(chunks[1]));
        // Nothing gets in while it is emptied, and it is not chosen twice.
        let second = alloc.victim(now);
        assert_eq!(second.as_ref().map(|v| v.pages().start), Some(chunks[2]));
        alloc.free(chunks[1], PAGES);
        assert_eq!(alloc.reserve(1, false)?.total(), 0);
        drop(first);
        assert_eq!(alloc.reserve(PAGES, true)?.whole(), Some(chunks[1]));
        drop(second);
        // It was in vain, so another one comes first the next time.
        let third = alloc.victim(u64::MAX);
        assert_eq!(third.as_ref().map(|v| v.pages().start), Some(chunks[0]));
        drop(third);
        Ok(())
    }

    #[test]
    fn chunks_that_are_being_filled_are_no_victims() -> Result {
        let alloc = allocator(1)?;
        let mut room = alloc.reserve(2, false)?;

        room.take(0..2);
        assert!(alloc.victim(u64::MAX).is_none());
        drop(room);
        assert!(alloc.victim(u64::MAX).is_some());
        // Used later than this.
        assert!(alloc.victim(1).is_none());
        Ok(())
    }

    #[test]
    fn lost_chunks_are_not_filled_up() -> Result {
        let alloc = allocator(2)?;
        let mut room = alloc.reserve(1, false)?;
        let page = room.page(0).ok_or(EINVAL)?;

        room.take(0..1);
        drop(room);
        assert_eq!(alloc.lose_all(), 1);
        assert!(alloc.is_lost(page));
        let other = alloc.reserve(1, false)?.page(0).ok_or(EINVAL)?;
        assert!(other / PAGES != page / PAGES);
        // Empty, it starts anew.
        alloc.free(page, 1);
        let one = alloc.reserve(PAGES, true)?;
        let two = alloc.reserve(PAGES, true)?;
        assert!(one.whole().is_some() && two.whole().is_some());
        assert!(!alloc.is_lost(page));
        Ok(())
    }

    #[test]
    fn fence_tells_what_the_engine_said() -> Result {
        let (fence, signal) = Fence::new()?;
        signal.done(Ok(()));
        assert!(fence.wait().is_ok());

        let (fence, signal) = Fence::new()?;
        signal.done(Err(ENXIO));
        assert_eq!(fence.wait(), Err(ENXIO));

        // An engine that forgets a plan keeps nobody waiting.
        let (fence, signal) = Fence::new()?;
        drop(signal);
        assert_eq!(fence.wait(), Err(EIO));
        Ok(())
    }
}

#[kernel::macros::kunit_tests(drm_gpusvm_devmem)]
mod migrate_tests {
    use super::*;

    const LEN: usize = 8 * PAGE_SIZE;

    #[test]
    fn pages_go_and_come_back() -> Result {
        let t = Fixture::create(4)?;
        let addr = pages(LEN)?;

        assert_eq!(moved(t.migrate_in(addr, LEN)), 8);
        assert_eq!(t.memory.stats().used, LEN as u64);
        assert_eq!(t.memory.stats().pages_in, 8);
        // Already there.
        assert_eq!(
            t.migrate_in(addr, LEN),
            Ok(Migrated {
                moved: 0,
                moved_large: 0,
                skipped: 8
            })
        );
        assert_eq!(moved(t.migrate_out(addr, LEN)), 8);
        assert_eq!(t.memory.stats().used, 0);
        assert!(is_intact(addr, LEN));
        assert_eq!(t.memory.stats().cpu_faults, 0);
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn cpu_brings_a_window_back_not_everything() -> Result {
        let t = Fixture::create(4)?;
        let len = BLOCK_SIZE;
        let addr = pages(len)?;

        assert_eq!(moved(t.migrate_in(addr, len)), PAGES);
        assert_eq!(read_user(addr), Ok(number(addr)));
        assert_eq!(t.memory.stats().cpu_faults, 1);
        assert_eq!(t.memory.stats().pages_out as usize, SZ_64K / PAGE_SIZE);
        // Going on, the window grows: far fewer faults than windows of 64 KiB.
        assert!(is_intact(addr, len));
        assert!(t.memory.stats().cpu_faults < (len / SZ_64K / 2) as u64);
        assert_eq!(t.memory.stats().used, 0);
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn holes_become_zeroes() -> Result {
        // B-20: the memory of the device is full of what others have left there.
        let t = Fixture::create(4)?;
        let addr = vm_mmap_aligned(2 * BLOCK_SIZE, BLOCK_SIZE, PROT_RW)?;

        madvise(addr, BLOCK_SIZE, Advice::NoHugePage)?;
        write_user(addr + PAGE_SIZE, 77)?;
        // The page of zeroes.
        assert_eq!(read_user(addr + 2 * PAGE_SIZE), Ok(0));
        assert_eq!(moved(t.migrate_in(addr, 2 * BLOCK_SIZE)), 2 * PAGES);
        for page in [0, 2, 3, PAGES, 2 * PAGES - 1] {
            assert_eq!(t.gpu_read(addr + page * PAGE_SIZE), Ok(0));
        }
        assert_eq!(t.gpu_read(addr + PAGE_SIZE), Ok(77));
        assert_eq!(read_user(addr), Ok(0));
        assert_eq!(read_user(addr + PAGE_SIZE), Ok(77));
        assert_eq!(read_user(addr + 2 * BLOCK_SIZE - 8), Ok(0));
        vm_munmap(addr, 2 * BLOCK_SIZE)?;
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn holes_stay_holes_if_asked_for() -> Result {
        let t = Fixture::create(4)?;
        let addr = vm_mmap_aligned(BLOCK_SIZE, BLOCK_SIZE, PROT_RW)?;
        let options = MigrateOptions {
            populate: false,
            ..MigrateOptions::default()
        };

        madvise(addr, BLOCK_SIZE, Advice::NoHugePage)?;
        write_user(addr + PAGE_SIZE, 77)?;
        let done = t.svm.migrate_to_device(addr..addr + BLOCK_SIZE, &options);
        assert_eq!(moved(done), 1);
        assert_eq!(t.memory.stats().used, PAGE_SIZE as u64);
        vm_munmap(addr, BLOCK_SIZE)?;
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn large_folios_stay_whole_both_ways() -> Result {
        let t = Fixture::create(4)?;
        let Some(addr) = huge(BLOCK_SIZE)? else {
            skip(c"no huge pages");
            return Ok(());
        };
        let done = t.migrate_in(addr, BLOCK_SIZE)?;

        assert_eq!((done.moved, done.moved_large), (PAGES, PAGES));
        assert!(t.fault(addr, PAGE_SIZE, Access::Read).is_ok());
        // One segment.
        assert_eq!(t.own(addr, BLOCK_SIZE), (BLOCK_SIZE, 1));
        assert!(is_intact(addr, BLOCK_SIZE));
        let stats = t.memory.stats();
        assert_eq!(stats.pages_out_large as usize, PAGES);
        assert_eq!(stats.cpu_faults, 1);
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn base_pages_where_there_is_no_large_one() -> Result {
        let t = Fixture::create(4)?;
        let Some(addr) = huge(BLOCK_SIZE)? else {
            skip(c"no huge pages");
            return Ok(());
        };

        // To the device.
        t.memory.fail_allocations(1, 0);
        let done = t.migrate_in(addr, BLOCK_SIZE)?;
        assert_eq!((done.moved, done.moved_large), (PAGES, 0));
        assert!(is_intact(addr, BLOCK_SIZE));
        assert_eq!(t.memory.stats().used, 0);

        // To the system, by address.
        madvise(addr, BLOCK_SIZE, Advice::Collapse)?;
        let done = t.migrate_in(addr, BLOCK_SIZE)?;
        assert_eq!((done.moved, done.moved_large), (PAGES, PAGES));
        t.memory.fail_allocations(0, 1);
        let done = t.migrate_out(addr, BLOCK_SIZE)?;
        assert_eq!((done.moved, done.moved_large), (PAGES, 0));
        assert!(is_intact(addr, BLOCK_SIZE));

        // By a fault of the CPU.
        madvise(addr, BLOCK_SIZE, Advice::Collapse)?;
        assert_eq!(moved(t.migrate_in(addr, BLOCK_SIZE)), PAGES);
        t.memory.fail_allocations(0, 1);
        assert!(is_intact(addr, BLOCK_SIZE));

        // By eviction, which has to split the folio first (PM-19).
        madvise(addr, BLOCK_SIZE, Advice::Collapse)?;
        assert_eq!(moved(t.migrate_in(addr, BLOCK_SIZE)), PAGES);
        t.memory.fail_allocations(0, 1);
        assert!(t.memory.evict_all().is_ok());
        assert_eq!(t.memory.stats().used, 0);
        assert!(is_intact(addr, BLOCK_SIZE));
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn large_folio_that_is_cut_comes_back() -> Result {
        let t = Fixture::create(4)?;
        let Some(addr) = huge(BLOCK_SIZE)? else {
            skip(c"no huge pages");
            return Ok(());
        };
        let half = BLOCK_SIZE / 2;

        assert_eq!(moved(t.migrate_in(addr, BLOCK_SIZE)), PAGES);
        vm_munmap(addr + half, half)?;
        assert!(is_intact(addr, half));
        assert_eq!(t.memory.stats().used, 0);
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn odd_windows_and_many_vmas() -> Result {
        let t = Fixture::create(8)?;
        let len = 2 * BLOCK_SIZE + 6 * PAGE_SIZE;
        let addr = pages(4 * BLOCK_SIZE)? + 3 * PAGE_SIZE;

        // Several VMAs, one of them read-only.
        mprotect(addr + 5 * PAGE_SIZE, PAGE_SIZE, PROT_READ)?;
        assert_eq!(moved(t.migrate_in(addr, len)), len / PAGE_SIZE);
        assert!(t.fault(addr, len, Access::Read).is_ok());
        assert_eq!(t.own(addr, len).0, len);
        assert_eq!(
            t.fault(addr + 5 * PAGE_SIZE, PAGE_SIZE, Access::Write)
                .err(),
            Some(FaultError::Access)
        );
        assert_eq!(moved(t.migrate_in(addr + len, PAGE_SIZE)), 1);
        assert!(is_intact(addr, len + PAGE_SIZE));
        // A part that is not mapped is an error, what is before it moves.
        vm_munmap(addr + 8 * PAGE_SIZE, PAGE_SIZE)?;
        assert_eq!(t.migrate_in(addr, 16 * PAGE_SIZE), Err(EINVAL));
        assert_eq!(t.memory.stats().used, 8 * PAGE_SIZE as u64);
        assert!(is_intact(addr, 8 * PAGE_SIZE));
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn what_cannot_move_stays() -> Result {
        let t = Fixture::create(4)?;
        let shared = vm_mmap(0, LEN, PROT_RW, SHARED)?;

        fill(shared, LEN)?;
        assert_eq!(moved(t.migrate_in(shared, LEN)), 0);
        assert!(t.fault(shared, LEN, Access::Write).is_ok());
        assert_eq!(t.own(shared, LEN).0, 0);
        assert_eq!(t.svm.map_resident(shared..shared + LEN), Ok(0));
        assert!(is_intact(shared, LEN));
        assert_eq!(t.migrate_in(1, PAGE_SIZE), Err(EINVAL));
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn mappings_may_be_mixed() -> Result {
        let t = Fixture::create(4)?;
        let addr = pages(BLOCK_SIZE)?;
        let part = 10 * PAGE_SIZE;

        // The first page is in device memory, then system memory, then device memory.
        assert_eq!(moved(t.migrate_in(addr, part)), 10);
        assert_eq!(moved(t.migrate_in(addr + 2 * part, part)), 10);
        assert!(t.fault(addr, 3 * part, Access::Write).is_ok());
        assert_eq!(t.own(addr, 3 * part).0, 2 * part);
        assert_eq!(t.svm.driver().accessible(addr, 3 * part), 3 * part);
        for page in (addr..addr + 3 * part).step_by(PAGE_SIZE) {
            assert_eq!(t.gpu_read(page), Ok(number(page)));
            assert_eq!(t.gpu_write(page, number(page) + 1), Ok(()));
        }
        for page in (addr..addr + 3 * part).step_by(PAGE_SIZE) {
            assert_eq!(read_user(page), Ok(number(page) + 1));
        }
        vm_munmap(addr, BLOCK_SIZE)?;
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn only_resident_pages_are_mapped_on_request() -> Result {
        let t = Fixture::create(4)?;
        let addr = pages(LEN)?;

        assert_eq!(moved(t.migrate_in(addr, LEN / 2)), 4);
        assert_eq!(t.svm.map_resident(addr..addr + LEN), Ok(4));
        assert_eq!(t.own(addr, LEN).0, LEN / 2);
        assert_eq!(t.svm.driver().accessible(addr, LEN), LEN / 2);
        vm_munmap(addr, LEN)?;
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn own_migrations_stop_the_device() -> Result {
        // PM-1: what moves is taken from the device before it is copied, whoever moves it.
        let t = Fixture::create(4)?;
        let addr = pages(LEN)?;

        assert!(t.fault(addr, LEN, Access::Write).is_ok());
        for round in 0..20 {
            assert_eq!(t.gpu_write(addr, round), Ok(()));
            assert_eq!(moved(t.migrate_in(addr, LEN)), 8);
            // Not mapped any more: the copy could not be overtaken by a write to the old page.
            assert_eq!(t.svm.driver().accessible(addr, LEN), 0);
            assert!(t.fault(addr, LEN, Access::Write).is_ok());
            assert_eq!(t.own(addr, LEN).0, LEN);
            assert_eq!(t.gpu_read(addr), Ok(round));
            assert_eq!(t.gpu_write(addr, round + 100), Ok(()));
            assert_eq!(moved(t.migrate_out(addr, LEN)), 8);
            assert_eq!(t.svm.driver().accessible(addr, LEN), 0);
            assert!(t.fault(addr, LEN, Access::Write).is_ok());
            assert_eq!(t.gpu_read(addr), Ok(round + 100));
        }
        vm_munmap(addr, LEN)?;
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn device_pages_are_spared_by_passes_that_leave_them() -> Result {
        let t = Fixture::create(4)?;
        let addr = pages(2 * BLOCK_SIZE)?;

        assert_eq!(moved(t.migrate_in(addr, BLOCK_SIZE)), PAGES);
        assert!(t.fault(addr, 2 * BLOCK_SIZE, Access::Read).is_ok());
        assert_eq!(t.own(addr, 2 * BLOCK_SIZE).0, BLOCK_SIZE);
        // The first block does not move, so it stays mapped; the second one does.
        assert_eq!(moved(t.migrate_in(addr, 2 * BLOCK_SIZE)), PAGES);
        assert_eq!(t.own(addr, BLOCK_SIZE).0, BLOCK_SIZE);
        assert_eq!(t.svm.driver().accessible(addr + BLOCK_SIZE, BLOCK_SIZE), 0);
        assert!(t.fault(addr, 2 * BLOCK_SIZE, Access::Read).is_ok());
        assert_eq!(t.own(addr, 2 * BLOCK_SIZE).0, 2 * BLOCK_SIZE);
        vm_munmap(addr, 2 * BLOCK_SIZE)?;
        assert!(t.is_clean());
        Ok(())
    }
}

#[kernel::macros::kunit_tests(drm_gpusvm_devmem_failure)]
mod failure_tests {
    use super::*;

    const LEN: usize = 8 * PAGE_SIZE;

    #[test]
    fn failed_copies_leave_everything_where_it_is() -> Result {
        // B-14, B-15, B-17: at every step, both ways.
        let t = Fixture::create(8)?;
        let len = 3 * LEN;
        let addr = pages(len)?;

        // Three VMAs, so three windows.
        mprotect(addr + LEN, LEN, PROT_READ)?;
        for refuse in [true, false] {
            for nth in 0..3 {
                t.engine.fail(nth, refuse);
                assert_eq!(t.migrate_in(addr, len), Err(EIO));
                t.engine.fail_none();
                assert!(is_intact(addr, len));
                assert_eq!(t.memory.stats().used, 0);

                assert_eq!(moved(t.migrate_in(addr, len)), 24);
                t.engine.fail(nth, refuse);
                assert_eq!(t.migrate_out(addr, len), Err(EIO));
                t.engine.fail_none();
                assert!(t.memory.stats().used > 0);
                assert!(t.fault(addr, len, Access::Read).is_ok());
                assert_eq!(t.gpu_read(addr), Ok(number(addr)));
                assert!(is_intact(addr, len));
                assert_eq!(t.memory.stats().used, 0);
            }
        }
        assert_eq!(t.memory.stats().copy_errors, 12);
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn failed_copy_of_a_cpu_fault_is_an_error_of_the_access() -> Result {
        let t = Fixture::create(4)?;
        let addr = pages(LEN)?;

        assert_eq!(moved(t.migrate_in(addr, LEN)), 8);
        t.engine.fail(0, false);
        assert!(read_user(addr).is_err());
        t.engine.fail_none();
        // It is still there.
        assert!(is_intact(addr, LEN));
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn a_device_that_cannot_wake_up_copies_nothing() -> Result {
        let t = Fixture::create(4)?;
        let addr = pages(LEN)?;

        t.engine.set_wakeable(false);
        assert!(t.migrate_in(addr, LEN).is_err());
        assert!(is_intact(addr, LEN));
        t.engine.set_wakeable(true);
        assert_eq!(moved(t.migrate_in(addr, LEN)), 8);
        assert!(is_intact(addr, LEN));
        // As often as it was woken up, it may sleep again, and all copies were in between.
        assert!(t.engine.is_asleep());
        assert_eq!(t.engine.copies_asleep(), 0);
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn lost_memory_is_never_read() -> Result {
        let t = Fixture::create(4)?;
        let addr = pages(2 * LEN)?;

        assert_eq!(moved(t.migrate_in(addr, LEN)), 8);
        t.memory.mark_lost();
        assert!(read_user(addr).is_err());
        assert_eq!(moved(t.migrate_out(addr, LEN)), 0);
        assert!(read_user(addr + PAGE_SIZE).is_err());
        assert_eq!(t.memory.stats().lost, 8);
        // What comes now is good.
        assert_eq!(moved(t.migrate_in(addr + LEN, LEN)), 8);
        assert!(is_intact(addr + LEN, LEN));
        vm_munmap(addr, 2 * LEN)?;
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn more_than_fits_is_moved_by_eviction() -> Result {
        let t = Fixture::create(2)?;
        let len = 6 * BLOCK_SIZE;
        let addr = pages(len)?;

        assert_eq!(moved(t.migrate_in(addr, len)), 6 * PAGES);
        let stats = t.memory.stats();
        assert!(stats.used <= stats.size);
        assert!(stats.evictions >= 4);
        assert_eq!(stats.pages_evicted as usize, 4 * PAGES);
        assert!(is_intact(addr, len));
        assert_eq!(t.memory.stats().used, 0);
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn without_eviction_the_rest_stays() -> Result {
        let t = Fixture::create(2)?;
        let len = 4 * BLOCK_SIZE;
        let addr = pages(len)?;
        let options = MigrateOptions {
            evict: false,
            ..MigrateOptions::default()
        };

        let done = t.svm.migrate_to_device(addr..addr + len, &options)?;
        assert_eq!((done.moved, done.skipped), (2 * PAGES, 2 * PAGES));
        assert_eq!(t.memory.stats().evictions, 0);
        assert!(is_intact(addr, len));
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn memory_is_removed_with_pages_in_it() -> Result {
        let t = Fixture::create(4)?;
        let addr = pages(LEN)?;

        assert_eq!(moved(t.migrate_in(addr, LEN)), 8);
        assert!(t.fault(addr, LEN, Access::Write).is_ok());
        t.memory.remove();
        assert_eq!(t.svm.driver().accessible(addr, LEN), 0);
        assert_eq!(t.memory.stats().used, 0);
        assert!(is_intact(addr, LEN));
        assert_eq!(t.migrate_in(addr, LEN), Err(ENODEV));
        assert!(t.fault(addr, LEN, Access::Write).is_ok());
        t.memory.remove();
        Ok(())
    }

    #[test]
    fn unbinding_removes_the_memory() -> Result {
        let t = Fixture::create(4)?;
        let addr = pages(LEN)?;

        assert_eq!(moved(t.migrate_in(addr, LEN)), 8);
        t.unbind();
        assert_eq!(t.memory.stats().used, 0);
        assert!(is_intact(addr, LEN));
        assert_eq!(
            t.fault(addr, PAGE_SIZE, Access::Read).err(),
            Some(FaultError::Gone)
        );
        Ok(())
    }
}

#[kernel::macros::kunit_tests(drm_gpusvm_devmem_policy)]
mod policy_tests {
    use super::*;

    const LEN: usize = 8 * PAGE_SIZE;

    #[test]
    fn faults_bring_memory_where_it_shall_be() -> Result {
        let t = Fixture::create(4)?;
        let addr = pages(BLOCK_SIZE)?;
        let span = addr + LEN..addr + 2 * LEN;

        t.svm.set_placement(span, Placement::Preferred)?;
        assert!(t.fault(addr, PAGE_SIZE, Access::Write).is_ok());
        assert_eq!(t.own(addr, BLOCK_SIZE).0, 0);
        mprotect(addr, BLOCK_SIZE, PROT_READ)?;
        mprotect(addr, BLOCK_SIZE, PROT_RW)?;
        // Only the span, and the rest where it is.
        assert!(t.fault(addr + LEN, PAGE_SIZE, Access::Write).is_ok());
        assert_eq!(t.own(addr, BLOCK_SIZE).0, LEN);
        assert_eq!(t.own(addr + LEN, LEN).0, LEN);
        assert!(is_intact(addr, BLOCK_SIZE));
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn placements_replace_each_other() -> Result {
        let t = Fixture::create(4)?;
        let addr = pages(4 * BLOCK_SIZE)?;
        let all = addr..addr + 4 * BLOCK_SIZE;

        assert_eq!(
            t.svm.set_placement(addr..addr, Placement::Strict),
            Err(EINVAL)
        );
        t.svm.set_placement(all.clone(), Placement::Preferred)?;
        t.svm
            .set_placement(addr + BLOCK_SIZE..addr + 2 * BLOCK_SIZE, Placement::Stay)?;
        t.svm
            .set_placement(addr + 3 * BLOCK_SIZE..all.end, Placement::Strict)?;
        for (block, own) in [(0, true), (1, false), (2, true), (3, true)] {
            let at = addr + block * BLOCK_SIZE;

            assert!(t.fault(at, PAGE_SIZE, Access::Read).is_ok());
            assert_eq!(t.own(at, BLOCK_SIZE).0, if own { BLOCK_SIZE } else { 0 });
        }
        t.svm.set_placement(all, Placement::Stay)?;
        assert!(is_intact(addr, 4 * BLOCK_SIZE));
        assert!(t.fault(addr, PAGE_SIZE, Access::Read).is_ok());
        assert_eq!(t.own(addr, BLOCK_SIZE).0, 0);
        vm_munmap(addr, 4 * BLOCK_SIZE)?;
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn strict_placement_fails_where_it_cannot_be() -> Result {
        let t = Fixture::create(4)?;
        let shared = vm_mmap(0, LEN, PROT_RW, SHARED)?;

        fill(shared, LEN)?;
        t.svm
            .set_placement(shared..shared + LEN, Placement::Strict)?;
        assert_eq!(
            t.fault(shared, PAGE_SIZE, Access::Read).err(),
            Some(FaultError::Placement)
        );
        t.svm
            .set_placement(shared..shared + LEN, Placement::Preferred)?;
        assert!(t.fault(shared, PAGE_SIZE, Access::Read).is_ok());
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn ping_pong_is_bounded() -> Result {
        let t = Fixture::create(4)?;
        let addr = pages(BLOCK_SIZE)?;

        t.svm
            .set_placement(addr..addr + LEN, Placement::Preferred)?;
        for _ in 0..100 {
            assert!(t.fault(addr, PAGE_SIZE, Access::Write).is_ok());
            write_user(addr, number(addr))?;
        }
        // Eight times a second, however long this took, and all pages each time.
        let moves = t.memory.stats().pages_in as usize / (LEN / PAGE_SIZE);
        assert!(moves >= 8);
        assert!(moves < 100);
        assert!(is_intact(addr, BLOCK_SIZE));
        vm_munmap(addr, BLOCK_SIZE)?;
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn cpu_waits_for_the_timeslice_once() -> Result {
        let t = Fixture::create(4)?;
        let addr = pages(LEN)?;
        let options = MigrateOptions {
            timeslice: Some(Delta::from_millis(50)),
            ..MigrateOptions::default()
        };

        let done = t.svm.migrate_to_device(addr..addr + LEN, &options);
        assert_eq!(moved(done), 8);
        assert!(is_intact(addr, LEN));
        // Accesses of the kernel may not wait everywhere, but never twice.
        assert!(t.memory.stats().cpu_waits <= 1);
        assert!(t.is_clean());
        Ok(())
    }

    #[test]
    fn memory_of_another_device() -> Result {
        let (one, two) = Fixture::pair(4)?;
        let addr = pages(2 * LEN)?;

        // Each sees its own, and the other's as far as it can reach it.
        assert_eq!(moved(one.migrate_in(addr, LEN)), 8);
        two.svm.driver().set_reach(true);
        assert!(two.fault(addr, 2 * LEN, Access::Read).is_ok());
        assert_eq!(two.svm.driver().peer(addr, 2 * LEN), LEN);
        assert_eq!(one.memory.stats().used, LEN as u64);
        assert_eq!(two.gpu_read_peer(addr, &one), Ok(number(addr)));

        // What it cannot reach comes to system memory.
        two.svm.driver().set_reach(false);
        assert_eq!(moved(one.migrate_out(addr, LEN)), 8);
        assert_eq!(moved(one.migrate_in(addr, LEN)), 8);
        assert_eq!(two.svm.driver().accessible(addr, LEN), 0);
        assert!(two.fault(addr, 2 * LEN, Access::Read).is_ok());
        assert_eq!(two.svm.driver().peer(addr, 2 * LEN), 0);
        assert_eq!(two.svm.driver().accessible(addr, 2 * LEN), 2 * LEN);
        assert_eq!(one.memory.stats().used, 0);
        assert!(is_intact(addr, 2 * LEN));
        vm_munmap(addr, 2 * LEN)?;
        assert!(one.is_clean() && two.is_clean());
        Ok(())
    }
}
