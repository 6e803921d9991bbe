// SPDX-License-Identifier: GPL-2.0

//! Tests of interval notifiers, with a real address space and the events that real changes cause.

pub(in crate::mm) mod support;

#[macros::kunit_tests(rust_mm_notifier)]
mod suite {
    use super::{
        super::{
            op::clamp,
            *, //
        },
        support::*, //
    };
    use crate::{
        kunit::mm::*,
        sync::{
            atomic::{
                Atomic,
                Relaxed, //
            },
            static_lock_class,
            Arc, //
        },
        time::{
            delay::fsleep,
            Delta, //
        }, //
    };

    const PAGES: usize = 8;
    const LEN: usize = PAGES * PAGE_SIZE;

    /// Maps and touches `PAGES` pages.
    fn touched() -> Result<usize> {
        let addr = vm_mmap(0, LEN, PROT_RW, PRIVATE)?;
        for page in 0..PAGES {
            write_user(addr + page * PAGE_SIZE, 1)?;
        }
        Ok(addr)
    }

    fn whole(event: Event, span: Range<usize>) -> Pass {
        Pass {
            event,
            start: span.start,
            end: span.end,
            kind: PassKind::Whole,
            owned: false,
        }
    }

    #[test]
    fn munmap_is_seen() -> Result {
        let mm = attach_mm()?;
        let addr = touched()?;
        let notifier = Recorder::new().register(&mm, addr..addr + LEN)?;

        let seq = notifier.read_begin();
        assert!(!notifier.collided(seq));
        assert!(!notifier.check_retry(seq));

        let hole = addr + 2 * PAGE_SIZE..addr + 5 * PAGE_SIZE;
        vm_munmap(hole.start, hole.end - hole.start)?;

        assert!(notifier.collided(seq));
        assert!(notifier.check_retry(seq));
        let passes = notifier.take_passes();
        assert_eq!(passes[0], Some(whole(Event::Unmap, hole)));
        assert_eq!(passes[1], None);

        // What begins after the change is good.
        let seq = notifier.read_begin();
        assert!(!notifier.collided(seq));
        Ok(())
    }

    #[test]
    fn mprotect_is_seen() -> Result {
        let mm = attach_mm()?;
        let addr = touched()?;
        let notifier = Recorder::new().register(&mm, addr..addr + LEN)?;

        mprotect(addr + PAGE_SIZE, 2 * PAGE_SIZE, PROT_READ)?;

        let passes = notifier.take_passes();
        let span = addr + PAGE_SIZE..addr + 3 * PAGE_SIZE;
        assert_eq!(passes[0], Some(whole(Event::ProtectionVma, span)));
        assert_eq!(passes[1], None);
        Ok(())
    }

    #[test]
    fn madvise_is_seen() -> Result {
        let mm = attach_mm()?;
        let addr = touched()?;
        let notifier = Recorder::new().register(&mm, addr..addr + LEN)?;

        let seq = notifier.read_begin();
        madvise(addr + 6 * PAGE_SIZE, PAGE_SIZE, Advice::DontNeed)?;

        assert!(notifier.collided(seq));
        let passes = notifier.take_passes();
        let span = addr + 6 * PAGE_SIZE..addr + 7 * PAGE_SIZE;
        assert_eq!(passes[0], Some(whole(Event::Clear, span)));
        assert_eq!(passes[1], None);
        Ok(())
    }

    #[test]
    fn events_are_clamped_to_the_span() -> Result {
        let mm = attach_mm()?;
        let addr = touched()?;
        let span = addr + 2 * PAGE_SIZE..addr + 4 * PAGE_SIZE;
        let notifier = Recorder::new().register(&mm, span.clone())?;
        assert_eq!(notifier.span(), span.clone());

        // Outside.
        let seq = notifier.read_begin();
        vm_munmap(addr, PAGE_SIZE)?;
        vm_munmap(addr + 5 * PAGE_SIZE, PAGE_SIZE)?;
        assert!(!notifier.collided(seq));
        assert_eq!(notifier.take_passes()[0], None);

        // Across an end, and around.
        vm_munmap(addr + PAGE_SIZE, 2 * PAGE_SIZE)?;
        assert_eq!(
            notifier.take_passes()[0],
            Some(whole(Event::Unmap, span.start..span.start + PAGE_SIZE))
        );
        let around = Running::begin(
            &mm,
            addr..addr + LEN,
            bindings::mmu_notifier_event_MMU_NOTIFY_CLEAR,
            true,
        )?;
        drop(around);
        assert_eq!(
            notifier.take_passes()[0],
            Some(whole(Event::Clear, span.clone()))
        );
        Ok(())
    }

