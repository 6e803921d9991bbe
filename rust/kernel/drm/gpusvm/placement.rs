// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Where the memory of a span shall be.

use core::ops::Range;

use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Mutex, //
    }, //
};

/// Where a fault of the device puts memory.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// Nowhere: it is mapped where it is.
    #[default]
    Stay,
    /// In the device's own memory if that is possible; if a race is lost, or there is no room, it is
    /// mapped where it is.
    Preferred,
    /// In the device's own memory and nowhere else, as atomics of the device may need it. A fault that
    /// cannot bring it there fails with [`FaultError::Placement`](super::FaultError::Placement).
    Strict,
}

/// The placements of an address space: spans that do not overlap, in order.
///
/// A program sets few of them, and a fault looks one up by bisection. They stay when memory is unmapped:
/// they are for addresses.
#[pin_data]
pub(super) struct Placements {
    any: Atomic<bool>,
    /// Leaf lock, taken in process context only.
    #[pin]
    list: Mutex<KVVec<(Range<usize>, Placement)>>,
}

impl Placements {
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            any: Atomic::new(false),
            list <- new_mutex!(KVVec::new(), "gpusvm::Placements"),
        })
    }

    /// Sets the placement of `span`, which replaces what was set for a part of it. Sleeps.
    pub(super) fn set(&self, span: &Range<usize>, placement: Placement) -> Result {
        let mut list = self.list.lock();
        // A span that is cut in two makes one more, and the new one makes another.
        let room = list.len().checked_add(2).ok_or(ENOMEM)?;
        let mut new = KVVec::with_capacity(room, GFP_KERNEL_ACCOUNT)?;
        let mut put = |part: Range<usize>, what: Placement| {
            if part.is_empty() || what == Placement::Stay {
                return Ok(());
            }
            new.push((part, what), GFP_KERNEL_ACCOUNT)
        };
        let mut is_done = false;

        for (old, what) in list.iter() {
            put(old.start..old.end.min(span.start), *what)?;
            if !is_done && old.end > span.start {
                put(span.clone(), placement)?;
                is_done = true;
            }
            put(old.start.max(span.end)..old.end, *what)?;
        }
        if !is_done {
            put(span.clone(), placement)?;
        }
        self.any.store(!new.is_empty(), Relaxed);
        *list = new;
        Ok(())
    }

    /// The placement at `addr`, and for which addresses around it it is the same.
    pub(super) fn at(&self, addr: usize) -> (Placement, Range<usize>) {
        if !self.any.load(Relaxed) {
            return (Placement::Stay, 0..usize::MAX);
        }
        let list = self.list.lock();
        let next = list.partition_point(|(span, _)| span.end <= addr);

        match list.get(next) {
            Some((span, what)) if span.start <= addr => (*what, span.clone()),
            after => {
                let before = next.checked_sub(1).and_then(|i| list.get(i));

                (
                    Placement::Stay,
                    before.map_or(0, |(span, _)| span.end)
                        ..after.map_or(usize::MAX, |(span, _)| span.start),
                )
            }
        }
    }
}
