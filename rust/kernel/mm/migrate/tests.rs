// SPDX-License-Identifier: GPL-2.0

//! Tests of migrations, with a real address space, and of page maps.

mod support;

#[macros::kunit_tests(rust_mm_migrate)]
mod suite {
    use super::{
        super::*,
        support::*, //
    };
    use crate::{
        device::{
            Bound,
            Device, //
        },
        io::PhysAddr,
        kunit::mm::*,
        mm::{
            hmm::{
                self,
                PageState, //
            },
            notifier::{
                tests::support::{
                    in_thread,
                    Recorder, //
                },
                Event, //
            },
            pagemap::{
                Place,
                Type,
                LARGE,
                PMD_ORDER,
                PMD_PAGES, //
            }, //
        },
        page::{
            PAGE_SHIFT,
            PAGE_SIZE, //
        },
        sync::{
            atomic::{
                Atomic,
                Relaxed, //
            },
            Arc, //
        },
        time::{
            delay::fsleep,
            msecs_to_jiffies,
            Delta, //
        }, //
    };

    const PAGES: usize = 8;
    const SEED: u64 = 1000;

    /// The first `pages` pages of a span.
    fn first(span: &Range<usize>, pages: usize) -> Range<usize> {
        span.start..span.start + pages * PAGE_SIZE
    }

    /// Whether large folios can be tested. Marks the test as skipped if not.
    fn has_large() -> bool {
        let has = LARGE && SMALL;
        if !has {
            skip(c"no large folios of device memory, or too large ones");
        }
        has
    }

    #[test]
    fn base_pages_go_there_and_back() -> Result {
        let mut fix = Fixture::new()?;
        let span = written(PAGES, SEED)?;

        assert_eq!(fix.move_in(span.clone())?, PAGES);
        assert_eq!(fix.map.used(), PAGES);
        for page in 0..PAGES {
            assert_eq!(fix.map.word(page), Some(SEED + page as u64));
        }

        assert_eq!(fix.move_out(span.clone(), true)?, PAGES);
        assert_eq!(fix.map.used(), 0);
        assert!(is_written(span, SEED));
        assert_eq!(fix.map.faults.load(Relaxed), 0);
        assert_eq!(fix.map.freed.load(Relaxed), PAGES as u64);
        Ok(())
    }

    #[test]
    fn entries_say_what_is_there() -> Result {
        let mut fix = Fixture::new()?;
        let span = written(PAGES, SEED)?;
        let hole = span.start + 3 * PAGE_SIZE;
        madvise(hole, PAGE_SIZE, Advice::DontNeed)?;
        mprotect(span.start + 5 * PAGE_SIZE, 3 * PAGE_SIZE, PROT_READ)?;
        // The zero page.
        madvise(span.start + 4 * PAGE_SIZE, PAGE_SIZE, Advice::DontNeed)?;
        assert_eq!(read_user(span.start + 4 * PAGE_SIZE)?, 0);

        let ok = fix.collect_system(first(&span, 5), |collected, _| {
            collected.entries().enumerate().all(|(index, entry)| {
                entry.index == index
                    && entry.order == 0
                    && entry.va == Some(span.start + index * PAGE_SIZE)
                    && match entry.source {
                        Source::Hole => index >= 3,
                        Source::System { anon, .. } => index < 3 && anon && entry.write,
                        Source::Device(_) => false,
                    }
            }) && collected.entries().count() == 5
        })?;
        assert!(ok);

        // What cannot be written says so.
        let rest = span.start + 5 * PAGE_SIZE..span.end;
        let writable = fix.collect_system(rest.clone(), |collected, _| {
            collected.entries().filter(|entry| entry.write).count()
        })?;
        assert_eq!(writable, 0);

        // And device memory is found only when it is asked for.
        assert_eq!(fix.move_in(rest.clone())?, 3);
        assert!(fix.collect_system(rest.clone(), |collected, _| collected.is_empty())?);
        let found = fix.collect_device(rest, |collected, map| {
            collected
                .entries()
                .filter(|entry| match entry.source {
                    Source::Device(page) => page.is_private() && map.offset_of(&page).is_some(),
                    _ => false,
                })
                .count()
        })?;
        assert_eq!(found, 3);
        Ok(())
    }

