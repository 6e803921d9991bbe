// SPDX-License-Identifier: GPL-2.0

//! A queue: command lists in order, executed by a thread, and stopped by a fault that stays.

use kernel::{
    drm::gpusvm::{
        FaultError,
        GpuSvm, //
    },
    new_condvar,
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        Arc,
        CondVar,
        CondVarTimeoutResult,
        Mutex, //
    },
    time::Jiffies,
    uapi, //
};

use crate::{
    engine::{
        Command,
        Engine,
        Failure,
        Reason, //
    },
    ffi::ThreadMain,
    vm::Vm, //
};

/// Most command lists that a queue holds.
const MAX_JOBS: usize = uapi::VSVM_MAX_JOBS as usize;

/// Most bytes of data that the command lists of a queue hold together.
const MAX_DATA_HELD: usize = uapi::VSVM_MAX_DATA_HELD as usize;

/// A command list.
pub(crate) struct Job {
    pub(crate) commands: KVVec<Command>,
    pub(crate) data: KVVec<u8>,
}

/// What stopped a queue.
#[derive(Copy, Clone)]
pub(crate) struct Stop {
    seqno: u64,
    command: u32,
    failure: Failure,
}

impl Stop {
    /// As user space sees it.
    pub(crate) fn to_user(self) -> uapi::drm_vsvm_error {
        uapi::drm_vsvm_error {
            address: self.failure.address as u64,
            seqno: self.seqno,
            command: self.command,
            access: if self.failure.write {
                uapi::drm_vsvm_access_VSVM_ACCESS_WRITE
            } else {
                uapi::drm_vsvm_access_VSVM_ACCESS_READ
            },
            reason: self.failure.reason.to_user(),
            pad: 0,
        }
    }
}

/// What became of a command list.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was executed.
    Done,
    /// It failed.
    Failed,
    /// It was behind the one that failed.
    Cancelled,
}

struct State {
    /// Submitted and not begun, in order, with their numbers.
    waiting: KVec<(u64, Job)>,
    /// Executed, and the data not fetched, with their numbers.
    kept: KVec<(u64, KVVec<u8>)>,
    /// Command lists that exist in some form: waiting, running, kept or being fetched.
    jobs: usize,
    /// Their bytes of data.
    data_held: usize,
    submitted: u64,
    /// Number of the last one that was executed or cancelled.
    completed: u64,
    /// Numbers up to this one were submitted before the last reset.
    before_reset: u64,
    stop: Option<Stop>,
}

impl State {
    /// A command list ceases to exist.
    fn forget(&mut self, data_size: usize) {
        self.jobs = self.jobs.saturating_sub(1);
        self.data_held = self.data_held.saturating_sub(data_size);
    }
}

/// The state of a queue, for user space.
pub(crate) struct Info {
    pub(crate) submitted: u64,
    pub(crate) completed: u64,
    pub(crate) stop: Option<Stop>,
}

/// A queue.
#[pin_data]
pub(crate) struct Queue {
    svm: Arc<GpuSvm<Vm>>,
    /// Where the engine of this queue is connected to the address space.
    port: usize,
    /// Nothing is accepted any more, and what runs ends.
    closed: Atomic<bool>,
    #[pin]
    state: Mutex<State>,
    /// Something was submitted, executed or closed.
    #[pin]
    changed: CondVar,
}

impl Queue {
    /// An empty queue, whose engine is connected to `port`.
    pub(crate) fn new(svm: Arc<GpuSvm<Vm>>, port: usize) -> Result<Arc<Self>> {
        let state = State {
            waiting: KVec::with_capacity(MAX_JOBS, GFP_KERNEL)?,
            kept: KVec::with_capacity(MAX_JOBS, GFP_KERNEL)?,
            jobs: 0,
            data_held: 0,
            submitted: 0,
            completed: 0,
            before_reset: 0,
            stop: None,
        };

        Arc::pin_init(
            pin_init!(Self {
                svm,
                port,
                closed: Atomic::new(false),
                state <- new_mutex!(state, "vsvm::Queue::state"),
                changed <- new_condvar!("vsvm::Queue::changed"),
            }),
            GFP_KERNEL,
        )
    }

    /// Whether the queue is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Ends the queue: what runs ends soon, what waits is not executed, nothing can be submitted.
    pub(crate) fn close(&self) {
        let _state = self.state.lock();

        self.closed.store(true, Relaxed);
        self.changed.notify_all();
    }

    /// Appends a command list and returns its number.
    ///
    /// Fails with `ENODEV` if the queue is closed, `ECANCELED` if it has stopped, `EBUSY` if it is
    /// full.
    pub(crate) fn submit(&self, job: Job) -> Result<u64> {
        let mut state = self.state.lock();
        let state = &mut *state;

        if self.is_closed() {
            return Err(ENODEV);
        }
        if state.stop.is_some() {
            return Err(ECANCELED);
        }
        let data_size = job.data.len();
        // OVERFLOW: Both are limited.
        let data_held = state.data_held + data_size;

        if state.jobs >= MAX_JOBS || data_held > MAX_DATA_HELD {
            return Err(EBUSY);
        }
        // OVERFLOW: Nobody submits so much.
        let seqno = state.submitted + 1;

        state.waiting.push((seqno, job), GFP_KERNEL)?;
        state.submitted = seqno;
        state.jobs += 1;
        state.data_held = data_held;
        self.changed.notify_all();
        Ok(seqno)
    }

