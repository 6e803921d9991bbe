// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Buffers for walks.

use kernel::{
    mm::hmm,
    new_spinlock,
    page::PAGE_SIZE,
    prelude::*,
    sync::SpinLock, //
};

use super::span::BLOCK_SIZE;

/// Buffers that are kept for the next fault; more concurrent faults than this allocate.
const KEPT: usize = 4;

/// Buffers for walks of one block, so that a fault need not allocate one.
#[pin_data]
pub(super) struct Scratch {
    #[pin]
    free: SpinLock<KVec<hmm::Window>>,
}

impl Scratch {
    pub(super) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            free <- {
                let free = KVec::with_capacity(KEPT, GFP_KERNEL)?;

                new_spinlock!(free, "gpusvm::Scratch::free")
            },
        })
    }

    /// Runs `f` with a buffer for the pages of one block. May sleep.
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut hmm::Window) -> R) -> Result<R> {
        let kept = self.free.lock().pop();
        let mut window = match kept {
            Some(window) => window,
            None => hmm::Window::new(BLOCK_SIZE / PAGE_SIZE, GFP_KERNEL)?,
        };
        let result = f(&mut window);
        // A buffer that does not fit is freed after the lock.
        let surplus = self.free.lock().push_within_capacity(window);

        drop(surplus);
        Ok(result)
    }
}
