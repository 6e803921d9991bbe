// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Counters of one device's memory.

use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// What has happened to a device's memory since it exists. Each counter is exact, a set of them is not
/// a consistent snapshot.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// Bytes.
    pub size: u64,
    /// Bytes that are in use or reserved now (gauge).
    pub used: u64,
    /// Pages that moved to the device, holes that became device memory included.
    pub pages_in: u64,
    /// Of these, pages in large folios.
    pub pages_in_large: u64,
    /// Pages that moved to system memory, for whatever reason.
    pub pages_out: u64,
    /// Of these, pages in large folios.
    pub pages_out_large: u64,
    /// Pages that moved to system memory to make room, or because the memory was removed.
    pub pages_evicted: u64,
    /// Chunks that were emptied to make room.
    pub evictions: u64,
    /// CPU page faults on device memory.
    pub cpu_faults: u64,
    /// CPU page faults that waited for the end of a timeslice.
    pub cpu_waits: u64,
    /// Plans that failed.
    pub copy_errors: u64,
    /// Pages whose content was lost.
    pub lost: u64,
}

/// The live counters behind [`MemoryStats`].
#[derive(Default)]
pub(super) struct Counters {
    pub(super) pages_in: Count,
    pub(super) pages_in_large: Count,
    pub(super) pages_out: Count,
    pub(super) pages_out_large: Count,
    pub(super) pages_evicted: Count,
    pub(super) evictions: Count,
    pub(super) cpu_faults: Count,
    pub(super) cpu_waits: Count,
    pub(super) copy_errors: Count,
    pub(super) lost: Count,
}

/// A counter.
pub(super) struct Count(Atomic<u64>);

impl Default for Count {
    fn default() -> Self {
        Self(Atomic::new(0))
    }
}

impl Count {
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Counters {
    pub(super) fn read(&self, size: u64, used: u64) -> MemoryStats {
        MemoryStats {
            size,
            used,
            pages_in: self.pages_in.read(),
            pages_in_large: self.pages_in_large.read(),
            pages_out: self.pages_out.read(),
            pages_out_large: self.pages_out_large.read(),
            pages_evicted: self.pages_evicted.read(),
            evictions: self.evictions.read(),
            cpu_faults: self.cpu_faults.read(),
            cpu_waits: self.cpu_waits.read(),
            copy_errors: self.copy_errors.read(),
            lost: self.lost.read(),
        }
    }
}
