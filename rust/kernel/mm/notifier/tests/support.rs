// SPDX-License-Identifier: GPL-2.0

//! A notifier that records what happens, and invalidations without a cause.

use super::super::*;
use crate::{
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        static_lock_class,
        Arc,
        Completion, //
    },
    workqueue, //
};

/// How many passes a [`Recorder`] remembers.
const MAX_PASSES: usize = 16;

/// One pass of one invalidation.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(in crate::mm) struct Pass {
    pub(in crate::mm) event: Event,
    pub(in crate::mm) start: usize,
    pub(in crate::mm) end: usize,
    pub(in crate::mm) kind: PassKind,
    /// Whether the owner was [`Recorder::owner`].
    pub(in crate::mm) owned: bool,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(in crate::mm) enum PassKind {
    /// A first pass that did everything.
    Whole,
    /// A first pass that asked for a second one.
    Start,
    /// A second pass.
    Finish,
}

/// What the lock of a [`Recorder`] protects. Nothing here allocates under it.
pub(in crate::mm) struct Log {
    passes: [Option<Pass>; MAX_PASSES],
    /// Something is mirrored, and stopping it takes time.
    pub(in crate::mm) busy: bool,
}

impl Log {
    fn push(&mut self, pass: Pass) {
        if let Some(slot) = self.passes.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(pass);
        }
    }
}

/// A notifier that records what happens.
pub(in crate::mm) struct Recorder {
    /// Ask for a second pass.
    pub(in crate::mm) defer: Atomic<bool>,
    /// If there is one, a second pass of this event reports its arrival and waits.
    pub(in crate::mm) gate: Option<(Event, Arc<Gate>)>,
    dropped: Option<Arc<Atomic<usize>>>,
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Some(dropped) = &self.dropped {
            dropped.fetch_add(1, Relaxed);
        }
    }
}

/// Where a second pass waits until it is let through.
#[pin_data]
pub(in crate::mm) struct Gate {
    #[pin]
    pub(in crate::mm) reached: Completion,
    #[pin]
    pub(in crate::mm) open: Completion,
}

impl Gate {
    pub(in crate::mm) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                reached <- Completion::new(),
                open <- Completion::new(),
            }),
            GFP_KERNEL,
        )
    }
}

/// A recorder that is registered.
pub(in crate::mm) type Recording = Arc<IntervalNotifier<Recorder>>;

impl Recorder {
    pub(in crate::mm) fn new() -> Self {
        Self {
            defer: Atomic::new(false),
            gate: None,
            dropped: None,
        }
    }

    /// Counts in `dropped` how often this is dropped.
    pub(in crate::mm) fn with_drop_count(dropped: Arc<Atomic<usize>>) -> Self {
        let mut this = Self::new();
        this.dropped = Some(dropped);
        this
    }

    /// Makes second passes of `event` wait at `gate`.
    pub(in crate::mm) fn with_gate(event: Event, gate: Arc<Gate>) -> Self {
        let mut this = Self::new();
        this.defer = Atomic::new(true);
        this.gate = Some((event, gate));
        this
    }

    /// An address that stands for the owner of a pagemap.
    pub(in crate::mm) fn owner() -> *mut c_void {
        static OWNER: u8 = 0;

        (&raw const OWNER).cast_mut().cast()
    }

    /// Registers this for `span` of `mm`.
    pub(in crate::mm) fn register(self, mm: &MmWithUser, span: Range<usize>) -> Result<Recording> {
        Arc::pin_init(
            IntervalNotifier::register(
                mm,
                span,
                self,
                Log {
                    passes: [None; MAX_PASSES],
                    busy: false,
                },
                c"rust_mm_notifier_test",
                static_lock_class!(),
            ),
            GFP_KERNEL,
        )
    }
}

impl Invalidate for Recorder {
    type State = Log;

    fn start<'op>(op: Invalidation<'op, Self>) -> Result<Started<'op>, WouldBlock<'op>> {
        let notifier = op.notifier();
        let mut pass = Pass {
            event: op.event(),
            start: op.span().start,
            end: op.span().end,
            kind: PassKind::Whole,
            owned: op.is_owner(Self::owner()),
        };

        let mut locked = op.lock()?;
        if locked.busy {
            locked = match locked.would_block() {
                Ok(would_block) => return Err(would_block),
                Err(locked) => locked,
            };
        }

        let (mut log, invalidated) = locked.advance();
        log.busy = false;
        if notifier.data().defer.load(Relaxed) {
            match invalidated.defer() {
                Ok(deferred) => {
                    pass.kind = PassKind::Start;
                    log.push(pass);
                    Ok(deferred.into())
                }
                Err(invalidated) => {
                    log.push(pass);
                    Ok(invalidated.into())
                }
            }
        } else {
            log.push(pass);
            Ok(invalidated.into())
        }
    }

    fn finish(this: &IntervalNotifier<Self>, span: Range<usize>, event: Event) {
        match &this.data().gate {
            Some((gated, gate)) if *gated == event => {
                gate.reached.complete_all();
                gate.open.wait_for_completion();
            }
            _ => {}
        }

        this.write().push(Pass {
            event,
            start: span.start,
            end: span.end,
            kind: PassKind::Finish,
            owned: false,
        });
    }
}

impl IntervalNotifier<Recorder> {
    /// Returns what was recorded, and forgets it.
    pub(in crate::mm) fn take_passes(&self) -> [Option<Pass>; MAX_PASSES] {
        core::mem::replace(&mut self.write().passes, [None; MAX_PASSES])
    }

    /// Whether an invalidation has collided with `seq`, by the lock.
    pub(in crate::mm) fn collided(&self, seq: Seq) -> bool {
        self.read().retry(seq)
    }
}

/// An invalidation that is running, without anything that changes.
pub(in crate::mm) struct Running {
    range: bindings::mmu_notifier_range,
    _mm: ARef<MmWithUser>,
}

// SAFETY: The range is plain data, and an invalidation may be ended by another thread.
unsafe impl Send for Running {}

impl Running {
    /// Begins an invalidation of `span`, in the name of [`Recorder::owner`].
    ///
    /// `EAGAIN` if it is not `blockable` and was refused.
    pub(in crate::mm) fn begin(
        mm: &MmWithUser,
        span: Range<usize>,
        event: bindings::mmu_notifier_event,
        blockable: bool,
    ) -> Result<Self> {
        let mut range = bindings::mmu_notifier_range {
            mm: mm.as_raw(),
            start: span.start,
            end: span.end,
            flags: if blockable {
                bindings::MMU_NOTIFIER_RANGE_BLOCKABLE
            } else {
                0
            },
            event,
            owner: Recorder::owner(),
        };

        // SAFETY: A notifier is registered for the mm, so that it has subscriptions, and they are
        // not freed before the mm. An invalidation may begin at any time.
        to_result(unsafe { bindings::__mmu_notifier_invalidate_range_start(&mut range) })?;

        Ok(Self {
            range,
            _mm: ARef::from(mm),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // SAFETY: Ends what `begin` has begun.
        unsafe { bindings::__mmu_notifier_invalidate_range_end(&mut self.range) };
    }
}

/// Runs `f` in another thread. The result is complete when it has returned.
pub(in crate::mm) fn in_thread(f: impl FnOnce() + Send + 'static) -> Result<Arc<Completion>> {
    let done = Arc::pin_init(Completion::new(), GFP_KERNEL)?;
    let theirs = done.clone();

    // Not the system queue, since `f` may wait for another one.
    workqueue::system_unbound().try_spawn(GFP_KERNEL, move || {
        f();
        theirs.complete_all();
    })?;
    Ok(done)
}