    #[test]
    fn clamp_rounds_outwards_inside() {
        let span = 2 * PAGE_SIZE..6 * PAGE_SIZE;

        assert_eq!(clamp(0, usize::MAX, &span), span);
        assert_eq!(
            clamp(3 * PAGE_SIZE + 1, 3 * PAGE_SIZE + 2, &span),
            3 * PAGE_SIZE..4 * PAGE_SIZE
        );
        assert_eq!(
            clamp(5 * PAGE_SIZE, usize::MAX, &span),
            5 * PAGE_SIZE..6 * PAGE_SIZE
        );
        // Does not happen, and is empty rather than reversed.
        assert!(clamp(7 * PAGE_SIZE, 8 * PAGE_SIZE, &span).is_empty());
    }

    #[test]
    fn unknown_events_are_general() {
        assert_eq!(
            Event::from_raw(bindings::mmu_notifier_event_MMU_NOTIFY_EXCLUSIVE),
            Event::Exclusive
        );
        assert_eq!(Event::from_raw(1000), Event::Clear);
    }

    #[test]
    fn bad_spans_are_refused() -> Result {
        let mm = attach_mm()?;
        let reversed = Range {
            start: 2 * PAGE_SIZE,
            end: PAGE_SIZE,
        };

        for span in [
            0..0,
            PAGE_SIZE..PAGE_SIZE,
            reversed,
            1..PAGE_SIZE,
            0..PAGE_SIZE + 1,
        ] {
            let dropped = Arc::new(Atomic::new(0), GFP_KERNEL)?;
            let result = Recorder::with_drop_count(dropped.clone()).register(&mm, span);

            assert!(matches!(result, Err(error) if error == EINVAL));
            assert_eq!(dropped.load(Relaxed), 1);
        }
        Ok(())
    }

    #[test]
    fn dropping_unregisters() -> Result {
        let mm = attach_mm()?;
        let addr = touched()?;
        let dropped = Arc::new(Atomic::new(0), GFP_KERNEL)?;

        let first = Recorder::with_drop_count(dropped.clone()).register(&mm, addr..addr + LEN)?;
        let other = Recorder::new().register(&mm, addr..addr + LEN)?;
        assert_eq!(dropped.load(Relaxed), 0);
        drop(first);
        assert_eq!(dropped.load(Relaxed), 1);

        // Nothing is called any more but what still exists.
        vm_munmap(addr, PAGE_SIZE)?;
        assert_eq!(
            other.take_passes()[0],
            Some(whole(Event::Unmap, addr..addr + PAGE_SIZE))
        );
        Ok(())
    }

    /// The sequence numbers of all notifiers of an mm come from one counter, so that the number
    /// alone would be right under another notifier.
    #[test]
    fn foreign_seq_retries() -> Result {
        let mm = attach_mm()?;
        let addr = touched()?;
        let span = addr..addr + LEN;
        let a = Recorder::new().register(&mm, span.clone())?;
        let b = Recorder::new().register(&mm, span.clone())?;
        drop(Running::begin(
            &mm,
            span.clone(),
            bindings::mmu_notifier_event_MMU_NOTIFY_CLEAR,
            true,
        )?);

        let seq = a.read_begin();
        assert_eq!(seq.raw(), b.read_begin().raw());
        assert!(!a.collided(seq));
        assert!(b.collided(seq));
        assert!(b.check_retry(seq));
        assert!(b.write().retry(seq));

        // The next notifier may well be at the same address.
        drop(a);
        let c = Recorder::new().register(&mm, span)?;
        assert!(c.collided(seq));
        assert!(c.check_retry(seq));
        Ok(())
    }

