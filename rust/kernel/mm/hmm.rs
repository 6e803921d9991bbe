// SPDX-License-Identifier: GPL-2.0

//! Reading CPU page tables on behalf of a device.
//!
//! A *walk* looks up what the CPU page tables say about a span of addresses, and can fault pages in
//! as if the process had touched them. The result is true only as long as the notifier does not say
//! otherwise: take its lock and ask [`ReadGuard::retry`] with the sequence number of the walk before
//! using it, as the example shows.
//!
//! The result comes as [`Segment`]s, never as page frame numbers with an order: what the CPU maps
//! with one huge entry may begin before the walked span and end behind it, and a segment is clipped
//! to the span.
//!
//! # Examples
//!
//! ```
//! use core::ops::Range;
//! use kernel::{
//!     mm::{
//!         hmm::{
//!             self,
//!             Access,
//!             Request,
//!             Window, //
//!         },
//!         notifier::{
//!             Invalidate,
//!             IntervalNotifier, //
//!         },
//!         MmWithUser, //
//!     },
//!     time::msecs_to_jiffies, //
//! };
//!
//! /// Makes `fault` readable, and maps whatever else there is in `span`.
//! ///
//! /// Returns the number of bytes that were mapped.
//! fn mirror<T: Invalidate>(
//!     notifier: &IntervalNotifier<T>,
//!     mm: &MmWithUser,
//!     span: Range<usize>,
//!     fault: Range<usize>,
//! ) -> Result<usize> {
//!     let mut window = Window::new(512, GFP_KERNEL)?;
//!     let request = Request {
//!         around: None,
//!         asked: Some((fault, Access::Read)),
//!         owner: None,
//!     };
//!
//!     let walked = hmm::walk(notifier, mm, span, &request, &mut window, msecs_to_jiffies(1000))?;
//!
//!     let guard = notifier.read();
//!     if guard.retry(walked.seq()) {
//!         return Err(EAGAIN);
//!     }
//!     // From here to the end of the guard's life the segments are what the CPU sees.
//!     Ok(walked.segments().map(|segment| segment.va.len()).sum())
//! }
//! ```
//!
//! C header: [`include/linux/hmm.h`](srctree/include/linux/hmm.h)
//!
//! [`ReadGuard::retry`]: crate::mm::notifier::ReadGuard::retry

use crate::{
    mm::{
        notifier::{
            IntervalNotifier,
            Invalidate,
            Seq, //
        },
        MmWithUser,
        MmapReadGuard, //
    },
    prelude::*,
    time::Jiffies, //
};
use core::{
    ops::Range,
    ptr::NonNull, //
};

mod held;
mod kind;
mod pfn;
mod raw;
mod segment;
mod walked;
mod window;

pub use held::{
    walk_held,
    Held, //
};
pub use kind::Kind;
pub use segment::{
    PageState,
    Segment, //
};
pub use walked::Walked;
pub use window::Window;

use raw::Target;

/// How a page shall be accessible.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// It can be read.
    Read,
    /// It can be read and written.
    Write,
}

/// What a walk shall bring about.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Addresses around [`asked`](Self::asked) that shall be faulted in as well, page aligned.
    ///
    /// Pages in neither are taken with what they have, and nothing there is faulted or an error.
    /// What is outside of the walked span is ignored.
    pub around: Option<(Range<usize>, Access)>,

    /// Addresses that need a certain access, page aligned. What is outside of the walked span is
    /// ignored.
    pub asked: Option<(Range<usize>, Access)>,

    /// The owner of the device private memory that the device can reach itself.
    ///
    /// Such pages are left where they are and reported. All other device private pages are as if
    /// they were swapped out.
    pub owner: Option<NonNull<c_void>>,
}

