// SPDX-License-Identifier: GPL-2.0

//! A GPU address space of one process, and its queues.

use kernel::{
    drm::gpusvm::GpuSvm,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
    uapi, //
};

use crate::{
    device::Shared,
    ffi::Thread,
    queue::Queue,
    vm::Vm, //
};

/// A queue and its thread, which is started when it is needed.
#[pin_data]
struct Slot {
    queue: Arc<Queue>,
    #[pin]
    thread: Mutex<Option<Thread<Queue>>>,
}

impl Slot {
    /// The queue, with a thread that executes what is submitted. `ENODEV` if it is closed.
    fn running(&self) -> Result<&Queue> {
        let mut thread = self.thread.lock();

        // Under the lock: `shut_down` closes the queue before it takes the thread away.
        if self.queue.is_closed() {
            return Err(ENODEV);
        }
        if thread.is_none() {
            *thread = Some(Thread::start(self.queue.clone())?);
        }
        Ok(&self.queue)
    }
}

/// A GPU address space of one process, and its queues.
pub(crate) struct Space {
    svm: Arc<GpuSvm<Vm>>,
    slots: KVec<Pin<KBox<Slot>>>,
}

/// Makes the address space of the current process on `device`, with so many engine ports.
///
/// Fails with `ENODEV` if the device is gone, `ESRCH` if the current task has no address space, and
/// as [`GpuSvm::new`] does: `EOPNOTSUPP` if the device cannot share memory with a process.
pub(crate) fn new_svm(device: &Arc<Shared>, ports: usize) -> Result<Arc<GpuSvm<Vm>>> {
    let task = current!();
    let mm = task.mm().ok_or(ESRCH)?;

    device
        .bound()
        .with(|pdev| GpuSvm::new(pdev.as_ref(), mm, Vm::new(device.clone(), ports)))
        .ok_or(ENODEV)?
}

impl Space {
    /// Makes the address space of the current process on `device`. For errors see [`new_svm`].
    pub(crate) fn new(device: &Arc<Shared>) -> Result<Arc<Self>> {
        let queues = uapi::VSVM_QUEUES as usize;
        let svm = new_svm(device, queues)?;
        let mut slots = KVec::with_capacity(queues, GFP_KERNEL)?;

        for port in 0..queues {
            let queue = Queue::new(svm.clone(), port)?;

            slots.push(
                KBox::pin_init(
                    pin_init!(Slot {
                        queue,
                        thread <- new_mutex!(None, "vsvm::Slot::thread"),
                    }),
                    GFP_KERNEL,
                )?,
                GFP_KERNEL,
            )?;
        }
        Ok(Arc::new(Self { svm, slots }, GFP_KERNEL)?)
    }

    /// The mirror of the process.
    pub(crate) fn svm(&self) -> &GpuSvm<Vm> {
        &self.svm
    }

    /// A queue; `EINVAL` if there is no such.
    pub(crate) fn queue(&self, index: u32) -> Result<&Queue> {
        Ok(&self.slots.get(index as usize).ok_or(EINVAL)?.queue)
    }

    /// A queue that executes what is submitted.
    pub(crate) fn running_queue(&self, index: u32) -> Result<&Queue> {
        self.slots.get(index as usize).ok_or(EINVAL)?.running()
    }

    /// Ends all queues, and waits for what they execute. Sleeps. May be called again.
    pub(crate) fn shut_down(&self) {
        for slot in self.slots.iter() {
            slot.queue.close();
        }
        for slot in self.slots.iter() {
            let thread = slot.thread.lock().take();

            // Waits for the thread, without the lock.
            drop(thread);
        }
    }
}