    #[test]
    fn two_passes() -> Result {
        let mm = attach_mm()?;
        let addr = touched()?;
        let notifier = Recorder::new().register(&mm, addr..addr + LEN)?;
        notifier.data().defer.store(true, Relaxed);

        for page in 0..3 {
            let span = addr + page * PAGE_SIZE..addr + (page + 1) * PAGE_SIZE;
            vm_munmap(span.start, PAGE_SIZE)?;

            // The slot is free again each time.
            let passes = notifier.take_passes();
            let mut pass = whole(Event::Unmap, span);
            pass.kind = PassKind::Start;
            assert_eq!(passes[0], Some(pass));
            pass.kind = PassKind::Finish;
            assert_eq!(passes[1], Some(pass));
            assert_eq!(passes[2], None);
        }
        Ok(())
    }

    /// PM-4: while one invalidation is between its passes, another one does both of its at once.
    #[test]
    fn busy_slot_makes_one_pass() -> Result {
        let mm = attach_mm()?;
        let addr = touched()?;
        let gate = Gate::new()?;
        let notifier =
            Recorder::with_gate(Event::SoftDirty, gate.clone()).register(&mm, addr..addr + LEN)?;

        let first = addr..addr + PAGE_SIZE;
        let second = addr + PAGE_SIZE..addr + 2 * PAGE_SIZE;

        let (their_mm, their_span) = (mm.clone(), first.clone());
        let done = in_thread(move || {
            let _ = Running::begin(
                &their_mm,
                their_span,
                bindings::mmu_notifier_event_MMU_NOTIFY_SOFT_DIRTY,
                true,
            );
        })?;
        gate.reached.wait_for_completion();

        // The first one is in its second pass now, without the lock.
        let result = madvise(second.start, PAGE_SIZE, Advice::DontNeed);
        let between = notifier.take_passes();
        gate.open.complete_all();
        done.wait_for_completion();
        let after = notifier.take_passes();

        result?;
        let mut pass = whole(Event::SoftDirty, first.clone());
        pass.kind = PassKind::Start;
        assert_eq!(between[0], Some(pass));
        assert_eq!(between[1], Some(whole(Event::Clear, second.clone())));
        assert_eq!(between[2], None);
        pass.kind = PassKind::Finish;
        assert_eq!(after[0], Some(pass));
        assert_eq!(after[1], None);

        // And the slot is free again.
        madvise(second.start, PAGE_SIZE, Advice::DontNeed)?;
        let mut pass = whole(Event::Clear, second);
        pass.kind = PassKind::Start;
        assert_eq!(notifier.take_passes()[0], Some(pass));
        Ok(())
    }

    /// I-31: refused before anything has changed, and only where that is allowed.
    #[test]
    fn not_blockable_is_refused() -> Result {
        const CLEAR: bindings::mmu_notifier_event = bindings::mmu_notifier_event_MMU_NOTIFY_CLEAR;

        let mm = attach_mm()?;
        let addr = touched()?;
        let span = addr..addr + LEN;
        let notifier = Recorder::new().register(&mm, span.clone())?;
        notifier.data().defer.store(true, Relaxed);
        let seq = notifier.read_begin();

        // It would have to wait for the device.
        notifier.write().busy = true;
        let result = Running::begin(&mm, span.clone(), CLEAR, false);
        assert!(matches!(result, Err(error) if error == EAGAIN));
        assert!(!notifier.collided(seq));
        assert!(notifier.read().busy);
        assert_eq!(notifier.take_passes()[0], None);

        // It would have to wait for the lock.
        notifier.write().busy = false;
        let reader = notifier.read();
        let result = Running::begin(&mm, span.clone(), CLEAR, false);
        drop(reader);
        assert!(matches!(result, Err(error) if error == EAGAIN));
        assert!(!notifier.collided(seq));
        assert_eq!(notifier.take_passes()[0], None);

        // There is nothing to wait for. A second pass could wait, so there is none.
        drop(Running::begin(&mm, span.clone(), CLEAR, false)?);
        assert!(notifier.collided(seq));
        let passes = notifier.take_passes();
        assert_eq!(passes[0], Some(whole(Event::Clear, span.clone())));
        assert_eq!(passes[1], None);

        // One that may sleep is never refused.
        notifier.write().busy = true;
        let seq = notifier.read_begin();
        drop(Running::begin(&mm, span, CLEAR, true)?);
        assert!(notifier.collided(seq));
        assert!(!notifier.read().busy);
        Ok(())
    }

