// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Writing ahead into files.

use core::ops::Range;

use super::span::BLOCK_SIZE;

/// A run of writes of the device to pages of a file, one behind the other.
///
/// A page of a file is read-only until it is written to, so that the file system learns about each page
/// that gets dirty. A write fault changes one page then, and has the whole block mapped anew. For a
/// device that fills a file, page after page, this would be the square of the size. So what a run is
/// about to write next is faulted in for writing ahead of it, as reading ahead is done for files: twice
/// as much each time, so that not more than as much again as was written gets dirty in vain.
pub(super) struct WriteRun {
    /// Where the next write belongs to the run.
    next: usize,
    /// Bytes that were made writable last.
    len: usize,
}

impl WriteRun {
    /// There was no write yet.
    pub(super) const NONE: Self = Self { next: 0, len: 0 };

    /// What to make writable for a write to `asked`, which lies in `limit`: `asked` itself, and more
    /// behind it if it continues the run.
    pub(super) fn ahead(&mut self, asked: &Range<usize>, limit: &Range<usize>) -> Range<usize> {
        // OVERFLOW: `asked` is not empty.
        let this = asked.end - asked.start;

        self.len = if asked.start == self.next {
            self.len.saturating_mul(2).clamp(this, BLOCK_SIZE)
        } else {
            this
        };
        let end = asked.start.saturating_add(self.len);

        self.next = end.min(limit.end).max(asked.end);
        asked.start..self.next
    }

    /// What was ahead could not be made writable.
    pub(super) fn stop(&mut self) {
        *self = Self::NONE;
    }
}