    /// Waits until a command list was executed or cancelled; [`None`] waits without limit.
    pub(crate) fn wait(&self, seqno: u64, timeout: Option<Jiffies>) -> Result<(Outcome, Info)> {
        let mut state = self.state.lock();
        let mut left = timeout;

        if seqno == 0 || seqno > state.submitted {
            return Err(ENOENT);
        }
        loop {
            if seqno <= state.before_reset {
                return Err(ESTALE);
            }
            if seqno <= state.completed {
                break;
            }
            if self.is_closed() {
                return Err(ENODEV);
            }
            match left {
                Some(0) => return Err(ETIME),
                Some(jiffies) => {
                    match self.changed.wait_interruptible_timeout(&mut state, jiffies) {
                        CondVarTimeoutResult::Woken { jiffies } => left = Some(jiffies),
                        CondVarTimeoutResult::Timeout => left = Some(0),
                        CondVarTimeoutResult::Signal { .. } => return Err(EINTR),
                    }
                }
                None => {
                    if self.changed.wait_interruptible(&mut state) {
                        return Err(EINTR);
                    }
                }
            }
        }
        let outcome = match state.stop {
            Some(stop) if seqno == stop.seqno => Outcome::Failed,
            Some(stop) if seqno > stop.seqno => Outcome::Cancelled,
            _ => Outcome::Done,
        };

        Ok((outcome, Self::info(&state)))
    }

    /// Hands the data of a command list that was executed to `copy`, and then lets go of it.
    ///
    /// Fails with `ENODATA` if there is none, `EINVAL` if it has another size, and as `copy` does;
    /// then it is kept.
    pub(crate) fn fetch(
        &self,
        seqno: u64,
        data_size: usize,
        copy: impl FnOnce(&[u8]) -> Result,
    ) -> Result {
        let (seqno, data) = {
            let mut state = self.state.lock();
            let at = state
                .kept
                .iter()
                .position(|(kept, _)| *kept == seqno)
                .ok_or(ENODATA)?;

            if state.kept.get(at).is_none_or(|(_, d)| d.len() != data_size) {
                return Err(EINVAL);
            }
            state.kept.remove(at)?
        };
        // Without the lock, since this sleeps for as long as user space likes.
        let result = copy(&data);
        let mut state = self.state.lock();

        if result.is_ok() || seqno <= state.before_reset {
            state.forget(data_size);
        } else {
            // There is room, since `jobs` still counts it.
            state.kept.push((seqno, data), GFP_KERNEL)?;
        }
        result
    }

    fn info(state: &State) -> Info {
        Info {
            submitted: state.submitted,
            completed: state.completed,
            stop: state.stop,
        }
    }

    /// The state of the queue. If it has stopped and `reset` is set, it runs again afterwards.
    pub(crate) fn inspect(&self, reset: bool) -> Info {
        let mut state = self.state.lock();
        let info = Self::info(&state);

        if reset && state.stop.take().is_some() {
            state.before_reset = state.submitted;
            while let Some((_, data)) = state.kept.pop() {
                state.forget(data.len());
            }
            // Somebody may wait for what is no more.
            self.changed.notify_all();
        }
        info
    }

    /// The next command list, when there is one; [`None`] if the queue is closed.
    fn next(&self) -> Option<(u64, Job)> {
        let mut state = self.state.lock();

        while !self.is_closed() {
            if !state.waiting.is_empty() {
                return state.waiting.remove(0).ok();
            }
            // The only signal is the one that comes when the queue was closed.
            let _ = self.changed.wait_interruptible(&mut state);
        }
        None
    }

    fn execute(&self, job: &mut Job) -> Result<(), (u32, Failure)> {
        let no_memory = |_| {
            let failure = Failure {
                address: job.commands.first().map_or(0, Command::addr),
                write: false,
                reason: Reason::Fault(FaultError::NoMemory),
            };
            (0, failure)
        };
        let mut engine =
            Engine::new(&self.svm, self.port, || self.is_closed()).map_err(no_memory)?;

        for (command, at) in job.commands.iter().zip(0..) {
            engine
                .execute(command, &mut job.data)
                .map_err(|failure| (at, failure))?;
        }
        Ok(())
    }

    /// A command list was executed.
    fn finish(&self, seqno: u64, job: Job, result: Result<(), (u32, Failure)>) {
        let counters = self.svm.driver().counters();
        let mut state = self.state.lock();
        let state = &mut *state;

        state.completed = seqno;
        match result {
            Ok(()) => counters.jobs_done.add(1),
            Err((command, failure)) => {
                counters.jobs_failed.add(1);
                state.stop = Some(Stop {
                    seqno,
                    command,
                    failure,
                });
                while let Some((_, job)) = state.waiting.pop() {
                    state.forget(job.data.len());
                }
                state.completed = state.submitted;
            }
        }
        let data_size = job.data.len();

        // There is room, since `jobs` counts this one.
        if data_size == 0 || state.kept.push((seqno, job.data), GFP_KERNEL).is_err() {
            state.forget(data_size);
        }
        self.changed.notify_all();
    }
}

impl ThreadMain for Queue {
    fn main(&self) {
        while let Some((seqno, mut job)) = self.next() {
            let result = self.execute(&mut job);

            self.finish(seqno, job, result);
        }
    }
}
