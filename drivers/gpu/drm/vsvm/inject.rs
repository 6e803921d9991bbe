// SPDX-License-Identifier: GPL-2.0

//! Delays, failures and barriers that tests inject (`DRM_IOCTL_VSVM_DEBUG`).
//!
//! A driver for hardware would not have this file.

use kernel::{
    new_condvar,
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        CondVar,
        CondVarTimeoutResult,
        Mutex, //
    },
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta,
        Jiffies, //
    },
    uapi, //
};

use crate::counters::Counter;

/// Longest time in milliseconds that can be asked for.
const MAX_MS: u64 = 10_000;

/// Most parties of a barrier.
const MAX_PARTIES: u64 = 16;

/// Where something can be injected. See `enum drm_vsvm_debug_point`.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) enum Point {
    Prepare,
    Commit,
    Flush,
    Access,
    Walked,
}

const POINTS: usize = 5;

impl Point {
    fn from_user(point: u32) -> Result<Self> {
        Ok(match point {
            uapi::drm_vsvm_debug_point_VSVM_POINT_PREPARE => Self::Prepare,
            uapi::drm_vsvm_debug_point_VSVM_POINT_COMMIT => Self::Commit,
            uapi::drm_vsvm_debug_point_VSVM_POINT_FLUSH => Self::Flush,
            uapi::drm_vsvm_debug_point_VSVM_POINT_ACCESS => Self::Access,
            uapi::drm_vsvm_debug_point_VSVM_POINT_WALKED => Self::Walked,
            _ => return Err(EINVAL),
        })
    }
}

/// A meeting at a point.
struct Barrier {
    /// Nobody waits anywhere if there is none.
    point: Option<Point>,
    parties: u64,
    timeout: Jiffies,
    arrived: u64,
    /// Number of the meeting: who waits leaves when it changes.
    meeting: u64,
}

/// What is injected into one address space.
#[pin_data]
pub(crate) struct Injector {
    delays_ms: [Atomic<u64>; POINTS],
    failures: [Atomic<u64>; POINTS],
    drop_flush: Atomic<bool>,
    drop_wait: Atomic<bool>,
    /// Whether there may be a barrier; spares the lock.
    has_barrier: Atomic<bool>,
    #[pin]
    barrier: Mutex<Barrier>,
    #[pin]
    moved: CondVar,
    pub(crate) met: Counter,
    pub(crate) missed: Counter,
    pub(crate) injected: Counter,
}

