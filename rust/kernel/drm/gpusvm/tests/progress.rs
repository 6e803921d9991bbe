// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Tests of faults that lose against invalidations.

use kernel::{
    sync::Completion,
    time::{
        msecs_to_jiffies,
        Jiffies, //
    },
    workqueue, //
};

use super::*;

/// What the test and the thread of a storm share.
#[pin_data]
struct Shared {
    over: Atomic<bool>,
    #[pin]
    ended: Completion,
}

/// A thread that takes a page away from the process, as fast as it can.
struct Storm(Arc<Shared>);

impl Storm {
    fn new(mm: &ARef<MmWithUser>, addr: usize) -> Result<Self> {
        let shared = Arc::pin_init(
            pin_init!(Shared {
                over: Atomic::new(false),
                ended <- Completion::new(),
            }),
            GFP_KERNEL,
        )?;
        let (theirs, mm) = (shared.clone(), mm.clone());

        workqueue::system_unbound().try_spawn(GFP_KERNEL, move || {
            // SAFETY: This is a kernel thread without an address space, and gives this one, which has
            // a user until then, back below.
            unsafe { bindings::kthread_use_mm(mm.as_raw()) };
            while !theirs.over.load(Relaxed) {
                let _ = madvise(addr, PAGE_SIZE, Advice::DontNeed);
                fsleep(Delta::from_micros(20));
            }
            // SAFETY: It was taken above.
            unsafe { bindings::kthread_unuse_mm(mm.as_raw()) };
            drop(mm);
            theirs.ended.complete_all();
        })?;
        Ok(Self(shared))
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.0.over.store(true, Relaxed);
        self.0.ended.wait_for_completion();
    }
}

fn with_timeout(timeout: Option<Jiffies>) -> FaultOptions {
    FaultOptions {
        timeout,
        ..FaultOptions::default()
    }
}

#[kernel::macros::kunit_tests(drm_gpusvm_progress)]
mod progress_tests {
    use super::*;

    #[test]
    fn fault_that_always_loses_holds_the_address_space() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;
        let driver = t.svm.driver();

        // After each walk, a page of its result is gone.
        *driver.storm.lock() = Some(addr + 3 * PAGE_SIZE);
        let done = t.fault(addr, PAGE_SIZE, Access::Write);
        *driver.storm.lock() = None;
        assert!(done.is_ok_and(|done| done.retries > 4 && done.retries <= 16));
        assert_eq!(t.stats().held, 1);
        assert_eq!(t.accessible(addr, PAGE_SIZE), (PAGE_SIZE, PAGE_SIZE));
        // The locks are free again, and what was committed is found.
        madvise(addr, PAGE_SIZE, Advice::DontNeed)?;
        assert_eq!(t.accessible(addr, PAGE_SIZE), (0, 0));
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn request_for_a_block_gets_all_of_it() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;
        let driver = t.svm.driver();

        *driver.storm.lock() = Some(addr + 3 * PAGE_SIZE);
        let done = t.fault_exact(addr, BLOCK_SIZE, Access::Write);
        *driver.storm.lock() = None;
        assert!(done.is_ok());
        assert_eq!(t.accessible(addr, BLOCK_SIZE), (BLOCK_SIZE, BLOCK_SIZE));
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn shared_memory_is_held_as_well() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = vm_mmap(0, 4 * PAGE_SIZE, PROT_RW, SHARED)?;
        let driver = t.svm.driver();

        *driver.storm.lock() = Some(addr);
        let done = t.fault(addr, PAGE_SIZE, Access::Write);
        *driver.storm.lock() = None;
        assert!(done.is_ok());
        assert!(t.stats().held > 0);
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn address_space_is_held_before_the_deadline() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;
        let driver = t.svm.driver();
        let options = with_timeout(Some(msecs_to_jiffies(200)));

        // Long before it has lost many races.
        driver.slow.store(50, Relaxed);
        *driver.storm.lock() = Some(addr);
        let done = t.svm.fault(addr..addr + PAGE_SIZE, Access::Write, &options);
        *driver.storm.lock() = None;
        assert!(done.is_ok_and(|done| done.retries <= 4));
        assert_eq!(t.stats().held, 1);
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn error_is_the_same_with_the_address_space_held() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;
        let driver = t.svm.driver();

        madvise(addr + PAGE_SIZE, PAGE_SIZE, Advice::GuardInstall)?;
        *driver.storm.lock() = Some(addr);
        // The first page loses races, the second one cannot be had.
        let done = t.try_fault(addr, 2 * PAGE_SIZE, Access::Write);
        *driver.storm.lock() = None;
        assert_eq!(
            done,
            Err(Unresolved {
                error: FaultError::Inaccessible,
                addr: addr + PAGE_SIZE,
            })
        );
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn driver_that_wants_more_tries_holds_nothing() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;

        t.svm.driver().again_commit.store(20, Relaxed);
        assert!(t.fault_exact(addr, PAGE_SIZE, Access::Write).is_ok());
        assert_eq!(t.stats().held, 0);
        assert!(t.is_sound());
        Ok(())
    }

    #[test]
    fn faults_end_in_a_real_storm() -> Result {
        let t = KBox::new(Fixture::new()?, GFP_KERNEL)?;
        let addr = map_pages(BLOCK_SIZE, PROT_RW)?;
        let storm = Storm::new(&t._mm, addr)?;
        let driver = t.svm.driver();
        let mut lost = 0;

        // So that it does lose races, whatever the two CPUs are doing.
        driver.slow.store(1, Relaxed);
        for _ in 0..5 {
            let done = t.fault(addr, PAGE_SIZE, Access::Write);

            if done.is_err() {
                lost += 1;
            }
            madvise(addr, PAGE_SIZE, Advice::DontNeed)?;
        }
        drop(storm);
        assert_eq!(lost, 0);
        assert!(t.stats().retries > 0);
        assert!(t.stats().held > 0);
        assert!(t.is_sound());
        Ok(())
    }
}
