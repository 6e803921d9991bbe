// SPDX-License-Identifier: GPL-2.0

//! What the GPU counts.

use kernel::sync::atomic::{
    ordering::Relaxed,
    Atomic, //
};

/// A counter that anybody may increase at any time.
pub(crate) struct Counter(Atomic<u64>);

impl Default for Counter {
    fn default() -> Self {
        Self::new()
    }
}

impl Counter {
    /// A counter that starts at zero.
    pub(crate) const fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// Adds `n`.
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Takes `n` off what was added before.
    pub(crate) fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Relaxed);
    }

    /// The value; only a snapshot, others go on counting.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// The counters of one address space. See `struct drm_vsvm_stats` for what they mean.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) gpu_faults: Counter,
    pub(crate) commits: Counter,
    pub(crate) stops: Counter,
    pub(crate) tlb_hits: Counter,
    pub(crate) tlb_misses: Counter,
    pub(crate) late_uses: Counter,
    pub(crate) stale_uses: Counter,
    pub(crate) bus_errors: Counter,
    pub(crate) bytes_read: Counter,
    pub(crate) bytes_written: Counter,
    pub(crate) jobs_done: Counter,
    pub(crate) jobs_failed: Counter,
}
