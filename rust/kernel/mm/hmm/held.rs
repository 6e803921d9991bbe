// SPDX-License-Identifier: GPL-2.0

//! Walks while the address space is held still.

use super::{
    raw::{
        self,
        Target, //
    },
    Request,
    Walked,
    Window, //
};
use crate::{
    bindings,
    error::to_result,
    mm::{
        notifier::{
            IntervalNotifier,
            Invalidate, //
        },
        virt::VmaRef,
        MmWithUser, //
    },
    prelude::*,
    types::NotThreadSafe, //
};
use core::ops::Range;

/// How often a walk is begun anew before it gives up.
const MAX_WALKS: usize = 8;

/// A span of an address space that nobody else changes: the mmap lock is held for writing, and so are
/// the locks of the VMAs in the span.
///
/// This is the last resort of a walk that loses against invalidations over and over. What it holds off
/// is what a process can do to itself in a loop: `mmap()`, `munmap()`, `mremap()`, `mprotect()`,
/// `madvise()` (those kinds, too, that take the lock of a VMA only) from whatever process, `fork()`,
/// and page faults; also `MADV_COLLAPSE`, khugepaged for anonymous memory, KSM, NUMA hints and the
/// OOM reaper.
///
/// What comes by the reverse mapping is not held off, since it takes none of these locks: reclaim,
/// migration and compaction, splitting of huge pages, memory errors, and for pages of files (shared
/// memory is such) writeback, truncation, punching of holes and khugepaged. None of these has a reason
/// to take a page again and again that was just faulted in, but for the holes that a process can punch
/// into shared memory.
///
/// Everybody else who wants to change the address space, or has a page fault in it, waits meanwhile. So
/// it is for short works of bounded length, and nobody may be waited for who could need these locks:
/// user space least of all, see [`walk_held`].
///
/// # Examples
///
/// ```
/// use core::ops::Range;
/// use kernel::mm::{
///     hmm::{
///         walk_held,
///         Access,
///         Held,
///         Request,
///         Window, //
///     },
///     notifier::{
///         IntervalNotifier,
///         Invalidate, //
///     },
///     MmWithUser, //
/// };
///
/// /// Makes `span`, which is anonymous memory, writable, whoever else changes it all the time.
/// fn mirror_in_a_storm<T: Invalidate>(
///     notifier: &IntervalNotifier<T>,
///     mm: &MmWithUser,
///     span: Range<usize>,
///     win: &mut Window,
/// ) -> Result {
///     let request = Request {
///         asked: Some((span.clone(), Access::Write)),
///         ..Request::default()
///     };
///
///     let held = Held::new(mm, span.clone())?;
///     let walked = walk_held(notifier, &held, span, &request, win)?;
///     let guard = notifier.read();
///     if guard.retry(walked.seq()) {
///         // Possible, but nothing that happens again and again.
///         return Err(EAGAIN);
///     }
///     // ... use `walked.segments()` ...
///     Ok(())
/// }
/// ```
///
/// # Invariants
///
/// The mmap lock of `mm` is held for writing by the current task, and so is the lock of each VMA that
/// has an address in `span`.
pub struct Held<'a> {
    mm: &'a MmWithUser,
    span: Range<usize>,
    // The lock must be released by the task that took it.
    _nts: NotThreadSafe,
}

impl<'a> Held<'a> {
    /// Holds `span` of `mm` still. Sleeps; the mmap lock and locks that a callback of a notifier takes
    /// must not be held.
    ///
    /// # Errors
    ///
    /// `EINTR` if the current task is being killed.
    pub fn new(mm: &'a MmWithUser, span: Range<usize>) -> Result<Self> {
        // SAFETY: `mm` is valid and has a user.
        to_result(unsafe { bindings::mmap_write_lock_killable(mm.as_raw()) })?;
        // INVARIANT: The lock was just taken; nothing is in an empty span.
        let mut this = Self {
            mm,
            span: span.start..span.start,
            _nts: NotThreadSafe,
        };

        let mut result = Ok(());
        this.for_each_vma(&span, |vma| {
            if result.is_ok() {
                // SAFETY: The VMA is valid, and the mmap lock is held for writing. The lock of the VMA
                // is released together with that one.
                result = to_result(unsafe { bindings::vma_start_write_killable(vma.as_ptr()) });
            }
        });
        result?;
        // INVARIANT: All VMAs in the span are locked.
        this.span = span;
        Ok(this)
    }

    /// Returns the address space.
    pub fn mm(&self) -> &'a MmWithUser {
        self.mm
    }

    /// Calls `f` for each VMA that has an address in `span`, in order.
    pub fn for_each_vma(&self, span: &Range<usize>, mut f: impl FnMut(&VmaRef)) {
        let mut addr = span.start;

        while addr < span.end {
            // SAFETY: The address space has a user, and by the type invariants its mmap lock is held.
            let vma = unsafe { bindings::find_vma(self.mm.as_raw(), addr) };
            if vma.is_null() {
                return;
            }
            // SAFETY: It is valid as long as the mmap lock is held, which outlives the reference.
            let vma = unsafe { VmaRef::from_raw(vma) };
            if vma.start() >= span.end {
                return;
            }
            f(vma);
            // `find_vma` gives a VMA that ends after `addr`.
            addr = vma.end();
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, this task holds the lock. It releases the locks of all VMAs.
        unsafe { bindings::mmap_write_unlock(self.mm.as_raw()) };
    }
}

/// Walks the CPU page tables of `span` while it is held still, with `win` as scratch memory.
///
/// As [`walk_locked`](super::walk_locked), but it takes the sequence number itself and begins anew by
/// itself, a few times, when an invalidation collides with it. As long as `held` exists, the result can
/// become void only by what [`Held`] does not hold off.
///
/// A fault is served with the locks held. So nothing must be asked for in a VMA whose faults may have
/// to wait for somebody who needs them: one that is registered with `userfaultfd`, or of a file system.
/// Faults of anonymous memory, `shmem` and `hugetlb` wait for the disk at most, as those that
/// `ksm_madvise()` causes do, also with the mmap lock held for writing.
///
/// # Errors
///
/// As for [`walk_locked`](super::walk_locked), and `EINVAL` if `span` is not all in what is held.
/// `EBUSY`: something else has collided with each of its passes.
pub fn walk_held<'w, T: Invalidate>(
    notifier: &IntervalNotifier<T>,
    held: &Held<'_>,
    span: Range<usize>,
    req: &Request,
    win: &'w mut Window,
) -> Result<Walked<'w>> {
    if span.start < held.span.start || span.end > held.span.end {
        return Err(EINVAL);
    }
    let target = Target::new(notifier);

    for _ in 1..MAX_WALKS {
        // What it may have to wait for is an invalidation that runs. It ends without our locks: an mmap
        // lock is taken before an invalidation begins, never in between.
        let seq = notifier.read_begin();

        match raw::walk_held(&target, held, seq, span.clone(), req, win) {
            // As the borrow of `win` in a result that is not returned would last too long, the result
            // is made again from what is in it.
            Ok(seq) => return raw::walked(seq, span, win),
            Err(err) if err == EBUSY || err == EAGAIN => continue,
            Err(err) => return Err(err),
        }
    }
    Err(EBUSY)
}