    #[test]
    fn holes_become_zeroed_device_memory() -> Result {
        let mut fix = Fixture::new()?;
        let addr = vm_mmap_aligned(WINDOW, WINDOW, PROT_RW)?;
        madvise(addr, WINDOW, Advice::NoHugePage)?;
        let span = addr..addr + PAGES * PAGE_SIZE;

        assert_eq!(fix.move_in(span.clone())?, PAGES);
        assert_eq!(fix.map.used(), PAGES);
        for addr in span.step_by(PAGE_SIZE) {
            assert_eq!(read_user(addr)?, 0);
        }
        assert_eq!(fix.map.used(), 0);
        Ok(())
    }

    #[test]
    fn large_folios_stay_whole_both_ways() -> Result {
        if !has_large() {
            return Ok(());
        }
        let mut fix = Fixture::new()?;
        let span = written_large(SEED)?;

        let orders = fix.collect_system(span.clone(), |collected, _| {
            let mut entries = collected.entries();
            (entries.next().map(|entry| entry.order), entries.count())
        })?;
        assert_eq!(orders, (Some(PMD_ORDER), 0));

        assert_eq!(fix.move_in(span.clone())?, PMD_PAGES);
        assert_eq!(fix.map.used(), PMD_PAGES);
        assert_eq!(
            fix.map.word(PMD_PAGES - 1),
            Some(SEED + PMD_PAGES as u64 - 1)
        );

        let large = fix.collect_device(span.clone(), |collected, map| {
            let populated = collected.populate_system(SystemAlloc::default());
            let copies = populated.copies().count();
            copy_all(&populated, map)?;
            let moved = populated.commit();
            let whole = moved
                .moves()
                .all(|moved| moved.moved && moved.order == PMD_ORDER);
            Ok::<_, Error>((copies, whole, moved.finish()))
        })??;
        assert_eq!(large, (1, true, PMD_PAGES));
        assert_eq!(fix.map.used(), 0);
        assert_eq!(fix.map.splits.load(Relaxed), 0);
        assert!(is_written(span, SEED));
        Ok(())
    }

    #[test]
    fn a_large_hole_becomes_a_large_folio() -> Result {
        if !has_large() {
            return Ok(());
        }
        let mut fix = Fixture::new()?;
        let addr = vm_mmap_aligned(WINDOW, WINDOW, PROT_RW)?;
        madvise(addr, WINDOW, Advice::HugePage)?;

        assert_eq!(fix.move_in(addr..addr + WINDOW)?, PMD_PAGES);
        assert_eq!(fix.map.word(17), Some(0));
        assert_eq!(read_user(addr + 17 * PAGE_SIZE)?, 0);
        // It came back as a whole.
        assert_eq!(fix.map.used(), 0);
        assert_eq!(fix.map.faults.load(Relaxed), 1);
        Ok(())
    }

    #[test]
    fn base_pages_where_there_is_no_large_folio() -> Result {
        if !has_large() {
            return Ok(());
        }
        let mut fix = Fixture::new()?;
        let span = written_large(SEED)?;

        // A large folio of the system to base pages of the device ...
        let moved = fix.collect_system(span.clone(), |collected, map| {
            let populated = collected.populate(|entry| match entry.order {
                0 => take(map, 0),
                _ => None,
            });
            copy_all(&populated, map)?;
            Ok::<_, Error>(populated.commit().finish())
        })??;
        assert_eq!(moved, PMD_PAGES);
        assert_eq!(fix.map.used(), PMD_PAGES);
        assert_eq!(fix.move_out(span.clone(), true)?, PMD_PAGES);
        assert_eq!(fix.map.used(), 0);
        assert!(is_written(span, SEED));

        // ... and one of the device to base pages of the system.
        let span = written_large(2 * SEED)?;
        assert_eq!(fix.move_in(span.clone())?, PMD_PAGES);
        assert_eq!(fix.move_out(span.clone(), false)?, PMD_PAGES);
        assert_eq!(fix.map.used(), 0);
        assert_eq!(fix.map.splits.load(Relaxed), PMD_PAGES as u32 - 1);
        assert!(is_written(span, 2 * SEED));
        Ok(())
    }

