// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Counters of one mirror.

use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// Counters that only grow, and gauges of what exists.
///
/// They are read without locks: each is exact, a set of them is not a consistent snapshot.
#[derive(Copy, Clone, Debug, Default)]
pub struct Stats {
    /// Faults handled, spans of many pages counting as one.
    pub faults: u64,
    /// Faults that found all their pages already mapped.
    pub short_faults: u64,
    /// Walks of the CPU page tables, huge page probes included.
    pub walks: u64,
    /// Walks whose result was thrown away because an invalidation overtook it, and other races.
    pub retries: u64,
    /// Walks for which the address space was held still, because races were lost again and again.
    pub held: u64,
    /// Invalidations by the core mm that reached a window of this mirror.
    pub invalidations: u64,
    /// Blocks whose pages were taken away, by an invalidation or to map them anew.
    pub blocks_invalidated: u64,
    /// Ranges removed, mostly because their memory was unmapped.
    pub collected: u64,
    /// Ranges that exist (gauge).
    pub ranges: u64,
    /// Mapped segments (gauge).
    pub segments: u64,
    /// Bytes mapped for the device (gauge).
    pub mapped_bytes: u64,
    /// Bytes mapped for the device since the mirror exists.
    pub mapped_bytes_total: u64,
}

/// The live counters behind [`Stats`].
pub(super) struct Counters {
    pub(super) faults: Atomic<u64>,
    pub(super) short_faults: Atomic<u64>,
    pub(super) walks: Atomic<u64>,
    pub(super) retries: Atomic<u64>,
    pub(super) held: Atomic<u64>,
    pub(super) invalidations: Atomic<u64>,
    pub(super) blocks_invalidated: Atomic<u64>,
    pub(super) collected: Atomic<u64>,
    pub(super) ranges: Atomic<u64>,
    pub(super) segments: Atomic<u64>,
    pub(super) mapped_bytes: Atomic<u64>,
    pub(super) mapped_bytes_total: Atomic<u64>,
}

impl Counters {
    pub(super) fn new() -> Self {
        Self {
            faults: Atomic::new(0),
            short_faults: Atomic::new(0),
            walks: Atomic::new(0),
            retries: Atomic::new(0),
            held: Atomic::new(0),
            invalidations: Atomic::new(0),
            blocks_invalidated: Atomic::new(0),
            collected: Atomic::new(0),
            ranges: Atomic::new(0),
            segments: Atomic::new(0),
            mapped_bytes: Atomic::new(0),
            mapped_bytes_total: Atomic::new(0),
        }
    }

    pub(super) fn read(&self) -> Stats {
        Stats {
            faults: self.faults.load(Relaxed),
            short_faults: self.short_faults.load(Relaxed),
            walks: self.walks.load(Relaxed),
            retries: self.retries.load(Relaxed),
            held: self.held.load(Relaxed),
            invalidations: self.invalidations.load(Relaxed),
            blocks_invalidated: self.blocks_invalidated.load(Relaxed),
            collected: self.collected.load(Relaxed),
            ranges: self.ranges.load(Relaxed),
            segments: self.segments.load(Relaxed),
            mapped_bytes: self.mapped_bytes.load(Relaxed),
            mapped_bytes_total: self.mapped_bytes_total.load(Relaxed),
        }
    }
}

/// Adds to a counter.
pub(super) fn add(counter: &Atomic<u64>, n: u64) {
    counter.fetch_add(n, Relaxed);
}

/// Takes from a gauge what was added before.
pub(super) fn sub(gauge: &Atomic<u64>, n: u64) {
    // The two's complement of `n`: atomics wrap.
    gauge.fetch_add(n.wrapping_neg(), Relaxed);
}
