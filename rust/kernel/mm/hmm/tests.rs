// SPDX-License-Identifier: GPL-2.0

//! Tests of walks, with a real address space, and of the conversion into segments.

#[macros::kunit_tests(rust_mm_hmm)]
mod suite {
    use super::super::{
        kind::{
            Kind,
            GRANULE, //
        },
        raw::PMD_SIZE,
        segment::{
            repair_head,
            segments, //
        },
        *, //
    };
    use crate::{
        bindings,
        io::PhysAddr,
        kunit::mm::*,
        mm::notifier::tests::support::{
            in_thread,
            Recorder,
            Recording,
            Running, //
        },
        page::{
            BorrowedPage,
            PAGE_SHIFT,
            PAGE_SIZE, //
        },
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
            msecs_to_jiffies,
            Delta, //
        }, //
    };

    const CLEAR: bindings::mmu_notifier_event = bindings::mmu_notifier_event_MMU_NOTIFY_CLEAR;

    /// An address space with some pages mapped, nothing touched, and a notifier for them.
    struct Fixture {
        mm: ARef<MmWithUser>,
        addr: usize,
        notifier: Recording,
        win: Window,
    }

    impl Fixture {
        const PAGES: usize = 8;

        fn new() -> Result<Self> {
            Self::with(|| vm_mmap(0, Self::PAGES * PAGE_SIZE, PROT_RW, PRIVATE))
        }

        fn with(map: impl FnOnce() -> Result<usize>) -> Result<Self> {
            let mm = attach_mm()?;
            let addr = map()?;
            let notifier = Recorder::new().register(&mm, addr..addr + Self::PAGES * PAGE_SIZE)?;

            Ok(Self {
                mm,
                addr,
                notifier,
                win: Window::new(Self::PAGES, GFP_KERNEL)?,
            })
        }

        fn page(&self, index: usize) -> usize {
            self.addr + index * PAGE_SIZE
        }

        fn pages(&self, range: Range<usize>) -> Range<usize> {
            self.page(range.start)..self.page(range.end)
        }

        fn span(&self) -> Range<usize> {
            self.notifier.span()
        }

        fn walk(&mut self, span: Range<usize>, req: &Request) -> Result<Walked<'_>> {
            walk(
                &self.notifier,
                &self.mm,
                span,
                req,
                &mut self.win,
                timeout(),
            )
        }

        fn states(&mut self, req: &Request) -> Result<KVec<PageState>> {
            let mut states = KVec::with_capacity(Self::PAGES, GFP_KERNEL)?;
            let span = self.span();
            for state in self.walk(span, req)?.pages() {
                states.push(state, GFP_KERNEL)?;
            }
            Ok(states)
        }
    }

    fn timeout() -> Jiffies {
        msecs_to_jiffies(1000)
    }

    fn snapshot() -> Request {
        Request::default()
    }

    fn ask(span: Range<usize>, access: Access) -> Request {
        Request {
            asked: Some((span, access)),
            ..Request::default()
        }
    }

    fn is_mapped(state: &PageState) -> bool {
        matches!(state, PageState::Mapped { .. })
    }

    /// Reads from memory by its physical address.
    fn read_phys(phys: PhysAddr) -> Result<u64> {
        let pfn = (phys >> PAGE_SHIFT) as usize;
        // SAFETY: Any number is allowed.
        let page = NonNull::new(unsafe { bindings::pfn_to_online_page(pfn) }).ok_or(EFAULT)?;
        // SAFETY: The page is system memory that the tests do not free while they look at it.
        let page = unsafe { BorrowedPage::from_raw(page) };

        let mut value = 0u64;
        // SAFETY: The destination is as large as what is read, and nobody else writes there now.
        unsafe {
            page.read_raw(
                (&raw mut value).cast(),
                phys as usize & (PAGE_SIZE - 1),
                size_of::<u64>(),
            )?
        };
        Ok(value)
    }

    /// Checks that the segments lead to what the process sees.
    fn check_content(walked: &Walked<'_>) -> Result<usize> {
        let mut pages = 0;
        for segment in walked.segments() {
            for (index, va) in segment.va.clone().step_by(PAGE_SIZE).enumerate() {
                let phys = segment.phys + (index * PAGE_SIZE) as PhysAddr;
                if read_phys(phys)? != read_user(va)? {
                    return Err(EIO);
                }
                pages += 1;
            }
        }
        Ok(pages)
    }

    fn error_of<T>(result: Result<T>) -> Option<Error> {
        result.err()
    }

    #[test]
    fn walk_with_the_address_space_held() -> Result {
        let t = Fixture::new()?;
        let mut win = Window::new(Fixture::PAGES, GFP_KERNEL)?;
        let asked = ask(t.pages(1..3), Access::Write);

        write_user(t.page(5), 7)?;
        let held = Held::new(&t.mm, t.span())?;
        let walked = walk_held(&t.notifier, &held, t.span(), &asked, &mut win);
        let states = walked.map(|walked| (walked.seq(), walked.pages().filter(is_mapped).count()));
        // Nobody else gets any of the locks.
        let busy = t.mm.mmap_read_trylock().is_none() && t.mm.lock_vma_under_rcu(t.addr).is_none();
        let mut vmas = 0;
        held.for_each_vma(&t.span(), |_| vmas += 1);
        let guard = t.notifier.read();
        let valid = states.as_ref().is_ok_and(|(seq, _)| !guard.retry(*seq));
        drop(guard);
        drop(held);

        assert!(busy && valid);
        assert_eq!(vmas, 1);
        assert_eq!(states.map(|(_, mapped)| mapped), Ok(3));
        assert!(t.mm.mmap_read_trylock().is_some());
        Ok(())
    }

    #[test]
    fn walk_of_what_is_not_held_is_refused() -> Result {
        let t = Fixture::new()?;
        let mut win = Window::new(Fixture::PAGES, GFP_KERNEL)?;
        let other = new_mm()?;

        let held = Held::new(&t.mm, t.pages(2..4))?;
        let more = walk_held(&t.notifier, &held, t.pages(2..5), &snapshot(), &mut win).err();
        drop(held);
        let held = Held::new(&other, t.span())?;
        let foreign = walk_held(&t.notifier, &held, t.span(), &snapshot(), &mut win).err();
        drop(held);

        assert_eq!(more, Some(EINVAL));
        assert_eq!(foreign, Some(EINVAL));
        Ok(())
    }

    #[test]
    fn faults_what_is_asked() -> Result {
        let mut f = Fixture::new()?;
        let span = f.span();
        let (mm, notifier) = (f.mm.clone(), f.notifier.clone());

        let walked = walk(
            &notifier,
            &mm,
            span.clone(),
            &ask(span.clone(), Access::Write),
            &mut f.win,
            timeout(),
        )?;
        assert!(!notifier.collided(walked.seq()));
        assert_eq!(walked.span(), span.clone());

        // Every page once, in order, writable system memory.
        let mut next = span.start;
        for segment in walked.segments() {
            assert_eq!(segment.va.start, next);
            assert!(segment.write);
            assert_eq!(segment.kind, Kind::System);
            next = segment.va.end;
        }
        assert_eq!(next, span.end);

        for (index, va) in span.step_by(PAGE_SIZE).enumerate() {
            write_user(va, 0x1234_5678 + index as u64)?;
        }
        assert_eq!(check_content(&walked)?, Fixture::PAGES);
        assert!(!notifier.collided(walked.seq()));
        Ok(())
    }

    #[test]
    fn snapshot_does_not_fault() -> Result {
        let mut f = Fixture::new()?;

        assert!(f.states(&snapshot())?.iter().all(|s| *s == PageState::None));
        let span = f.span();
        assert_eq!(f.walk(span, &snapshot())?.segments().count(), 0);

        write_user(f.page(3), 1)?;
        let states = f.states(&snapshot())?;
        for (index, state) in states.iter().enumerate() {
            assert_eq!(is_mapped(state), index == 3);
        }
        Ok(())
    }

    /// HMM alone faults everything from the page that is asked for to the end of the page table.
    #[test]
    fn neighbours_are_not_faulted() -> Result {
        for access in [Access::Read, Access::Write] {
            let mut f = Fixture::new()?;
            let asked = f.pages(2..4);

            let states = f.states(&ask(asked, access))?;
            for (index, state) in states.iter().enumerate() {
                match state {
                    PageState::Mapped { write, zero, .. } => {
                        assert!((2..4).contains(&index));
                        assert_eq!(*write, access == Access::Write);
                        assert_eq!(*zero, access == Access::Read);
                    }
                    state => {
                        assert!(!(2..4).contains(&index));
                        assert_eq!(*state, PageState::None);
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn around_is_faulted_as_it_needs() -> Result {
        let mut f = Fixture::new()?;
        let req = Request {
            around: Some((f.pages(1..6), Access::Read)),
            asked: Some((f.pages(4..5), Access::Write)),
            owner: None,
        };

        let states = f.states(&req)?;
        for (index, state) in states.iter().enumerate() {
            match state {
                PageState::Mapped { write, .. } => {
                    assert!((1..6).contains(&index));
                    assert_eq!(*write, index == 4);
                }
                state => {
                    assert!(!(1..6).contains(&index));
                    assert_eq!(*state, PageState::None);
                }
            }
        }
        Ok(())
    }

    /// What is asked for outside of the walked span does not matter.
    #[test]
    fn asked_is_clipped() -> Result {
        let mut f = Fixture::new()?;
        let (first, all) = (f.pages(0..2), f.span());

        let walked = f.walk(first.clone(), &ask(all, Access::Write))?;
        assert_eq!(
            walked.segments().map(|s| s.va.len()).sum::<usize>(),
            first.len()
        );
        let last = f.pages(6..8);
        let walked = f.walk(last, &ask(first, Access::Write))?;
        assert_eq!(walked.segments().count(), 0);
        Ok(())
    }

    #[test]
    fn permission_is_that_of_the_pages() -> Result {
        let mut f = Fixture::new()?;
        for index in 0..Fixture::PAGES {
            write_user(f.page(index), index as u64)?;
        }
        mprotect(f.page(2), 2 * PAGE_SIZE, PROT_READ)?;

        let span = f.span();
        let (ro, rw) = (f.pages(2..4), f.pages(4..5));
        for segment in f.walk(span.clone(), &snapshot())?.segments() {
            let in_ro = ro.contains(&segment.va.start);
            assert_eq!(segment.write, !in_ro);
            // No segment crosses from one to the other.
            assert_eq!(ro.contains(&(segment.va.end - 1)), in_ro);
        }
        assert_eq!(
            check_content(&f.walk(span.clone(), &snapshot())?)?,
            Fixture::PAGES
        );

        // Writing is asked for where it is allowed, and elsewhere things are as they are.
        assert_eq!(
            check_content(&f.walk(span.clone(), &ask(rw, Access::Write))?)?,
            Fixture::PAGES
        );
        f.walk(span.clone(), &ask(ro.clone(), Access::Read))?.seq();
        assert_eq!(
            error_of(f.walk(span, &ask(ro, Access::Write)).map(|_| ())),
            Some(EPERM)
        );
        Ok(())
    }

    /// PM-10: what is not asked for is no error.
    #[test]
    fn holes() -> Result {
        let mut f = Fixture::new()?;
        for index in 0..Fixture::PAGES {
            write_user(f.page(index), index as u64)?;
        }
        vm_munmap(f.page(2), PAGE_SIZE)?;
        mprotect(f.page(5), PAGE_SIZE, PROT_NONE)?;

        let states = f.states(&snapshot())?;
        for (index, state) in states.iter().enumerate() {
            match index {
                2 | 5 => assert_eq!(*state, PageState::Error),
                _ => assert!(is_mapped(state)),
            }
        }

        let span = f.span();
        let asked = f.pages(3..5);
        assert_eq!(
            check_content(&f.walk(span.clone(), &ask(asked, Access::Write))?)?,
            Fixture::PAGES - 2
        );
        for index in [2, 5] {
            let asked = f.pages(index..index + 1);
            for access in [Access::Read, Access::Write] {
                let result = f.walk(span.clone(), &ask(asked.clone(), access));
                assert_eq!(error_of(result.map(|_| ())), Some(EFAULT));
            }
        }
        let result = f.walk(span.clone(), &ask(span, Access::Read));
        assert_eq!(error_of(result.map(|_| ())), Some(EFAULT));
        Ok(())
    }

    #[test]
    fn bad_arguments() -> Result {
        let mut f = Fixture::new()?;
        let span = f.span();
        let mm = f.mm.clone();
        let other = new_mm()?;

        for bad in [
            span.start..span.start,
            span.end..span.start,
            span.start + 1..span.end,
            span.start..span.end - 1,
            span.start - PAGE_SIZE..span.end,
            span.start..span.end + PAGE_SIZE,
        ] {
            let result = f.walk(bad, &snapshot());
            assert_eq!(error_of(result.map(|_| ())), Some(EINVAL));
        }
        for bad in [
            span.start..span.start,
            span.start..span.start + 1,
            span.end..span.start,
        ] {
            let result = f.walk(span.clone(), &ask(bad, Access::Read));
            assert_eq!(error_of(result.map(|_| ())), Some(EINVAL));
        }

        // Too small a window.
        let mut small = Window::new(Fixture::PAGES - 1, GFP_KERNEL)?;
        let notifier = &f.notifier;
        let result = walk(notifier, &mm, span.clone(), &snapshot(), &mut small, 0);
        assert_eq!(error_of(result.map(|_| ())), Some(EINVAL));

        // Another address space, in each form.
        let win = &mut f.win;
        let result = walk(notifier, &other, span.clone(), &snapshot(), win, 0);
        assert_eq!(error_of(result.map(|_| ())), Some(EINVAL));
        let result = probe(notifier, &other, span.start, &snapshot(), win, 0);
        assert_eq!(error_of(result), Some(EINVAL));
        let seq = notifier.read_begin();
        let guard = other.mmap_read_lock();
        let result = walk_locked(notifier, &guard, seq, span.clone(), &snapshot(), win).map(|_| ());
        drop(guard);
        assert_eq!(error_of(result), Some(EINVAL));

        // The page of a probe.
        for bad in [span.start + 1, span.end, !(PAGE_SIZE - 1)] {
            let result = probe(notifier, &mm, bad, &snapshot(), win, 0);
            assert_eq!(error_of(result), Some(EINVAL));
        }
        Ok(())
    }

    #[test]
    fn collision_after_the_walk() -> Result {
        let mut f = Fixture::new()?;
        let span = f.span();
        let seq = f
            .walk(span.clone(), &ask(span.clone(), Access::Write))?
            .seq();
        assert!(!f.notifier.collided(seq));

        madvise(f.page(7), PAGE_SIZE, Advice::DontNeed)?;
        assert!(f.notifier.collided(seq));

        let seq = f.walk(span.clone(), &ask(span, Access::Write))?.seq();
        assert!(!f.notifier.collided(seq));
        Ok(())
    }

    /// A walk that meets an invalidation waits for its end and is true then.
    #[test]
    fn walk_races_with_an_invalidation() -> Result {
        let f = Fixture::new()?;
        let span = f.span();
        let ended = Arc::new(Atomic::new(false), GFP_KERNEL)?;
        let good = Arc::new(Atomic::new(false), GFP_KERNEL)?;

        let running = Running::begin(&f.mm, span.clone(), CLEAR, true)?;
        let (mm, notifier) = (f.mm.clone(), f.notifier.clone());
        let (mut win, now, then) = (f.win, ended.clone(), good.clone());
        let done = in_thread(move || {
            let req = ask(span.clone(), Access::Write);
            if let Ok(walked) = walk(&notifier, &mm, span, &req, &mut win, timeout()) {
                let seq = walked.seq();
                then.store(now.load(Relaxed) && !notifier.collided(seq), Relaxed);
            }
        })?;
        fsleep(Delta::from_millis(20));
        ended.store(true, Relaxed);
        drop(running);
        done.wait_for_completion();

        assert!(good.load(Relaxed));
        Ok(())
    }

    /// Many walks while pages are taken away all the time: none returns what has been taken before
    /// it began, and all end.
    #[test]
    fn walks_in_a_storm() -> Result {
        let f = Fixture::new()?;
        let span = f.span();
        let failed = Arc::new(Atomic::new(0i32), GFP_KERNEL)?;
        let valid = Arc::new(Atomic::new(0usize), GFP_KERNEL)?;
        let stop = Arc::new(Atomic::new(false), GFP_KERNEL)?;

        let (mm, notifier, mut win) = (f.mm.clone(), f.notifier.clone(), f.win);
        let (their_failed, their_valid, their_stop) = (failed.clone(), valid.clone(), stop.clone());
        let their_span = span.clone();
        let done = in_thread(move || {
            let req = ask(their_span.clone(), Access::Write);
            while !their_stop.load(Relaxed) {
                match walk(
                    &notifier,
                    &mm,
                    their_span.clone(),
                    &req,
                    &mut win,
                    timeout(),
                ) {
                    Ok(walked) => {
                        let guard = notifier.read();
                        if !guard.retry(walked.seq()) {
                            let bytes: usize = walked.segments().map(|s| s.va.len()).sum();
                            if bytes != their_span.len() {
                                their_failed.store(EIO.to_errno(), Relaxed);
                            }
                            their_valid.fetch_add(1, Relaxed);
                        }
                    }
                    Err(error) if error == EBUSY => {}
                    Err(error) => their_failed.store(error.to_errno(), Relaxed),
                }
            }
        })?;

        let mut result = Ok(());
        for round in 0..200 {
            let page = span.start + round % Fixture::PAGES * PAGE_SIZE;
            result = result.and_then(|()| madvise(page, PAGE_SIZE, Advice::DontNeed));
        }
        let mut patience = 1000;
        while valid.load(Relaxed) == 0 && patience > 0 {
            fsleep(Delta::from_millis(1));
            patience -= 1;
        }
        stop.store(true, Relaxed);
        done.wait_for_completion();

        result?;
        assert_eq!(failed.load(Relaxed), 0);
        assert!(valid.load(Relaxed) > 0);
        Ok(())
    }

    /// PM-3: several windows under one sequence number, and an invalidation between them.
    #[test]
    fn windows_share_a_seq() -> Result {
        let mut f = Fixture::new()?;
        for index in 0..Fixture::PAGES {
            write_user(f.page(index), index as u64)?;
        }
        let (low, high) = (f.pages(0..4), f.pages(4..8));
        let (mm, notifier) = (f.mm.clone(), f.notifier.clone());
        let req = snapshot();

        let seq = notifier.read_begin();
        let mmap = mm.mmap_read_lock();
        let first = walk_locked(&notifier, &mmap, seq, low.clone(), &req, &mut f.win)
            .map(|walked| walked.seq());
        let second = walk_locked(&notifier, &mmap, seq, high.clone(), &req, &mut f.win)
            .map(|walked| walked.segments().map(|s| s.va.len()).sum::<usize>());
        drop(mmap);
        assert_eq!(first?, seq);
        assert_eq!(second?, high.len());
        assert!(!notifier.collided(seq));

        // The first window is invalidated, so that the second one must not succeed any more.
        let mmap = mm.mmap_read_lock();
        let first = walk_locked(&notifier, &mmap, seq, low.clone(), &req, &mut f.win).map(|_| ());
        let running = Running::begin(&mm, low.clone(), CLEAR, true);
        let second = walk_locked(&notifier, &mmap, seq, high, &req, &mut f.win).map(|_| ());
        drop(running);
        drop(mmap);
        first?;
        assert_eq!(error_of(second), Some(EBUSY));
        assert!(notifier.collided(seq));

        // A number of another notifier is no better, even if it is the same.
        let other = Recorder::new().register(&mm, f.span())?;
        let seq = other.read_begin();
        let mmap = mm.mmap_read_lock();
        let result = walk_locked(&notifier, &mmap, seq, low, &req, &mut f.win).map(|_| ());
        drop(mmap);
        assert_eq!(error_of(result), Some(EBUSY));
        Ok(())
    }

    #[test]
    fn locked_walk_faults() -> Result {
        let mut f = Fixture::new()?;
        let (span, asked) = (f.span(), f.pages(1..2));
        let (mm, notifier) = (f.mm.clone(), f.notifier.clone());
        let req = ask(asked.clone(), Access::Write);

        let seq = notifier.read_begin();
        let mmap = mm.mmap_read_lock();
        let found = walk_locked(&notifier, &mmap, seq, span, &req, &mut f.win)
            .map(|walked| walked.segments().next());
        drop(mmap);

        let segment = found?.ok_or(EFAULT)?;
        assert_eq!(segment.va, asked);
        assert!(segment.write);
        assert!(!notifier.collided(seq));
        Ok(())
    }

    /// B-9: nothing of what an earlier walk has left is input of the next one.
    #[test]
    fn window_is_zeroed() -> Result {
        let mut f = Fixture::new()?;
        write_user(f.page(1), 1)?;
        f.win
            .get_mut(Fixture::PAGES)
            .ok_or(EINVAL)?
            .fill(usize::MAX);

        let states = f.states(&snapshot())?;
        for (index, state) in states.iter().enumerate() {
            assert_eq!(is_mapped(state), index == 1);
        }
        let sticky = bindings::hmm_pfn_flags_HMM_PFN_DMA_MAPPED
            | bindings::hmm_pfn_flags_HMM_PFN_P2PDMA
            | bindings::hmm_pfn_flags_HMM_PFN_P2PDMA_BUS;
        let left = f.win.get_mut(Fixture::PAGES).ok_or(EINVAL)?;
        assert!(left.iter().all(|raw| raw & sticky == 0));
        Ok(())
    }

    #[test]
    fn shared_memory() -> Result {
        let mut f = Fixture::with(|| vm_mmap(0, Fixture::PAGES * PAGE_SIZE, PROT_RW, SHARED))?;
        let span = f.span();

        write_user(f.page(2), 7)?;
        let walked = f.walk(span.clone(), &ask(span, Access::Read))?;
        // Reading shared memory is not satisfied with a page of zeroes.
        assert!(walked
            .pages()
            .all(|s| matches!(s, PageState::Mapped { zero: false, .. })));
        assert_eq!(check_content(&walked)?, Fixture::PAGES);
        Ok(())
    }

    #[cfg(CONFIG_MEMORY_FAILURE)]
    #[test]
    fn poisoned_page_is_told_apart() -> Result {
        let mut f = Fixture::new()?;
        for index in 0..Fixture::PAGES {
            write_user(f.page(index), index as u64)?;
        }
        let (span, poisoned, other) = (f.span(), f.pages(3..4), f.pages(4..5));
        madvise(poisoned.start, PAGE_SIZE, Advice::HwPoison)?;

        for access in [Access::Read, Access::Write] {
            let result = f.walk(span.clone(), &ask(poisoned.clone(), access));
            assert_eq!(error_of(result.map(|_| ())), Some(EHWPOISON));
            let result = f.walk(span.clone(), &ask(span.clone(), access));
            assert_eq!(error_of(result.map(|_| ())), Some(EHWPOISON));
        }

        // It is not mapped, and disturbs nobody who does not need it.
        let walked = f.walk(span, &ask(other, Access::Write))?;
        assert!(walked.segments().all(|s| !s.va.contains(&poisoned.start)));
        assert_eq!(check_content(&walked)?, Fixture::PAGES - 1);

        // Something else is still something else.
        vm_munmap(f.page(6), PAGE_SIZE)?;
        let (span, hole) = (f.span(), f.pages(6..7));
        let result = f.walk(span, &ask(hole, Access::Read));
        assert_eq!(error_of(result.map(|_| ())), Some(EFAULT));
        Ok(())
    }

    /// An address space, a huge page in it, a notifier and scratch memory.
    #[cfg(CONFIG_TRANSPARENT_HUGEPAGE)]
    type Huge = (ARef<MmWithUser>, usize, Recording, Window);

    /// Maps a huge page, and writes a different value into each page of it.
    ///
    /// The span of the notifier begins and ends inside of its neighbours.
    #[cfg(CONFIG_TRANSPARENT_HUGEPAGE)]
    fn huge() -> Result<Option<Huge>> {
        let mm = attach_mm()?;
        let room = vm_mmap_aligned(3 * PMD_SIZE, PMD_SIZE, PROT_RW)?;
        let addr = room + PMD_SIZE;
        madvise(addr, PMD_SIZE, Advice::HugePage)?;
        for (index, va) in (addr..addr + PMD_SIZE).step_by(PAGE_SIZE).enumerate() {
            write_user(va, 1000 + index as u64)?;
        }

        let notifier =
            Recorder::new().register(&mm, addr - PAGE_SIZE..addr + PMD_SIZE + PAGE_SIZE)?;
        let mut win = Window::new(PMD_SIZE / PAGE_SIZE + 2, GFP_KERNEL)?;
        if probe(&notifier, &mm, addr, &snapshot(), &mut win, timeout())?.is_none() {
            skip(c"no huge page to be had");
            return Ok(None);
        }
        Ok(Some((mm, addr, notifier, win)))
    }

    /// B-1: the order of the CPU mapping says nothing about what was walked.
    #[cfg(CONFIG_TRANSPARENT_HUGEPAGE)]
    #[test]
    fn parts_of_a_huge_page() -> Result {
        let Some((mm, addr, notifier, mut win)) = huge()? else {
            return Ok(());
        };
        let pages = PMD_SIZE / PAGE_SIZE;

        for part in [
            0..1,
            5..6,
            pages - 1..pages,
            3..20,
            pages - 16..pages,
            0..pages,
        ] {
            let span = addr + part.start * PAGE_SIZE..addr + part.end * PAGE_SIZE;
            let req = ask(span.clone(), Access::Write);
            let walked = walk(&notifier, &mm, span.clone(), &req, &mut win, timeout())?;
            let mut found = walked.segments();

            let segment = found.next().ok_or(EFAULT)?;
            assert_eq!(segment.va, span);
            assert!(found.next().is_none());
            assert_eq!(check_content(&walked)?, part.len());
            assert_eq!(read_phys(segment.phys)?, 1000 + part.start as u64);
            assert!(walked.pages().all(
                |s| matches!(s, PageState::Mapped { order, .. } if PAGE_SIZE << order == PMD_SIZE)
            ));
        }
        Ok(())
    }

    /// PM-9: one page stands for its block.
    #[cfg(CONFIG_TRANSPARENT_HUGEPAGE)]
    #[test]
    fn probe_finds_a_huge_page() -> Result {
        let Some((mm, addr, notifier, mut win)) = huge()? else {
            return Ok(());
        };
        let block = addr..addr + PMD_SIZE;

        for page in [0, 7, PMD_SIZE / PAGE_SIZE - 1] {
            let va = addr + page * PAGE_SIZE;
            let req = ask(va..va + PAGE_SIZE, Access::Write);
            let (seq, segment) =
                probe(&notifier, &mm, va, &req, &mut win, timeout())?.ok_or(ENOENT)?;

            assert!(!notifier.collided(seq));
            assert_eq!(segment.va, block.clone());
            assert!(segment.write);
            assert_eq!(segment.kind, Kind::System);
            assert_eq!(read_phys(segment.phys)?, 1000);
            let last = segment.phys + (PMD_SIZE - PAGE_SIZE) as PhysAddr;
            assert_eq!(read_phys(last)?, 1000 + (PMD_SIZE / PAGE_SIZE - 1) as u64);
        }

        // Clipped to the span of the notifier: the number says nothing about what is outside.
        let inside = addr + 16 * PAGE_SIZE..addr + 32 * PAGE_SIZE;
        let narrow = Recorder::new().register(&mm, inside.clone())?;
        let (seq, segment) = probe(
            &narrow,
            &mm,
            inside.start + 3 * PAGE_SIZE,
            &snapshot(),
            &mut win,
            timeout(),
        )?
        .ok_or(ENOENT)?;
        assert!(!narrow.collided(seq));
        assert_eq!(segment.va, inside);
        assert_eq!(read_phys(segment.phys)?, 1000 + 16);

        // Small pages beside it.
        let beside = addr - PAGE_SIZE;
        write_user(beside, 1)?;
        assert!(probe(&notifier, &mm, beside, &snapshot(), &mut win, timeout())?.is_none());

        // A page with other rights splits it.
        mprotect(addr + 9 * PAGE_SIZE, PAGE_SIZE, PROT_READ)?;
        assert!(probe(&notifier, &mm, addr, &snapshot(), &mut win, timeout())?.is_none());
        let walked = walk(&notifier, &mm, block, &snapshot(), &mut win, timeout())?;
        assert_eq!(walked.segments().count(), 3);
        assert_eq!(check_content(&walked)?, PMD_SIZE / PAGE_SIZE);
        Ok(())
    }

    /// A huge page that nobody has touched is installed by the fault of one page.
    #[cfg(CONFIG_TRANSPARENT_HUGEPAGE)]
    #[test]
    fn probe_faults_a_huge_page() -> Result {
        let mm = attach_mm()?;
        let addr = vm_mmap_aligned(PMD_SIZE, PMD_SIZE, PROT_RW)?;
        madvise(addr, PMD_SIZE, Advice::HugePage)?;
        let notifier = Recorder::new().register(&mm, addr..addr + PMD_SIZE)?;
        let mut win = Window::new(1, GFP_KERNEL)?;

        let va = addr + 77 * PAGE_SIZE;
        assert!(probe(&notifier, &mm, va, &snapshot(), &mut win, timeout())?.is_none());
        let req = ask(va..va + PAGE_SIZE, Access::Write);
        match probe(&notifier, &mm, va, &req, &mut win, timeout())? {
            Some((_, segment)) => {
                assert_eq!(segment.va, addr..addr + PMD_SIZE);
                assert!(segment.write);
            }
            None => skip(c"no huge page to be had"),
        }
        Ok(())
    }

    /// xorshift64*
    struct Random(u64);

    impl Random {
        fn next(&mut self, below: usize) -> usize {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below
        }
    }

    fn entry(number: usize, order: usize, write: bool) -> usize {
        let mut raw = bindings::hmm_pfn_flags_HMM_PFN_VALID
            | number
            | order << bindings::hmm_pfn_flags_HMM_PFN_ORDER_SHIFT;
        if write {
            raw |= bindings::hmm_pfn_flags_HMM_PFN_WRITE;
        }
        raw
    }

    /// Some kinds, some of them no memory.
    fn some_kind(number: usize) -> Option<Kind> {
        match number / GRANULE % 7 {
            5 => Some(Kind::DevicePrivate),
            6 => None,
            _ => Some(Kind::System),
        }
    }

    /// B-1: every page exactly once, none outside, whatever the CPU maps it with.
    #[test]
    fn segments_cover_every_page_once() -> Result {
        const MAX_PAGES: usize = 700;
        const ORDERS: [usize; 5] = [0, 0, 2, 4, 9];

        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut raw = KVec::with_capacity(MAX_PAGES, GFP_KERNEL)?;

        for _ in 0..300 {
            raw.clear();
            let first = 1 + random.next(2048);
            let pages = 1 + random.next(MAX_PAGES);

            // Entries as HMM makes them: each mapping is aligned, and may begin before and end
            // behind the walk.
            let mut page = first;
            let mut number = random.next(1 << 20);
            while page < first + pages {
                let order = ORDERS[random.next(ORDERS.len())];
                let size = 1 << order;
                let inside = page % size;
                let end = (page - inside + size).min(first + pages);
                match random.next(8) {
                    // Goes on where the last one has ended, if the alignment permits.
                    0..4 if number % size == inside => {}
                    _ => number = (random.next(1 << 20) & !(size - 1)) + inside,
                }
                let write = random.next(4) != 0;
                let flags = match random.next(10) {
                    0 => 0,
                    1 => bindings::hmm_pfn_flags_HMM_PFN_ERROR,
                    // As for `hugetlb` memory that is not present.
                    2 => order << bindings::hmm_pfn_flags_HMM_PFN_ORDER_SHIFT,
                    _ => entry(0, order, write),
                };
                while page < end {
                    raw.push(flags | number, GFP_KERNEL)?;
                    number += 1;
                    page += 1;
                }
            }

            let valid = |raw: usize| {
                raw & bindings::hmm_pfn_flags_HMM_PFN_VALID != 0
                    && some_kind(raw & !bindings::hmm_pfn_flags_HMM_PFN_FLAGS).is_some()
            };
            let expected = raw.iter().filter(|&&raw| valid(raw)).count();
            let start = first * PAGE_SIZE;
            let mut next = start;
            let mut found = 0;
            let mut last: Option<Segment> = None;

            for segment in segments(&raw, start, some_kind) {
                // In order, not empty and inside.
                assert!(segment.va.start >= next);
                assert!(segment.va.end > segment.va.start);
                assert!(segment.va.end <= start + pages * PAGE_SIZE);
                next = segment.va.end;

                // Each page is what the entry says.
                let index = (segment.va.start - start) / PAGE_SIZE;
                let count = segment.va.len() / PAGE_SIZE;
                let number = (segment.phys >> PAGE_SHIFT) as usize;
                let good = raw[index..index + count]
                    .iter()
                    .enumerate()
                    .all(|(i, &raw)| {
                        valid(raw)
                            && raw & !bindings::hmm_pfn_flags_HMM_PFN_FLAGS == number + i
                            && (raw & bindings::hmm_pfn_flags_HMM_PFN_WRITE != 0) == segment.write
                            && some_kind(number + i) == Some(segment.kind)
                    });
                assert!(good);
                found += count;

                // As long as possible.
                if let Some(last) = last {
                    let joins = last.va.end == segment.va.start
                        && last.phys + last.va.len() as PhysAddr == segment.phys
                        && last.write == segment.write
                        && last.kind == segment.kind;
                    assert!(!joins);
                }
                last = Some(segment);
            }
            assert_eq!(found, expected);
        }
        Ok(())
    }

    /// The kind is not asked for every page.
    #[test]
    fn kind_is_asked_once_per_granule() -> Result {
        let asked = Atomic::new(0usize);
        let mut raw = KVec::new();
        for number in 0..2 * GRANULE {
            raw.push(entry(8 * GRANULE + number, 0, true), GFP_KERNEL)?;
        }

        let found = segments(&raw, 0x1000_0000, |_| {
            asked.fetch_add(1, Relaxed);
            Some(Kind::System)
        })
        .count();

        assert_eq!(found, 1);
        assert_eq!(asked.load(Relaxed), 2);
        Ok(())
    }

    /// PM-8: a walk that begins inside a device private huge page.
    #[test]
    fn head_of_a_private_huge_page_is_repaired() -> Result {
        const PAGES: usize = PMD_SIZE / PAGE_SIZE;
        const HEAD: usize = 64 * PAGES;
        let order = PAGES.ilog2() as usize;
        let private = |_: usize| Some(Kind::DevicePrivate);
        let system = |_: usize| Some(Kind::System);
        let inside = 10 * PMD_SIZE + 5 * PAGE_SIZE;

        // As HMM reports it: from the head on, and then the next huge page.
        let as_reported = |skipped: usize, count: usize| -> Result<KVec<usize>> {
            let mut raw = KVec::new();
            for index in 0..count {
                let number = if index < PAGES - 5 {
                    HEAD + skipped + index
                } else {
                    HEAD + 10 * PAGES + index - (PAGES - 5)
                };
                raw.push(entry(number, order, true), GFP_KERNEL)?;
            }
            Ok(raw)
        };
        let numbers = |raw: &[usize]| -> bool {
            raw.iter().enumerate().all(|(index, raw)| {
                let number = raw & !bindings::hmm_pfn_flags_HMM_PFN_FLAGS;
                number
                    == if index < PAGES - 5 {
                        HEAD + 5 + index
                    } else {
                        HEAD + 10 * PAGES + index - (PAGES - 5)
                    }
            })
        };

        for count in [1, 3, PAGES - 5, PAGES + 7] {
            let mut raw = as_reported(0, count)?;
            repair_head(&mut raw, inside, PMD_SIZE, private);
            assert!(numbers(&raw));
            let flags = entry(0, order, true);
            assert!(raw.iter().all(|raw| raw & flags == flags));

            // What is right stays as it is: a present page, or a repaired HMM.
            let mut raw = as_reported(5, count)?;
            repair_head(&mut raw, inside, PMD_SIZE, private);
            assert!(numbers(&raw));
        }

        // Other memory, small pages and aligned walks are left alone.
        let mut raw = as_reported(0, 4)?;
        let before = as_reported(0, 4)?;
        repair_head(&mut raw, inside, PMD_SIZE, system);
        assert!(raw[..] == before[..]);
        repair_head(&mut raw, 10 * PMD_SIZE, PMD_SIZE, private);
        assert!(raw[..] == before[..]);
        let mut raw = KVec::from_elem(entry(HEAD, order - 1, true), 4, GFP_KERNEL)?;
        repair_head(&mut raw, inside, PMD_SIZE, private);
        assert!(raw.iter().all(|&raw| raw == entry(HEAD, order - 1, true)));
        repair_head(&mut [], inside, PMD_SIZE, private);
        Ok(())
    }
}
