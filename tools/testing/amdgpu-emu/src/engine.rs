// SPDX-License-Identifier: GPL-2.0

//! Engines: what works on its own, on a thread of its own.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::gpu::Gpu;

/// What an engine wants after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing to do until it is woken.
    Idle,
    /// More to do at once.
    Busy,
    /// More to do after this time, or when it is woken.
    Wait(Duration),
}

/// Something that executes packets.
pub trait Engine: Send {
    /// The engine's name in reports and for the control socket.
    fn name(&self) -> &'static str;

    /// Does a piece of work that takes a few milliseconds at most.
    fn step(&mut self, gpu: &Gpu) -> Step;
}

#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    ringing: Condvar,
    stalled: AtomicBool,
    stop: AtomicBool,
}

/// Wakes an engine; also stalls or ends it.
#[derive(Clone, Default)]
pub struct Waker(Arc<Bell>);

impl Waker {
    /// A waker, for an engine that may be started later.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the engine look for work.
    pub fn wake(&self) {
        *self.0.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.ringing.notify_all();
    }

    /// Holds the engine before its next step, or lets it go on.
    pub fn stall(&self, stalled: bool) {
        self.0.stalled.store(stalled, Ordering::Release);
        self.wake();
    }

    /// Ends the engine after its step.
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::Release);
        self.wake();
    }

    fn stopped(&self) -> bool {
        self.0.stop.load(Ordering::Acquire)
    }

    /// Sleeps until it is woken or the time is over, if any is given.
    fn sleep(&self, time: Option<Duration>) {
        let rung = self.0.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rung = match time {
            Some(time) => {
                let waited = self.0.ringing.wait_timeout_while(rung, time, |rung| !*rung);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => {
                let waited = self.0.ringing.wait_while(rung, |rung| !*rung);
                waited.unwrap_or_else(PoisonError::into_inner)
            }
        };
        *rung = false;
    }
}

fn run(gpu: &Gpu, engine: &mut dyn Engine, waker: &Waker) {
    while !waker.stopped() {
        if waker.0.stalled.load(Ordering::Acquire) {
            waker.sleep(None);
            continue;
        }
        // What the engine left half done does not matter: a panic ends the program.
        match panic::catch_unwind(AssertUnwindSafe(|| engine.step(gpu))) {
            Ok(Step::Busy) => {}
            Ok(Step::Idle) => waker.sleep(None),
            Ok(Step::Wait(time)) => waker.sleep(Some(time)),
            Err(_) => {
                gpu.report.fatal(engine.name(), "the engine panicked");
                return;
            }
        }
    }
}

/// Starts an engine's thread. Its waker is known to `gpu` from now on.
///
/// # Errors
///
/// If the system has no more threads.
pub fn spawn(
    gpu: &Arc<Gpu>,
    mut engine: Box<dyn Engine>,
    waker: Waker,
) -> std::io::Result<thread::JoinHandle<()>> {
    gpu.add_waker(engine.name(), waker.clone());
    let gpu = Arc::clone(gpu);
    thread::Builder::new()
        .name(engine.name().to_string())
        .spawn(move || run(&gpu, engine.as_mut(), &waker))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Echo {
        said: mpsc::Sender<u32>,
        count: u32,
    }

    impl Engine for Echo {
        fn name(&self) -> &'static str {
            "echo"
        }

        fn step(&mut self, _gpu: &Gpu) -> Step {
            self.count += 1;
            self.said.send(self.count).unwrap();
            if self.count.is_multiple_of(2) {
                Step::Idle
            } else {
                Step::Busy
            }
        }
    }

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(50);

    #[test]
    fn engines_sleep_stall_and_end() {
        let gpu = Gpu::for_tests();
        let (said, heard) = mpsc::channel();
        let waker = Waker::new();
        let thread = spawn(&gpu, Box::new(Echo { said, count: 0 }), waker.clone()).unwrap();
        assert_eq!(heard.recv_timeout(LONG), Ok(1));
        assert_eq!(heard.recv_timeout(LONG), Ok(2));
        assert!(heard.recv_timeout(SHORT).is_err(), "an idle engine runs");
        gpu.wake_all();
        assert_eq!(heard.recv_timeout(LONG), Ok(3));
        assert_eq!(heard.recv_timeout(LONG), Ok(4));
        assert!(gpu.stall("echo", true));
        assert!(!gpu.stall("nobody", true));
        waker.wake();
        assert!(heard.recv_timeout(SHORT).is_err(), "a stalled engine runs");
        gpu.stall("echo", false);
        assert_eq!(heard.recv_timeout(LONG), Ok(5));
        waker.stop();
        thread.join().unwrap();
    }

    struct Broken;

    impl Engine for Broken {
        fn name(&self) -> &'static str {
            "broken"
        }

        fn step(&mut self, _gpu: &Gpu) -> Step {
            panic!("on purpose");
        }
    }

    #[test]
    fn a_panic_ends_the_program() {
        let gpu = Gpu::for_tests();
        assert_eq!(gpu.report.end(), None);
        spawn(&gpu, Box::new(Broken), Waker::new()).unwrap().join().unwrap();
        assert_eq!(gpu.report.end(), Some("broken: the engine panicked"));
        assert!(gpu.report.failed());
    }
}