    /// One notifier refuses, so that core does not change anything, but it has called others
    /// before. Their second passes run, and their spans can be read again.
    #[test]
    fn refusal_of_another_notifier() -> Result {
        const CLEAR: bindings::mmu_notifier_event = bindings::mmu_notifier_event_MMU_NOTIFY_CLEAR;

        let mm = attach_mm()?;
        let addr = touched()?;
        // The notifiers are called in the order of their addresses.
        let first = Recorder::new().register(&mm, addr..addr + 4 * PAGE_SIZE)?;
        let second = Recorder::new().register(&mm, addr + 4 * PAGE_SIZE..addr + LEN)?;
        second.write().busy = true;
        let (first_seq, second_seq) = (first.read_begin(), second.read_begin());

        let result = Running::begin(&mm, addr..addr + LEN, CLEAR, false);
        assert!(matches!(result, Err(error) if error == EAGAIN));
        assert!(first.collided(first_seq));
        assert!(!second.collided(second_seq));

        let seq = first.read_begin();
        assert!(!first.collided(seq));
        Ok(())
    }

    #[test]
    fn owner_is_known() -> Result {
        let mm = attach_mm()?;
        let addr = touched()?;
        let span = addr..addr + PAGE_SIZE;
        let notifier = Recorder::new().register(&mm, span.clone())?;

        for (raw, event, owned) in [
            (
                bindings::mmu_notifier_event_MMU_NOTIFY_MIGRATE,
                Event::Migrate,
                true,
            ),
            (
                bindings::mmu_notifier_event_MMU_NOTIFY_EXCLUSIVE,
                Event::Exclusive,
                true,
            ),
            // Others have no owner, whatever is in the field.
            (
                bindings::mmu_notifier_event_MMU_NOTIFY_CLEAR,
                Event::Clear,
                false,
            ),
        ] {
            let seq = notifier.read_begin();
            drop(Running::begin(&mm, span.clone(), raw, true)?);

            // PM-1: an event of our own advances the sequence like any other one.
            assert!(notifier.collided(seq));
            let mut pass = whole(event, span.clone());
            pass.owned = owned;
            assert_eq!(notifier.take_passes()[0], Some(pass));
        }
        Ok(())
    }

    #[test]
    fn release_covers_the_span() -> Result {
        let mm = new_mm()?;
        let span = 16 * PAGE_SIZE..20 * PAGE_SIZE;
        let notifier = Recorder::new().register(&mm, span.clone())?;
        notifier.data().defer.store(true, Relaxed);
        let seq = notifier.read_begin();
        assert!(core::ptr::eq(notifier.mm().as_raw(), mm.as_raw()));

        // The last user, so that the address space ends.
        drop(mm);

        assert!(notifier.collided(seq));
        let passes = notifier.take_passes();
        let mut pass = whole(Event::Release, span);
        pass.kind = PassKind::Start;
        assert_eq!(passes[0], Some(pass));
        pass.kind = PassKind::Finish;
        assert_eq!(passes[1], Some(pass));

        // The `mm_struct` stays as long as the notifier.
        assert!(notifier.mm().mmget_not_zero().is_none());
        Ok(())
    }