impl Injector {
    /// Injects nothing yet.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            delays_ms: [const { Atomic::new(0) }; POINTS],
            failures: [const { Atomic::new(0) }; POINTS],
            drop_flush: Atomic::new(false),
            drop_wait: Atomic::new(false),
            has_barrier: Atomic::new(false),
            barrier <- new_mutex!(Barrier {
                point: None,
                parties: 0,
                timeout: 0,
                arrived: 0,
                meeting: 0,
            }, "vsvm::Injector::barrier"),
            moved <- new_condvar!("vsvm::Injector::moved"),
            met: Counter::new(),
            missed: Counter::new(),
            injected: Counter::new(),
        })
    }

    /// Does what user space asks for, or refuses it (`EINVAL`).
    pub(crate) fn configure(&self, args: &uapi::drm_vsvm_debug) -> Result {
        let point = Point::from_user(args.point)?;

        if args.op != uapi::drm_vsvm_debug_op_VSVM_DEBUG_BARRIER && args.timeout_ms != 0 {
            return Err(EINVAL);
        }
        match args.op {
            uapi::drm_vsvm_debug_op_VSVM_DEBUG_DELAY => {
                if args.value > MAX_MS {
                    return Err(EINVAL);
                }
                set(&self.delays_ms, point, args.value);
            }
            uapi::drm_vsvm_debug_op_VSVM_DEBUG_FAIL => {
                if !matches!(point, Point::Prepare | Point::Commit) {
                    return Err(EINVAL);
                }
                set(&self.failures, point, args.value);
            }
            uapi::drm_vsvm_debug_op_VSVM_DEBUG_BARRIER => {
                if matches!(point, Point::Flush | Point::Access)
                    || args.timeout_ms > MAX_MS
                    || args.value == 1
                    || args.value > MAX_PARTIES
                {
                    return Err(EINVAL);
                }
                self.set_barrier(point, args.value, args.timeout_ms);
            }
            op @ (uapi::drm_vsvm_debug_op_VSVM_DEBUG_DROP_FLUSH
            | uapi::drm_vsvm_debug_op_VSVM_DEBUG_DROP_WAIT) => {
                if point != Point::Flush || args.value > 1 {
                    return Err(EINVAL);
                }
                let drop = if op == uapi::drm_vsvm_debug_op_VSVM_DEBUG_DROP_WAIT {
                    &self.drop_wait
                } else {
                    &self.drop_flush
                };

                drop.store(args.value == 1, Relaxed);
            }
            _ => return Err(EINVAL),
        }
        Ok(())
    }

    fn set_barrier(&self, point: Point, parties: u64, timeout_ms: u64) {
        let mut barrier = self.barrier.lock();

        end_meeting(&mut barrier);
        barrier.point = (parties != 0).then_some(point);
        barrier.parties = parties;
        // CAST: At most `MAX_MS`.
        barrier.timeout = msecs_to_jiffies(timeout_ms as u32);
        self.has_barrier.store(barrier.point.is_some(), Relaxed);
        self.moved.notify_all();
    }

    /// Somebody comes to `point`. May sleep.
    ///
    /// Fails if a test wants it: at [`Point::Prepare`] with `ENOMEM`, at [`Point::Commit`] with
    /// `EAGAIN`, which asks the library to try again. Elsewhere nothing fails.
    pub(crate) fn pass(&self, point: Point) -> Result {
        let delay = get(&self.delays_ms, point).map_or(0, |d| d.load(Relaxed));

        if delay != 0 {
            self.injected.add(1);
            // CAST: At most `MAX_MS`.
            fsleep(Delta::from_millis(delay as i64));
        }
        if self.has_barrier.load(Relaxed) {
            self.meet(point);
        }
        if get(&self.failures, point).is_some_and(|left| self.take(left)) {
            return Err(if point == Point::Commit {
                EAGAIN
            } else {
                ENOMEM
            });
        }
        Ok(())
    }

    /// Takes one of the failures that are left.
    fn take(&self, left: &Atomic<u64>) -> bool {
        let mut old = left.load(Relaxed);

        while old != 0 {
            match left.cmpxchg(old, old - 1, Relaxed) {
                Ok(_) => {
                    self.injected.add(1);
                    return true;
                }
                Err(now) => old = now,
            }
        }
        false
    }

    fn meet(&self, point: Point) {
        let mut barrier = self.barrier.lock();

        if barrier.point != Some(point) {
            return;
        }
        let meeting = barrier.meeting;
        let mut left = barrier.timeout;

        barrier.arrived += 1;
        if barrier.arrived >= barrier.parties {
            self.met.add(1);
            self.end(&mut barrier);
        }
        while barrier.meeting == meeting {
            match self.moved.wait_interruptible_timeout(&mut barrier, left) {
                CondVarTimeoutResult::Woken { jiffies } => left = jiffies,
                CondVarTimeoutResult::Timeout | CondVarTimeoutResult::Signal { .. } => {
                    if barrier.meeting == meeting {
                        self.missed.add(barrier.arrived);
                        self.end(&mut barrier);
                    }
                }
            }
        }
    }

    fn end(&self, barrier: &mut Barrier) {
        end_meeting(barrier);
        self.has_barrier.store(false, Relaxed);
        self.moved.notify_all();
    }

    /// Whether flushes shall be forgotten.
    pub(crate) fn drops_flush(&self) -> bool {
        self.drop_flush.load(Relaxed)
    }

    /// Whether nobody shall wait for flushes.
    pub(crate) fn drops_wait(&self) -> bool {
        self.drop_wait.load(Relaxed)
    }

    /// Whether a test makes the mistakes that are to be noticed.
    pub(crate) fn drops(&self) -> bool {
        self.drops_flush() || self.drops_wait()
    }
}

fn end_meeting(barrier: &mut Barrier) {
    barrier.point = None;
    barrier.arrived = 0;
    barrier.meeting = barrier.meeting.wrapping_add(1);
}

fn get(values: &[Atomic<u64>; POINTS], point: Point) -> Option<&Atomic<u64>> {
    // CAST: The points are numbered from zero.
    values.get(point as usize)
}

fn set(values: &[Atomic<u64>; POINTS], point: Point, value: u64) {
    if let Some(slot) = get(values, point) {
        slot.store(value, Relaxed);
    }
}