/// Walks the CPU page tables of `span`, with `win` as scratch memory.
///
/// The walk begins with a sequence number of its own, and begins anew by itself when an
/// invalidation collides with it; so it replaces every earlier walk. Look at
/// [`walk_locked`] if several walks shall be valid together.
///
/// Faults of [`Request::asked`] never touch a page outside of it, however the CPU maps it, but
/// where the process uses huge pages, the page fault may install one.
///
/// It sleeps, takes the mmap lock for reading and may drop it during a fault. So the mmap lock must
/// not be held, nor any lock that a callback of a notifier takes. It may be interrupted by a fatal
/// signal. `timeout` bounds how long one of its passes is begun anew because of invalidations; 0
/// is for no bound. The time that a fault takes, which may be served by user space
/// (`userfaultfd`), does not count.
///
/// C: `hmm_range_fault_unlocked_timeout()`.
///
/// # Errors
///
/// - `EINVAL`: `span` is empty, not page aligned, not inside the span of `notifier` or longer than
///   `win`; [`Request::asked`] is empty or not page aligned; or `mm` is not the one of `notifier`;
/// - `EFAULT`: a page that was asked for does not exist, must not be accessed at all, or cannot be
///   mirrored (`VM_IO`, `VM_PFNMAP`); or the memory of the process is being torn down;
/// - `EPERM`: a page was asked for writing and is in a VMA that does not allow it;
/// - `EHWPOISON`: a page that was asked for has a hardware memory error;
/// - `ENOMEM`: out of memory in a fault;
/// - `EBUSY`: `timeout` has passed while invalidations collided with the walk;
/// - `EAGAIN`: what was asked for was taken away again several times before the walk ended;
/// - `EINTR`: a fatal signal is pending.
pub fn walk<'w, T: Invalidate>(
    notifier: &IntervalNotifier<T>,
    mm: &MmWithUser,
    span: Range<usize>,
    req: &Request,
    win: &'w mut Window,
    timeout: Jiffies,
) -> Result<Walked<'w>> {
    raw::walk(&Target::new(notifier), mm, span, req, win, timeout)
}

/// Walks the CPU page tables of `span` with the mmap lock held, as a part of what began at `seq`.
///
/// Any number of walks with the same `seq` are valid together if [`ReadGuard::retry`] says so in
/// the end. Take `seq` with [`IntervalNotifier::read_begin`] before the mmap lock.
///
/// As the mmap lock stays held, this cannot fault in what needs to drop it (`userfaultfd`, some
/// file systems). It sleeps, and must not be called with a lock held that a callback takes.
///
/// C: `hmm_range_fault()`.
///
/// # Errors
///
/// As for [`walk`], but:
///
/// - `EBUSY`: an invalidation has collided, be it by one of the faults that were asked for. Begin
///   anew with a new `seq`.
/// - `EINTR` does not occur.
///
/// [`ReadGuard::retry`]: crate::mm::notifier::ReadGuard::retry
pub fn walk_locked<'w, T: Invalidate>(
    notifier: &IntervalNotifier<T>,
    mmap: &MmapReadGuard<'_>,
    seq: Seq,
    span: Range<usize>,
    req: &Request,
    win: &'w mut Window,
) -> Result<Walked<'w>> {
    raw::walk_locked(&Target::new(notifier), mmap, seq, span, req, win)
}

/// Looks at one page, to find out whether it is part of a huge mapping.
///
/// If a CPU page table entry of at least PMD size maps the page at `addr`, then this returns the
/// PMD sized and aligned block around it, clipped to the span of `notifier`, as one segment: the
/// permission and the kind of all its pages are the same. That replaces a walk over all of them.
/// Otherwise, it returns `None`.
///
/// `addr` must be page aligned, and `win` must have room for one page. Everything else, and the
/// errors, as for [`walk`] with the span of that page.
pub fn probe<T: Invalidate>(
    notifier: &IntervalNotifier<T>,
    mm: &MmWithUser,
    addr: usize,
    req: &Request,
    win: &mut Window,
    timeout: Jiffies,
) -> Result<Option<(Seq, Segment)>> {
    raw::probe(&Target::new(notifier), mm, addr, req, win, timeout)
}

#[cfg(CONFIG_DRM_GPUSVM_RUST_KUNIT_TEST)]
mod tests;