    #[test]
    fn a_part_of_a_large_hole_can_be_filled() -> Result {
        if !has_large() {
            return Ok(());
        }
        let mut fix = Fixture::new()?;
        let addr = vm_mmap_aligned(WINDOW, WINDOW, PROT_RW)?;
        madvise(addr, WINDOW, Advice::HugePage)?;

        // Every second page, and not the first one.
        let moved = fix.collect_system(addr..addr + WINDOW, |collected, map| {
            let populated = collected.populate(|entry| {
                (entry.order == 0 && entry.index % 2 == 1)
                    .then(|| take(map, 0))
                    .flatten()
            });
            copy_all(&populated, map)?;
            Ok::<_, Error>(populated.commit().finish())
        })??;
        assert_eq!(moved, PMD_PAGES / 2);
        assert_eq!(fix.map.used(), PMD_PAGES / 2);
        for page in 0..PMD_PAGES {
            assert_eq!(read_user(addr + page * PAGE_SIZE)?, 0);
        }
        assert_eq!(fix.map.used(), 0);
        Ok(())
    }

    #[test]
    fn what_has_no_destination_stays() -> Result {
        let mut fix = Fixture::new()?;
        let span = written(PAGES, SEED)?;

        let (asked, moved) = fix.collect_system(span.clone(), |collected, map| {
            let mut asked = 0;
            let mut populated = collected.populate(|entry| {
                asked += 1;
                (entry.index >= 2).then(|| take(map, 0)).flatten()
            });
            populated.reject(5);
            copy_all(&populated, map)?;

            let moved = populated.commit();
            let ok = moved
                .moves()
                .all(|moved| moved.moved && moved.index >= 2 && moved.index != 5);
            Ok::<_, Error>((asked, if ok { moved.finish() } else { 0 }))
        })??;
        assert_eq!(asked, PAGES);
        assert_eq!(moved, PAGES - 3);
        assert_eq!(fix.map.used(), PAGES - 3);
        assert!(is_written(span, SEED));
        Ok(())
    }

    #[test]
    fn dropping_any_state_puts_everything_back() -> Result {
        let mut fix = Fixture::new()?;
        let span = written(PAGES, SEED)?;

        fix.collect_system(span.clone(), |collected, _| drop(collected))?;
        assert!(is_written(span.clone(), SEED));

        fix.collect_system(span.clone(), |collected, map| {
            drop(collected.populate(|entry| take(map, entry.order)));
        })?;
        assert_eq!(fix.map.used(), 0);
        assert!(is_written(span.clone(), SEED));

        // After the commit there is no way back, and the pages are where they were sent.
        fix.collect_system(span.clone(), |collected, map| {
            let populated = collected.populate(|entry| take(map, entry.order));
            let copied = copy_all(&populated, map);
            drop(populated.commit());
            copied
        })??;
        assert_eq!(fix.map.used(), PAGES);

        fix.collect_device(span.clone(), |collected, _| {
            drop(collected.populate_system(SystemAlloc::default()));
        })?;
        assert_eq!(fix.map.used(), PAGES);
        assert!(is_written(span, SEED));
        assert_eq!(fix.map.used(), 0);
        Ok(())
    }

    #[test]
    fn dropping_a_large_one_puts_it_back() -> Result {
        if !has_large() {
            return Ok(());
        }
        let mut fix = Fixture::new()?;
        let span = written_large(SEED)?;

        fix.collect_system(span.clone(), |collected, map| {
            drop(collected.populate(|entry| take(map, entry.order)));
        })?;
        // Also if it was to be split.
        fix.collect_system(span.clone(), |collected, map| {
            drop(collected.populate(|entry| match entry.order {
                0 => take(map, 0),
                _ => None,
            }));
        })?;
        assert_eq!(fix.map.used(), 0);
        assert_eq!(fix.move_in(span.clone())?, PMD_PAGES);
        assert_eq!(fix.map.splits.load(Relaxed), 0);
        assert!(is_written(span, SEED));
        Ok(())
    }

