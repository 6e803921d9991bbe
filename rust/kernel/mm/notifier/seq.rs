// SPDX-License-Identifier: GPL-2.0

//! Sequence numbers.

use crate::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// The moment at which somebody began to read the CPU page tables in the span of a notifier.
///
/// It belongs to the notifier that it was taken from: any other one says "retry" to it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Seq {
    id: u64,
    seq: usize,
}

impl Seq {
    #[inline]
    pub(in crate::mm) fn new(id: u64, seq: usize) -> Self {
        Self { id, seq }
    }

    /// Returns whether this was not taken from the notifier with this identity.
    #[inline]
    pub(in crate::mm) fn is_foreign(&self, id: u64) -> bool {
        self.id != id
    }

    #[inline]
    pub(in crate::mm) fn raw(&self) -> usize {
        self.seq
    }
}

/// Returns an identity for a notifier.
///
/// The address of a notifier would not do: the next one may be allocated at the same place while
/// somebody still has a sequence number of the former. 64 bits do not wrap in practice.
// Not inlined since users of the generic notifier are in modules, which cannot reach the counter.
#[inline(never)]
pub(super) fn next_id() -> u64 {
    static NEXT: Atomic<u64> = Atomic::new(0);

    NEXT.fetch_add(1, Relaxed)
}