    #[test]
    fn read_begin_waits_for_the_invalidation() -> Result {
        let mm = attach_mm()?;
        let addr = touched()?;
        let span = addr..addr + LEN;
        let notifier = Recorder::new().register(&mm, span.clone())?;
        let ended = Arc::new(Atomic::new(false), GFP_KERNEL)?;
        let was_ended = Arc::new(Atomic::new(false), GFP_KERNEL)?;

        let running = Running::begin(
            &mm,
            span,
            bindings::mmu_notifier_event_MMU_NOTIFY_CLEAR,
            true,
        )?;
        let (theirs, now, then) = (notifier.clone(), ended.clone(), was_ended.clone());
        let done = in_thread(move || {
            let seq = theirs.read_begin();
            then.store(now.load(Relaxed) && !theirs.collided(seq), Relaxed);
        })?;
        fsleep(Delta::from_millis(20));
        ended.store(true, Relaxed);
        drop(running);
        done.wait_for_completion();

        assert!(was_ended.load(Relaxed));
        Ok(())
    }

    /// A notifier that is registered during an invalidation is not valid before that has ended.
    #[test]
    fn register_during_an_invalidation() -> Result {
        let mm = attach_mm()?;
        let addr = touched()?;
        let span = addr..addr + LEN;
        // Core counts invalidations only if there is a notifier.
        let other = Recorder::new().register(&mm, span.clone())?;

        let running = Running::begin(
            &mm,
            span.clone(),
            bindings::mmu_notifier_event_MMU_NOTIFY_CLEAR,
            true,
        )?;
        let notifier = Recorder::new().register(&mm, span)?;
        drop(running);
        drop(other);

        let seq = notifier.read_begin();
        assert!(!notifier.collided(seq));
        vm_munmap(addr, PAGE_SIZE)?;
        assert!(notifier.collided(seq));
        Ok(())
    }

    /// The notifier may be used by many threads while the address space changes all the time.
    #[test]
    fn readers_and_changes_in_parallel() -> Result {
        let mm = attach_mm()?;
        let addr = touched()?;
        let notifier = Recorder::new().register(&mm, addr..addr + LEN)?;
        notifier.data().defer.store(true, Relaxed);

        let stop = Arc::new(Atomic::new(false), GFP_KERNEL)?;
        let rounds = Arc::new(Atomic::new(0usize), GFP_KERNEL)?;
        let mut threads = KVec::new();
        for _ in 0..2 {
            let (notifier, stop, rounds) = (notifier.clone(), stop.clone(), rounds.clone());
            threads.push(
                in_thread(move || {
                    while !stop.load(Relaxed) {
                        let seq = notifier.read_begin();
                        if !notifier.collided(seq) {
                            rounds.fetch_add(1, Relaxed);
                        }
                    }
                })?,
                GFP_KERNEL,
            )?;
        }

        let mut result = Ok(());
        for round in 0..200 {
            let page = addr + round % PAGES * PAGE_SIZE;
            result = write_user(page, 2).and_then(|()| madvise(page, PAGE_SIZE, Advice::DontNeed));
            if result.is_err() {
                break;
            }
            notifier.take_passes();
        }
        while result.is_ok() && rounds.load(Relaxed) < 10 {
            fsleep(Delta::from_millis(1));
        }
        stop.store(true, Relaxed);
        for thread in &threads {
            thread.wait_for_completion();
        }
        result
    }

    /// The lock class is told to lockdep at every registration, and the state can be of any kind.
    #[test]
    fn state_is_behind_the_lock() -> Result {
        struct Plain;

        impl Invalidate for Plain {
            type State = usize;

            fn start<'op>(op: Invalidation<'op, Self>) -> Result<Started<'op>, WouldBlock<'op>> {
                let (mut count, invalidated) = op.lock()?.advance();
                *count += 1;
                Ok(invalidated.into())
            }
        }

        let mm = attach_mm()?;
        let addr = touched()?;
        let notifier = KBox::pin_init(
            IntervalNotifier::register(
                &mm,
                addr..addr + LEN,
                Plain,
                40,
                c"rust_mm_notifier_plain",
                static_lock_class!(),
            ),
            GFP_KERNEL,
        )?;

        *notifier.write() += 1;
        vm_munmap(addr, PAGE_SIZE)?;
        let count = *notifier.read();
        assert_eq!(count, 42);
        assert!(core::ptr::eq(notifier.read().notifier(), &*notifier));
        Ok(())
    }
}