    #[test]
    fn the_cpu_gets_back_what_it_touches() -> Result {
        let mut fix = Fixture::new()?;
        let span = written(PAGES, SEED)?;
        assert_eq!(fix.move_in(span.clone())?, PAGES);

        assert_eq!(read_user(span.start + 5 * PAGE_SIZE)?, SEED + 5);
        assert_eq!(fix.map.faults.load(Relaxed), 1);
        assert_eq!(fix.map.used(), PAGES - FAULT_AROUND / PAGE_SIZE);

        write_user(span.start, SEED)?;
        assert_eq!(fix.map.faults.load(Relaxed), 2);
        assert_eq!(fix.map.used(), 0);
        assert!(is_written(span, SEED));
        Ok(())
    }

    #[test]
    fn a_fault_can_wait() -> Result {
        let mut fix = Fixture::new()?;
        let span = written(PAGES, SEED)?;
        assert_eq!(fix.move_in(span.clone())?, PAGES);

        fix.map.on_fault(OnFault::Wait);
        assert!(is_written(span, SEED));
        assert_eq!(fix.map.waits.load(Relaxed), 1);
        assert_eq!(fix.map.used(), 0);
        Ok(())
    }

    #[test]
    fn a_fault_on_what_is_lost_fails() -> Result {
        let mut fix = Fixture::new()?;
        let span = written(PAGES, SEED)?;
        assert_eq!(fix.move_in(span.clone())?, PAGES);

        fix.map.on_fault(OnFault::Sigbus);
        assert_eq!(read_user(span.start), Err(EFAULT));
        assert_eq!(fix.map.used(), PAGES);

        // The pages go away with the memory of the process.
        vm_munmap(span.start, WINDOW)?;
        assert_eq!(fix.map.used(), 0);
        Ok(())
    }

    #[test]
    fn a_fault_splits_what_cannot_come_back_as_a_whole() -> Result {
        if !has_large() {
            return Ok(());
        }
        let mut fix = Fixture::new()?;
        let span = written_large(SEED)?;
        assert_eq!(fix.move_in(span.clone())?, PMD_PAGES);

        fix.map.on_fault(OnFault::NoLarge);
        assert_eq!(read_user(span.start + 9 * PAGE_SIZE)?, SEED + 9);
        assert_eq!(fix.map.splits.load(Relaxed), PMD_PAGES as u32 - 1);
        assert_eq!(fix.map.used(), PMD_PAGES - FAULT_AROUND / PAGE_SIZE);
        assert!(is_written(span, SEED));
        assert_eq!(fix.map.used(), 0);
        Ok(())
    }

    #[test]
    fn a_large_folio_that_is_unmapped_in_part_comes_back_in_parts() -> Result {
        if !has_large() {
            return Ok(());
        }
        let mut fix = Fixture::new()?;
        let span = written_large(SEED)?;
        assert_eq!(fix.move_in(span.clone())?, PMD_PAGES);

        vm_munmap(span.start, WINDOW / 2)?;
        let rest = span.start + WINDOW / 2..span.end;
        assert!(is_written(rest, SEED + PMD_PAGES as u64 / 2));
        assert_eq!(fix.map.used(), 0);
        Ok(())
    }

    #[test]
    fn device_memory_is_evicted_whoever_has_it() -> Result {
        let mut fix = Fixture::new()?;
        let span = written(PAGES, SEED)?;
        assert_eq!(fix.move_in(span.clone())?, PAGES);
        if LARGE && SMALL {
            let large = written_large(2 * SEED)?;
            assert_eq!(fix.move_in(large.clone())?, PMD_PAGES);
            assert_eq!(evict(&fix.map)?, PAGES + PMD_PAGES);
            assert!(is_written(large, 2 * SEED));
        } else {
            assert_eq!(evict(&fix.map)?, PAGES);
        }

        assert_eq!(fix.map.used(), 0);
        assert!(is_written(span, SEED));
        assert_eq!(fix.map.faults.load(Relaxed), 0);
        // There is nothing left.
        assert_eq!(evict(&fix.map)?, 0);
        Ok(())
    }

