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
    GpuSvm,
    BLOCK_SIZE, //
};

impl<T: Driver> GpuSvm<T> {
    /// Tells what the process has in `span`, page by page, without faulting anything in. Sleeps.
    ///
    /// `f` is called once for each page, in order, with its address; without locks, so that it may
    /// sleep, and access user memory. It ends the snapshot with an error. The pages of each block
    /// of [`BLOCK_SIZE`] are consistent with each other. Nothing is mapped for the device. The buffer for
    /// it has the size that a block needs, however long the span is.
    ///
    /// # Examples
    ///
    /// ```
    /// use core::ops::Range;
    /// use kernel::{
    ///     drm::gpusvm::{
    ///         Driver,
    ///         FaultError,
    ///         GpuSvm, //
    ///     },
    ///     mm::hmm::PageState, //
    /// };
    ///
    /// /// How many pages of `span` the process could write to without a fault.
    /// fn writable<T: Driver>(svm: &GpuSvm<T>, span: Range<usize>) -> Result<usize, FaultError> {
    ///     let mut pages = 0;
    ///
    ///     svm.snapshot(span, |_addr, state| {
    ///         if let PageState::Mapped { write: true, .. } = state {
    ///             pages += 1;
    ///         }
    ///         Ok::<_, FaultError>(())
    ///     })?;
    ///     Ok(pages)
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`FaultError::Invalid`], [`FaultError::NoMemory`], [`FaultError::Killed`],
    /// [`FaultError::Gone`]; [`FaultError::Retry`] if invalidations kept winning; and those of `f`.
    pub fn snapshot<E: From<FaultError>>(
        &self,
        span: ops::Range<usize>,
        mut f: impl FnMut(usize, PageState) -> Result<(), E>,
    ) -> Result<(), E> {
        /// How often a step is tried.
        const TRIES: u32 = 1024;

        let mm = self.mm.mmget_not_zero().ok_or(FaultError::Gone)?;

        if !is_user_span(&mm, &span) {
            return Err(FaultError::Invalid.into());
        }
        let request = Request {
            asked: None,
            around: None,
            owner: self.owner(),
        };
        let timeout = msecs_to_jiffies(bindings::HMM_RANGE_DEFAULT_TIMEOUT);
        let mut from = span.start;

        while from < span.end {
            let step = aligned_window(from, BLOCK_SIZE).ok_or(FaultError::Invalid)?;
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
                            if let Err(err) = f(step.start + i * PAGE_SIZE, state) {
                                return Ok(Err(err));
                            }
                        }
                        return Ok(Ok(()));
                    }
                    Err(EAGAIN)
                })
                .and_then(|result| result)
                .unwrap_or_else(|err: Error| {
                    Err(E::from(match err {
                        e if e == EINTR => FaultError::Killed,
                        e if e == EAGAIN || e == EBUSY => FaultError::Retry,
                        e if e == ENOMEM => FaultError::NoMemory,
                        _ => FaultError::Gone,
                    }))
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
