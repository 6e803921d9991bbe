// SPDX-License-Identifier: GPL-2.0

//! Who wrote which bytes of VRAM last, so that a report about a page table entry can say so.

use std::collections::HashMap;
use std::fmt;
use std::time::Instant;

use super::walk::{PAGE_SHIFT, PAGE_SIZE};

/// Remembered writes of one page; the oldest are forgotten.
const SPANS_PER_PAGE: usize = 16;

/// An engine at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer {
    /// The engine, as "sdma0".
    pub engine: &'static str,
    /// Its ring or queue.
    pub queue: u32,
    /// The read pointer of that ring.
    pub rptr: u64,
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} queue {} at rptr {:#x}", self.engine, self.queue, self.rptr)
    }
}

#[derive(Clone, Copy)]
struct Span {
    start: u64,
    end: u64,
    writer: Writer,
    time: Instant,
}

/// The last writers of VRAM.
#[derive(Default)]
pub struct Writers {
    pages: HashMap<u64, Vec<Span>>,
}

impl Writers {
    /// Remembers that `writer` wrote `len` bytes at `addr`.
    pub fn wrote(&mut self, addr: u64, len: u64, writer: Writer, time: Instant) {
        let mut at = addr;
        let Some(end) = addr.checked_add(len) else { return };
        while at < end {
            let page = at >> PAGE_SHIFT;
            let stop = end.min((at & !(PAGE_SIZE - 1)).saturating_add(PAGE_SIZE));
            let spans = self.pages.entry(page).or_default();
            spans.retain(|span| span.start < at || span.end > stop);
            if spans.len() == SPANS_PER_PAGE {
                spans.remove(0);
            }
            spans.push(Span { start: at, end: stop, writer, time });
            if stop <= at {
                return;
            }
            at = stop;
        }
    }

    /// The last writer of the byte at `addr` and when that was, if it was an engine.
    pub fn last(&self, addr: u64) -> Option<(Writer, Instant)> {
        let spans = self.pages.get(&(addr >> PAGE_SHIFT))?;
        let span = spans.iter().rev().find(|span| span.start <= addr && addr < span.end)?;
        Some((span.writer, span.time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(rptr: u64) -> Writer {
        Writer { engine: "sdma0", queue: 0, rptr }
    }

    #[test]
    fn the_newest_write_counts() {
        let (mut writers, now) = (Writers::default(), Instant::now());
        writers.wrote(0x1ff8, 0x1010, writer(1), now);
        writers.wrote(0x2000, 8, writer(2), now);
        let rptr = |addr| writers.last(addr).map(|(writer, _)| writer.rptr);
        assert_eq!(rptr(0x1ff8), Some(1));
        assert_eq!(rptr(0x2000), Some(2));
        assert_eq!(rptr(0x2008), Some(1));
        assert_eq!(rptr(0x3007), Some(1));
        assert_eq!(rptr(0x3008), None);
    }

    #[test]
    fn memory_use_is_bounded_per_page() {
        let (mut writers, now) = (Writers::default(), Instant::now());
        for i in 0..1000 {
            writers.wrote((i % 512) * 8, 8, writer(i), now);
        }
        assert_eq!(writers.pages.get(&0).map(Vec::len), Some(SPANS_PER_PAGE));
        assert_eq!(writers.last(999 % 512 * 8).map(|(writer, _)| writer.rptr), Some(999));
        writers.wrote(u64::MAX, 8, writer(0), now);
    }
}