    #[test]
    fn eviction_without_large_folios_needs_a_split() -> Result {
        if !has_large() {
            return Ok(());
        }
        let mut fix = Fixture::new()?;
        let span = written_large(SEED)?;
        assert_eq!(fix.move_in(span.clone())?, PMD_PAGES);

        let collected = fix.map.collect(BLOCK, &mut fix.buf)?;
        assert_eq!(move_out(collected, &fix.map, false)?, 0);
        assert_eq!(fix.map.used(), PMD_PAGES);

        // Only at its beginning.
        assert_eq!(fix.map.split(1), Err(EINVAL));
        fix.map.split(0)?;
        assert_eq!(fix.map.split(0), Err(EINVAL));
        let collected = fix.map.collect(BLOCK, &mut fix.buf)?;
        assert_eq!(move_out(collected, &fix.map, false)?, PMD_PAGES);
        assert_eq!(fix.map.used(), 0);
        assert!(is_written(span, SEED));
        Ok(())
    }

    #[test]
    fn an_eviction_is_of_the_pages_that_were_asked_for() -> Result {
        let mut fix = Fixture::new()?;
        let span = written(PAGES, SEED)?;
        assert_eq!(fix.move_in(span.clone())?, PAGES);

        let collected = fix.map.collect(2..4, &mut fix.buf)?;
        assert_eq!(collected.entries().count(), 2);
        assert!(collected.entries().all(|entry| entry.va.is_none()));
        assert_eq!(move_out(collected, &fix.map, true)?, 2);
        assert_eq!(fix.map.used_in(0..PAGES), PAGES - 2);
        assert_eq!(fix.map.used_in(2..4), 0);

        for bad in [0..0, 1..PMD_PAGES + 1, PMD_PAGES - 1..PMD_PAGES + 1] {
            assert!(fix.map.collect(bad, &mut fix.buf).is_err());
        }
        let end = fix.map.pages();
        assert!(fix.map.collect(end - 1..end + 1, &mut fix.buf).is_err());
        assert!(is_written(span, SEED));
        Ok(())
    }

    #[test]
    fn an_aborted_eviction_puts_everything_back() -> Result {
        let mut fix = Fixture::new()?;
        let span = written(PAGES, SEED)?;
        assert_eq!(fix.move_in(span.clone())?, PAGES);

        drop(fix.map.collect(BLOCK, &mut fix.buf)?);
        drop(
            fix.map
                .collect(BLOCK, &mut fix.buf)?
                .populate_system(SystemAlloc::default()),
        );
        assert_eq!(fix.map.used(), PAGES);
        assert!(is_written(span, SEED));
        Ok(())
    }

    /// What is evicted is not kept by an address space: that may end at the same time.
    #[test]
    fn eviction_races_with_the_end_of_the_memory() -> Result {
        const ROUNDS: u64 = 30;

        let mut fix = Fixture::new()?;
        let stop = Arc::new(Atomic::new(false), GFP_KERNEL)?;
        let evicted = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let done = {
            let (map, stop, evicted) = (fix.map.clone(), stop.clone(), evicted.clone());
            in_thread(move || {
                while !stop.load(Relaxed) {
                    evicted.fetch_add(evict(&map).unwrap_or(0) as u64, Relaxed);
                    fsleep(Delta::from_micros(50));
                }
            })?
        };

        let mut intact = true;
        for round in 0..ROUNDS {
            let seed = SEED * (round + 1);
            let span = written(PAGES, seed)?;
            fix.move_in(span.clone())?;
            if round % 3 == 0 {
                intact &= is_written(span.clone(), seed);
            }
            vm_munmap(span.start, WINDOW)?;
        }
        // At least one page must have been caught, if it takes some time.
        let span = written(PAGES, SEED)?;
        fix.move_in(span.clone())?;
        for _ in 0..10_000 {
            if fix.map.used() == 0 {
                break;
            }
            fsleep(Delta::from_millis(1));
        }
        stop.store(true, Relaxed);
        done.wait_for_completion();

        assert!(intact);
        assert!(evicted.load(Relaxed) != 0);
        assert_eq!(fix.map.used(), 0);
        assert!(is_written(span, SEED));
        Ok(())
    }

