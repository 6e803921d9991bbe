// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Looking at the CPU page tables without changing anything.

use core::ops;

use kernel::{
    bindings,
    mm::hmm::{
        self,
        PageState,
        Request, //
    },
    page::PAGE_SIZE,
    prelude::*,
    time::msecs_to_jiffies, //
};

use super::{
    fault::is_user_span,
    span::{
        aligned_window,
        intersect, //
    },
    Driver,
    FaultError,
    GpuSvm, //
};

impl<T: Driver> GpuSvm<T> {
    /// Tells what the process has in `span`, page by page, without faulting anything in. Sleeps.
    ///
    /// `f` is called once for each page, in order, with its address. The pages of each aligned 128 KiB
    /// are consistent with each other. Nothing is mapped for the device.
    ///
    /// # Errors
    ///
    /// [`FaultError::Invalid`], [`FaultError::NoMemory`], [`FaultError::Killed`],
    /// [`FaultError::Gone`]; [`FaultError::Retry`] if invalidations kept winning.
    pub fn snapshot(
        &self,
        span: ops::Range<usize>,
        mut f: impl FnMut(usize, PageState),
    ) -> Result<(), FaultError> {
        /// Pages that are walked at a time, a power of two.
        const STEP: usize = 32 * PAGE_SIZE;
        /// How often a step is tried.
        const TRIES: u32 = 1024;

        let mm = self.mm.mmget_not_zero().ok_or(FaultError::Gone)?;

        if !is_user_span(&mm, &span) {
            return Err(FaultError::Invalid);
        }
        let request = Request {
            asked: None,
            around: None,
            owner: None,
        };
        let timeout = msecs_to_jiffies(bindings::HMM_RANGE_DEFAULT_TIMEOUT);
        let mut from = span.start;

        while from < span.end {
            let step = aligned_window(from, STEP).ok_or(FaultError::Invalid)?;
            let step = intersect(&(from..step.end), &span);
            let window = self.window(from, &mm)?;
            let result = self
                .scratch
                .with(|scratch| {
                    for _ in 0..TRIES {
                        let walked =
                            hmm::walk(&window, &mm, step.clone(), &request, scratch, timeout)?;

                        if window.read().retry(walked.seq()) {
                            continue;
                        }
                        // OVERFLOW: One page for each of the step.
                        for (i, state) in walked.pages().enumerate() {
                            f(step.start + i * PAGE_SIZE, state);
                        }
                        return Ok(());
                    }
                    Err(EAGAIN)
                })
                .and_then(|result| result)
                .map_err(|err: Error| match err {
                    e if e == EINTR => FaultError::Killed,
                    e if e == EAGAIN || e == EBUSY => FaultError::Retry,
                    e if e == ENOMEM => FaultError::NoMemory,
                    _ => FaultError::Gone,
                });

            from = step.end;
            if result.is_err() || from >= window.span().end || from >= span.end {
                self.forget_if_empty(&window);
            }
            result?;
        }
        Ok(())
    }
}
