// SPDX-License-Identifier: GPL-2.0

//! What the library calls: the driver's half of shared virtual memory. This is all of it.

use core::ops::Range;

use kernel::{
    drm::gpusvm::{
        Driver,
        ValidPages, //
    },
    prelude::*, //
};

use crate::{
    inject::Point,
    vm::Vm, //
};

impl Driver for Vm {
    /// Tables for `span`, before anything is written into them. May sleep.
    fn prepare(&self, span: Range<usize>) -> Result {
        self.injector().pass(Point::Prepare)?;
        self.page_table().prepare(span)
    }

    /// Only a place for tests to stop at.
    fn walked(&self, _span: Range<usize>) {
        // Nothing can fail here.
        let _ = self.injector().pass(Point::Walked);
    }

    /// Leaf entries, from addresses that are proved to be valid. The notifier lock is held.
    fn commit(&self, pages: &ValidPages<'_>) -> Result {
        self.injector().pass(Point::Commit)?;
        self.counters().commits.add(1);
        self.check_flushed(&pages.span(), "commit");
        for segment in pages.iter() {
            self.page_table()
                .map(segment.va, segment.dma, segment.write)?;
        }
        Ok(())
    }

    /// The entries of `span` go, and the flush starts. Perhaps in reclaim, so this does not wait.
    fn stop(&self, span: Range<usize>) {
        self.counters().stops.add(1);
        self.zap(span);
    }

    /// The flush ends. After this the pages may be gone.
    fn wait(&self) {
        self.wait_flushed();
    }

    /// The process has unmapped `span`, and nobody will map it here before it is prepared again.
    fn release(&self, span: Range<usize>) {
        self.check_flushed(&span, "release");
        self.page_table().release(span);
    }
}