    #[test]
    fn unregistering_waits_for_the_pages() -> Result {
        let mut fix = Fixture::new()?;
        let span = written(PAGES, SEED)?;
        assert_eq!(fix.move_in(span.clone())?, PAGES);

        fix.map.unregister();
        assert!(fix.map.drains.load(Relaxed) >= 1);
        assert_eq!(fix.map.used(), 0);
        assert_eq!(fix.map.freed.load(Relaxed), PAGES as u64);
        assert!(is_written(span.clone(), SEED));

        // Nothing comes after that.
        assert_eq!(fix.map.take(0, 0).err(), Some(ENODEV));
        assert_eq!(fix.move_in(span)?, 0);
        assert_eq!(fix.map.split(0), Err(ENODEV));
        assert_eq!(fix.map.collect(0..1, &mut fix.buf).err(), Some(ENODEV));
        fix.map.unregister();
        Ok(())
    }

    #[test]
    fn pages_are_taken_once() -> Result {
        let fix = Fixture::new()?;
        let map = &fix.map;

        let page = map.take(3, 0)?;
        assert_eq!(map.offset_of_phys(page.phys()), Some(3));
        assert_eq!(map.phys(3), Some(page.phys()));
        assert_eq!(map.take(3, 0).err(), Some(EBUSY));
        assert!(map.is_used(3));
        if LARGE && SMALL {
            assert_eq!(map.take(0, PMD_ORDER).err(), Some(EBUSY));
            assert_eq!(map.take(1, PMD_ORDER).err(), Some(EINVAL));
        }
        assert_eq!(map.used(), 1);
        drop(page);
        assert_eq!(map.used(), 0);

        for (offset, order) in [(0, 1), (0, 63), (0, 64), (map.pages(), 0), (usize::MAX, 0)] {
            assert_eq!(map.take(offset, order).err(), Some(EINVAL));
        }
        assert_eq!(map.phys(map.pages()), None);
        assert_eq!(map.offset_of_phys(0), None);

        map.close();
        assert_eq!(map.take(0, 0).err(), Some(ENODEV));
        assert_eq!(map.used(), 0);
        Ok(())
    }

    /// A page remembers what folio it was part of, and must forget it (B-28).
    #[test]
    fn memory_is_recycled_in_another_order() -> Result {
        if !has_large() {
            return Ok(());
        }
        let mut fix = Fixture::new()?;

        for round in 0..2 {
            let seed = SEED * (round + 1);
            let large = written_large(seed)?;
            assert_eq!(fix.move_in(large.clone())?, PMD_PAGES);
            assert!(is_written(large, seed));
            assert_eq!(fix.map.used(), 0);

            let small = written(PMD_PAGES, seed)?;
            assert_eq!(fix.move_in(small.clone())?, PMD_PAGES);
            // Some of them are found although the folio that they were part of is free.
            let collected = fix.map.collect(100..200, &mut fix.buf)?;
            assert_eq!(move_out(collected, &fix.map, true)?, 100);
            assert!(is_written(small, seed));
            assert_eq!(fix.map.used(), 0);
        }
        Ok(())
    }

    #[test]
    fn a_window_must_be_one() -> Result {
        let mut fix = Fixture::new()?;
        let addr = vm_mmap_aligned(2 * WINDOW, WINDOW, PROT_RW)?;
        vm_munmap(addr + WINDOW + 2 * PAGE_SIZE, WINDOW - 2 * PAGE_SIZE)?;

        for (span, error) in [
            (addr..addr, EINVAL),
            (addr + 1..addr + PAGE_SIZE, EINVAL),
            (addr..addr + PAGE_SIZE + 1, EINVAL),
            (addr + WINDOW - PAGE_SIZE..addr + WINDOW + PAGE_SIZE, EINVAL),
            (addr + WINDOW..addr + WINDOW + 3 * PAGE_SIZE, EINVAL),
            (
                addr + WINDOW + 4 * PAGE_SIZE..addr + WINDOW + 5 * PAGE_SIZE,
                EFAULT,
            ),
        ] {
            assert_eq!(fix.collect_system(span, |_, _| ()), Err(error));
        }
        assert!(fix
            .collect_system(addr + WINDOW..addr + WINDOW + PAGE_SIZE, |_, _| ())
            .is_ok());
        Ok(())
    }

