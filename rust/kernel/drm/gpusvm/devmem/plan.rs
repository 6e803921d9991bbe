// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a driver's copy engine is asked to do, and how it tells that it is done.

use kernel::{
    dma::DmaAddress,
    error::to_result,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        Arc,
        Completion, //
    }, //
};

/// One copy, or one zeroing.
///
/// Lengths and addresses are bytes and multiples of the page size; a length is at most
/// [`BLOCK_SIZE`](super::super::BLOCK_SIZE). A place in device memory is an offset from its beginning.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum CopyOp {
    /// From system memory to device memory.
    In {
        /// Where the device reads; mapped until the plan is done.
        src: DmaAddress,
        /// Where in the device's memory it goes.
        dst: u64,
        /// Bytes.
        len: usize,
    },
    /// From device memory to system memory.
    Out {
        /// Where in the device's memory it is.
        src: u64,
        /// Where the device writes; mapped until the plan is done.
        dst: DmaAddress,
        /// Bytes.
        len: usize,
    },
    /// Device memory becomes zeroes.
    ///
    /// The process had no memory there, and must not see what the memory of the device holds (B-20).
    Zero {
        /// Where in the device's memory.
        dst: u64,
        /// Bytes.
        len: usize,
    },
}

impl CopyOp {
    /// How many bytes it writes.
    pub fn len(&self) -> usize {
        match *self {
            Self::In { len, .. } | Self::Out { len, .. } | Self::Zero { len, .. } => len,
        }
    }

    /// Whether there is nothing to do, which the library does not ask for.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Copies that belong together; their order does not matter, since none overlaps another.
#[derive(Default)]
pub struct CopyPlan {
    ops: KVec<CopyOp>,
}

impl CopyPlan {
    pub(super) fn new(ops: KVec<CopyOp>) -> Self {
        Self { ops }
    }

    /// What is to be done.
    pub fn ops(&self) -> &[CopyOp] {
        &self.ops
    }

    /// How many bytes are written.
    pub fn bytes(&self) -> usize {
        self.ops.iter().map(CopyOp::len).sum()
    }
}

/// What a driver supplies to have device memory.
///
/// It lives until [`DevMem::remove`](super::DevMem::remove) has returned, and must work as long, which
/// includes the time while the device is being unbound: what is in its memory has to be saved then.
///
/// # Examples
///
/// An engine that hands plans to another thread would keep the [`Signal`] with the plan, and return
/// the [`Fence`] at once. One that is done before it returns:
///
/// ```
/// use kernel::drm::gpusvm::{
///     CopyEngine,
///     CopyOp,
///     CopyPlan,
///     Fence, //
/// };
///
/// struct Engine;
///
/// impl Engine {
///     fn execute(&self, op: &CopyOp) -> Result {
///         // The registers of the device.
///         (!op.is_empty()).then_some(()).ok_or(EINVAL)
///     }
/// }
///
/// impl CopyEngine for Engine {
///     fn copy(&self, plan: CopyPlan) -> Result<Fence> {
///         let (fence, signal) = Fence::new()?;
///
///         signal.done(plan.ops().iter().try_for_each(|op| self.execute(op)));
///         Ok(fence)
///     }
/// }
///
/// assert!(Engine.copy(CopyPlan::default()).is_ok());
/// # Ok::<(), Error>(())
/// ```
///
/// The counterpart in C is `struct drm_pagemap_devmem_ops` of
/// [`include/drm/drm_pagemap.h`](srctree/include/drm/drm_pagemap.h), whose copies are synchronous.
pub trait CopyEngine: Send + Sync + 'static {
    /// Starts to carry out `plan`, and does not wait for it.
    ///
    /// Called in process context, may sleep. The mmap lock is held for reading, pages are locked, and
    /// it may be a CPU page fault that waits for it: no lock may be taken that is ever held around a
    /// user access, a page fault or a call into the library.
    ///
    /// The engine owns the plan. All of it must be done when the fence signals success, and nothing of
    /// it may be under way any more once the fence signals anything.
    ///
    /// # Errors
    ///
    /// Nothing was started. The pages stay where they are.
    fn copy(&self, plan: CopyPlan) -> Result<Fence>;

    /// Wakes the device up, and keeps it awake until [`rest`](CopyEngine::rest). Same context.
    ///
    /// Called before each [`copy`](CopyEngine::copy): the CPU may touch device memory at any time, and
    /// a device that is suspended must be resumed for that.
    ///
    /// # Errors
    ///
    /// The device cannot be woken up: the copy fails, and `rest` is not called.
    fn wake(&self) -> Result {
        Ok(())
    }

    /// The device may sleep again, as far as one `wake` is concerned.
    fn rest(&self) {}
}

/// What [`Fence`] and [`Signal`] share.
#[pin_data]
struct Shared {
    #[pin]
    completion: Completion,
    /// 0 or a negative errno; valid once completed.
    result: Atomic<i32>,
}

/// Signals when a plan is done.
pub struct Fence(Arc<Shared>);

/// The engine's end of a [`Fence`].
///
/// Dropping it signals `EIO`, so that nobody waits for an engine that has forgotten a plan.
pub struct Signal(Option<Arc<Shared>>);

impl Fence {
    /// A fence and what signals it. May sleep.
    pub fn new() -> Result<(Self, Signal)> {
        let shared = Arc::pin_init(
            pin_init!(Shared {
                completion <- Completion::new(),
                result: Atomic::new(0),
            }),
            GFP_KERNEL,
        )?;

        Ok((Self(shared.clone()), Signal(Some(shared))))
    }

    /// A fence for what is done already. May sleep.
    pub fn signalled() -> Result<Self> {
        let (fence, signal) = Self::new()?;

        signal.done(Ok(()));
        Ok(fence)
    }

    /// Waits for the signal, however long it takes. Sleeps.
    pub(super) fn wait(&self) -> Result {
        self.0.completion.wait_for_completion();
        to_result(self.0.result.load(Acquire))
    }
}

impl Signal {
    /// The plan is done, or has failed. May be called in any context but NMI.
    pub fn done(mut self, result: Result) {
        self.signal(result);
    }

    fn signal(&mut self, result: Result) {
        if let Some(shared) = self.0.take() {
            let errno = result.map_or_else(Error::to_errno, |()| 0);

            shared.result.store(errno, Release);
            shared.completion.complete_all();
        }
    }
}

impl Drop for Signal {
    fn drop(&mut self) {
        self.signal(Err(EIO));
    }
}
