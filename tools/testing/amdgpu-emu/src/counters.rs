// SPDX-License-Identifier: GPL-2.0

//! Counters of what the GPU did, for the control socket and the summary at the end.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// All counters of a GPU.
        #[derive(Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        impl Counters {
            /// Names and values.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get())),*]
            }
        }
    };
}

counters! {
    /// Register reads by the guest's CPUs.
    mmio_reads,
    /// Register writes by the guest's CPUs.
    mmio_writes,
    /// Doorbell writes.
    doorbells,
    /// Interrupt vectors written to a ring.
    vectors,
    /// Messages (MSI) sent.
    irqs,
    /// Interrupt vectors that had to wait for room in the ring.
    vectors_delayed,
    /// Page-table walks.
    walks,
    /// Translations found in a TLB.
    tlb_hits,
    /// Invalidations of TLBs.
    invalidations,
    /// Faults that wait for a replay.
    retry_faults,
    /// Faults that do not.
    noretry_faults,
    /// Retry faults acknowledged by the driver.
    replays,
    /// Bytes read from the guest's RAM.
    dma_read,
    /// Bytes written to the guest's RAM.
    dma_write,
    /// Packets that engines executed.
    packets,
    /// Waves that ran to their end.
    waves,
}