    #[test]
    fn shared_memory_does_not_move() -> Result {
        let mut fix = Fixture::new()?;
        let addr = vm_mmap(0, PAGE_SIZE, PROT_RW, SHARED)?;
        write_user(addr, SEED)?;

        let (anon, moved) = fix.collect_system(addr..addr + PAGE_SIZE, |collected, map| {
            let anon = collected
                .entries()
                .any(|entry| matches!(entry.source, Source::System { anon: true, .. }));
            let populated = collected.populate(|entry| take(map, entry.order));
            copy_all(&populated, map)?;
            Ok::<_, Error>((anon, populated.commit().finish()))
        })??;
        assert!(!anon);
        assert_eq!(moved, 0);
        assert_eq!(fix.map.used(), 0);
        assert_eq!(read_user(addr)?, SEED);
        Ok(())
    }

    #[test]
    fn two_windows_at_a_time() -> Result {
        let mut fix = Fixture::new()?;
        let span = written(PAGES, SEED)?;
        let (left, right) = (
            first(&span, PAGES / 2),
            span.start + PAGES / 2 * PAGE_SIZE..span.end,
        );
        let owner = fix.owner();
        let request = Request {
            system: true,
            private: false,
            coherent: false,
            large: true,
            owner: &owner,
        };
        let mut other = Buffer::new(GFP_KERNEL)?;

        let moved = {
            let mmap = fix.mm.mmap_read_lock();
            let map = &fix.map;
            let left = collect(&mmap, left, &request, &mut fix.buf)?
                .populate(|entry| take(map, entry.order));
            let right = collect(&mmap, right, &request, &mut other)?
                .populate(|entry| take(map, entry.order));
            copy_all(&left, map)?;
            copy_all(&right, map)?;
            left.commit().finish() + right.commit().finish()
        };
        assert_eq!(moved, PAGES);
        assert!(is_written(span, SEED));
        Ok(())
    }

    #[test]
    fn notifiers_learn_of_it() -> Result {
        let mut fix = Fixture::new()?;
        let span = written(PAGES, SEED)?;
        let notifier = Recorder::new().register(&fix.mm, span.clone())?;
        let seq = notifier.read_begin();

        assert_eq!(fix.move_in(span.clone())?, PAGES);
        assert!(notifier.read().retry(seq));
        assert!(notifier
            .take_passes()
            .iter()
            .flatten()
            .any(|pass| pass.event == Event::Migrate
                && pass.start == span.start
                && pass.end == span.end));
        assert!(is_written(span, SEED));
        Ok(())
    }

    /// What a walk says about one page.
    fn state(fix: &Fixture, span: &Range<usize>, addr: usize) -> Result<Option<PageState>> {
        let notifier = Recorder::new().register(&fix.mm, span.clone())?;
        let mut window = hmm::Window::new(1, GFP_KERNEL)?;
        let request = hmm::Request {
            owner: Some(fix.map.owner().as_ptr()),
            ..hmm::Request::default()
        };
        let walked = hmm::walk(
            &notifier,
            &fix.mm,
            addr..addr + PAGE_SIZE,
            &request,
            &mut window,
            msecs_to_jiffies(1000),
        )?;

        let state = walked.pages().next();
        Ok(state)
    }

    #[test]
    fn a_walk_sees_device_memory() -> Result {
        let mut fix = Fixture::new()?;
        let span = written(PAGES, SEED)?;
        assert_eq!(fix.move_in(span.clone())?, PAGES);

        for page in 0..PAGES {
            let state = state(&fix, &span, span.start + page * PAGE_SIZE)?;
            let Some(PageState::Mapped {
                phys, write, kind, ..
            }) = state
            else {
                return Err(EINVAL);
            };
            assert_eq!(fix.map.offset_of_phys(phys), Some(page));
            assert!(write);
            assert_eq!(kind, hmm::Kind::DevicePrivate);
        }
        assert_eq!(fix.map.faults.load(Relaxed), 0);
        Ok(())
    }

