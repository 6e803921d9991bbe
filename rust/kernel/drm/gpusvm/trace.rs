// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Tracepoints.
//!
//! A disabled tracepoint costs a jump that is not taken. The functions may be called in any context
//! of the library, invalidations included: tracing neither sleeps nor allocates.
//!
//! C header: [`include/trace/events/gpusvm.h`](srctree/include/trace/events/gpusvm.h)

use core::ops::Range;

use kernel::{
    bindings,
    mm::{
        hmm::Access,
        notifier::Event, //
    },
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// The number of a mirror in traces and in the name of its debugfs directory.
///
/// Unique until 2^32 mirrors have been created.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Id(u32);

impl Id {
    /// A number that no other mirror has.
    //
    // Not inlined, so that there is one counter: the function is called from generic code, which is
    // compiled as a part of each driver.
    #[inline(never)]
    pub(super) fn new() -> Self {
        static LAST: Atomic<u32> = Atomic::new(0);

        Self(LAST.fetch_add(1, Relaxed).wrapping_add(1))
    }

    /// The number itself.
    pub(super) fn value(self) -> u32 {
        self.0
    }
}

/// What the first pass of an invalidation did.
///
/// The numbers are those of `gpusvm_invalidate` in the C header.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Outcome {
    /// Nothing of the span was mapped.
    Idle = 0,
    /// The second pass follows.
    Deferred = 1,
    /// The second pass was done at once, because the finish object was in use.
    InPlace = 2,
    /// Refused, because it would have had to wait.
    WouldBlock = 3,
}

/// A fault has been handled, with success or not. `walks` and `retries` are what it took.
#[inline(always)]
pub(super) fn fault(
    id: Id,
    span: &Range<usize>,
    access: Access,
    result: Result,
    walks: u32,
    retries: u32,
) {
    let write = matches!(access, Access::Write);
    let errno = result.err().map_or(0, Error::to_errno);

    // SAFETY: The arguments are plain values.
    unsafe { raw::gpusvm_fault(id.0, span.start, span.end, write, errno, walks, retries) };
}

/// A block has been mapped and published.
#[inline(always)]
pub(super) fn map(id: Id, span: &Range<usize>, segments: u64, bytes: u64) {
    // CAST: A block has fewer segments than pages, and its size is a `usize`.
    // SAFETY: The arguments are plain values.
    unsafe {
        raw::gpusvm_map(
            id.0,
            span.start,
            span.end,
            segments as c_uint,
            bytes as usize,
        )
    };
}

/// The first pass of an invalidation is over.
#[inline(always)]
pub(super) fn invalidate(id: Id, span: &Range<usize>, event: Event, outcome: Outcome) {
    // CAST: The enumeration has this representation.
    // SAFETY: The arguments are plain values.
    unsafe {
        raw::gpusvm_invalidate(
            id.0,
            span.start,
            span.end,
            raw_event(event),
            outcome as c_uint,
        )
    };
}

/// A range has been removed because memory in it was unmapped.
#[inline(always)]
pub(super) fn collect(id: Id, span: &Range<usize>) {
    // SAFETY: The arguments are plain values.
    unsafe { raw::gpusvm_collect(id.0, span.start, span.end) };
}

/// The number of an event in C.
#[inline(always)]
fn raw_event(event: Event) -> bindings::mmu_notifier_event {
    match event {
        Event::Unmap => bindings::mmu_notifier_event_MMU_NOTIFY_UNMAP,
        Event::Clear => bindings::mmu_notifier_event_MMU_NOTIFY_CLEAR,
        Event::ProtectionVma => bindings::mmu_notifier_event_MMU_NOTIFY_PROTECTION_VMA,
        Event::ProtectionPage => bindings::mmu_notifier_event_MMU_NOTIFY_PROTECTION_PAGE,
        Event::SoftDirty => bindings::mmu_notifier_event_MMU_NOTIFY_SOFT_DIRTY,
        Event::Release => bindings::mmu_notifier_event_MMU_NOTIFY_RELEASE,
        Event::Migrate => bindings::mmu_notifier_event_MMU_NOTIFY_MIGRATE,
        Event::Exclusive => bindings::mmu_notifier_event_MMU_NOTIFY_EXCLUSIVE,
    }
}

/// The tracepoints as they are called.
#[expect(
    clippy::macro_metavars_in_unsafe,
    reason = "the macro is meant to declare unsafe functions"
)]
mod raw {
    use kernel::{
        prelude::*,
        tracepoint::declare_trace, //
    };

    declare_trace! {
        /// # Safety
        ///
        /// None; the arguments are plain values.
        pub(super) unsafe fn gpusvm_fault(
            svm: c_uint,
            start: c_ulong,
            end: c_ulong,
            write: bool,
            result: c_int,
            walks: c_uint,
            retries: c_uint,
        );

        /// # Safety
        ///
        /// None; the arguments are plain values.
        pub(super) unsafe fn gpusvm_map(
            svm: c_uint,
            start: c_ulong,
            end: c_ulong,
            segments: c_uint,
            bytes: c_ulong,
        );

        /// # Safety
        ///
        /// None; the arguments are plain values.
        pub(super) unsafe fn gpusvm_invalidate(
            svm: c_uint,
            start: c_ulong,
            end: c_ulong,
            event: c_uint,
            outcome: c_uint,
        );

        /// # Safety
        ///
        /// None; the arguments are plain values.
        pub(super) unsafe fn gpusvm_collect(svm: c_uint, start: c_ulong, end: c_ulong);
    }
}