    /// HMM itself says the first page of the folio for any of its pages.
    #[test]
    fn a_walk_sees_the_right_page_of_a_large_folio() -> Result {
        if !has_large() {
            return Ok(());
        }
        let mut fix = Fixture::new()?;
        let span = written_large(SEED)?;
        assert_eq!(fix.move_in(span.clone())?, PMD_PAGES);

        for page in [0, 5, PMD_PAGES - 1] {
            let state = state(&fix, &span, span.start + page * PAGE_SIZE)?;
            let Some(PageState::Mapped { phys, order, .. }) = state else {
                return Err(EINVAL);
            };
            assert_eq!(fix.map.offset_of_phys(phys), Some(page));
            assert_eq!(order, PMD_ORDER);
        }
        Ok(())
    }

    /// Physical addresses that nothing is at. What is "in" coherent memory there must not be touched.
    fn nowhere(dev: &Device<Bound>) -> Result<Range<PhysAddr>> {
        let fix = Fixture::with(dev, Type::Private, Place::Free(MEMORY * PAGE_SIZE))?;
        let start = fix.map.phys(0).ok_or(EINVAL)?;

        Ok(start..start + (MEMORY * PAGE_SIZE) as PhysAddr)
    }

    #[test]
    fn coherent_memory_has_base_pages_only() -> Result {
        let dev = device()?;
        let mut fix = Fixture::with(dev, Type::Coherent, Place::At(nowhere(dev)?))?;
        let span = written(PAGES, SEED)?;

        assert_eq!(fix.map.take(0, PMD_ORDER).err(), Some(EINVAL));
        assert_eq!(fix.move_in(span.clone())?, PAGES);
        assert_eq!(fix.map.used(), PAGES);
        let state = state(&fix, &span, span.start + PAGE_SIZE)?;
        let Some(PageState::Mapped { phys, kind, .. }) = state else {
            return Err(EINVAL);
        };
        assert_eq!(fix.map.offset_of_phys(phys), Some(1));
        assert_eq!(kind, hmm::Kind::DeviceCoherent);

        // By address and by frame number.
        assert_eq!(fix.move_out(first(&span, 3), true)?, 3);
        assert_eq!(evict(&fix.map)?, PAGES - 3);
        assert_eq!(fix.map.used(), 0);
        assert!(is_written(span, SEED));
        Ok(())
    }

    #[test]
    fn a_place_must_be_free() -> Result {
        let ram = Destination::system(0)?.phys() & !(WINDOW as PhysAddr - 1);
        let len = WINDOW as PhysAddr;
        let dev = device()?;

        for (kind, place, error) in [
            (Type::Private, Place::Free(0), EINVAL),
            (Type::Private, Place::Free(PAGE_SIZE), EINVAL),
            (Type::Coherent, Place::Free(WINDOW), EINVAL),
            (Type::Coherent, Place::At(ram..ram), EINVAL),
            (Type::Coherent, Place::At(ram + 1..ram + len), EINVAL),
            (Type::Coherent, Place::At(ram..ram + len), EBUSY),
            (Type::Private, Place::At(ram..ram + len), EBUSY),
        ] {
            assert_eq!(Fixture::with(dev, kind, place).err(), Some(error));
        }
        Ok(())
    }

    #[test]
    fn the_physical_address_is_that_of_the_page() -> Result {
        let page = Destination::system(0)?;
        assert_eq!(page.order(), 0);
        assert_eq!(page.phys() & (PAGE_SIZE as PhysAddr - 1), 0);

        let fix = Fixture::new()?;
        let start = fix.map.phys(0).ok_or(EINVAL)?;
        assert_eq!(
            fix.map.phys(7),
            Some(start + ((7 as PhysAddr) << PAGE_SHIFT))
        );
        Ok(())
    }
}
