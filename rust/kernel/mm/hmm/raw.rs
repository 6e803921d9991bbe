// SPDX-License-Identifier: GPL-2.0

//! The walks themselves.
//!
//! Nothing here is generic, so that it exists once, in the kernel, and may use C functions that are
//! not exported to modules.

use super::{
    held::Held,
    kind::Kind,
    pfn::{
        request_flags,
        Pfn, //
    },
    segment::{
        self,
        Segment, //
    },
    walked::Walked,
    window::Window,
    Access,
    Request, //
};
use crate::{
    bindings,
    error::to_result,
    mm::{
        notifier::{
            IntervalNotifier,
            Invalidate,
            Seq, //
        },
        MmWithUser,
        MmapReadGuard, //
    },
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    time::Jiffies, //
};
use core::{
    marker::PhantomData,
    ops::Range, //
};

/// How often a walk faults in what was asked for, if it is taken away before the walk ends.
const MAX_ROUNDS: usize = 4;

/// The size of what one entry of the page middle directory maps.
pub(super) const PMD_SIZE: usize = bindings::PMD_SIZE;

/// A notifier, without its type.
///
/// # Invariants
///
/// `notifier` is a registered notifier for `span` of `mm` with the identity `id`, for `'n`.
pub(super) struct Target<'n> {
    notifier: *mut bindings::mmu_interval_notifier,
    id: u64,
    span: Range<usize>,
    mm: *mut bindings::mm_struct,
    _notifier: PhantomData<&'n ()>,
}

impl<'n> Target<'n> {
    pub(super) fn new<T: Invalidate>(notifier: &'n IntervalNotifier<T>) -> Self {
        // INVARIANT: A notifier is registered as long as it exists, which is at least `'n`.
        Self {
            notifier: notifier.as_raw(),
            id: notifier.id(),
            span: notifier.span(),
            mm: notifier.mm().as_raw(),
            _notifier: PhantomData,
        }
    }
}

/// Whether the mmap lock is held by the caller, or taken by HMM itself.
enum Mode {
    Unlocked { timeout: Jiffies },
    Locked { seq: Seq },
}

/// One call of HMM: fills in the entries of `span`, which need `access`.
///
/// # Safety
///
/// - The mm of `target` has a user.
/// - For [`Mode::Locked`] its mmap lock is held by the current task, for [`Mode::Unlocked`] it is
///   not.
unsafe fn pass(
    target: &Target<'_>,
    span: &Range<usize>,
    access: Option<Access>,
    req: &Request,
    win: &mut Window,
    mode: &Mode,
) -> Result<Seq> {
    let pfns = win
        .zeroed((span.end - span.start) >> PAGE_SHIFT)
        .ok_or(EINVAL)?;

    let mut range = bindings::hmm_range {
        notifier: target.notifier,
        notifier_seq: 0,
        start: span.start,
        end: span.end,
        hmm_pfns: pfns.as_mut_ptr(),
        default_flags: request_flags(access),
        // HMM rounds what one page needs up to the end of the page table or of the hole that it is
        // in. So what differs in its needs is walked on its own, and never by flags per page.
        pfn_flags_mask: 0,
        dev_private_owner: req
            .owner
            .map_or(core::ptr::null_mut(), |owner| owner.as_ptr()),
    };

    let ret = match mode {
        // SAFETY:
        // - By the type invariants of `Target` the notifier is registered, and its mm has a user
        //   by the safety requirements, which also say that the mmap lock is not held.
        // - `pfns` has an entry for each page from `start` to `end`.
        Mode::Unlocked { timeout } => unsafe {
            bindings::hmm_range_fault_unlocked_timeout(&mut range, *timeout)
        },
        Mode::Locked { seq } => {
            if seq.is_foreign(target.id) {
                return Err(EBUSY);
            }
            range.notifier_seq = seq.raw();
            // SAFETY: As above, but the mmap lock is held.
            unsafe { bindings::hmm_range_fault(&mut range) }
        }
    };
    to_result(ret)?;

    segment::repair_head(pfns, span.start, PMD_SIZE, Kind::of);

    Ok(Seq::new(target.id, range.notifier_seq))
}

/// Checks that `span` is not empty and page aligned.
fn check_aligned(span: &Range<usize>) -> Result {
    if span.start >= span.end || span.start % PAGE_SIZE != 0 || span.end % PAGE_SIZE != 0 {
        return Err(EINVAL);
    }
    Ok(())
}

/// Addresses, and what they need.
type Zone = (Range<usize>, Access);

/// Returns the part of a zone of a request that is inside of `span`.
fn clip(zone: &Option<Zone>, span: &Range<usize>) -> Result<Option<Zone>> {
    let Some((zone, access)) = zone else {
        return Ok(None);
    };
    check_aligned(zone)?;

    let clipped = zone.start.max(span.start)..zone.end.min(span.end);
    Ok((!clipped.is_empty()).then_some((clipped, *access)))
}

/// Whether what fulfils `outer` also fulfils `inner`.
fn implies(outer: &Option<Zone>, inner: &Option<Zone>) -> bool {
    match (outer, inner) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some((outer, given)), Some((inner, needed))) => {
            outer.start <= inner.start
                && inner.end <= outer.end
                && (*given == Access::Write || *needed == Access::Read)
        }
    }
}

/// Makes all passes of a walk, and leaves its result in `win`.
///
/// # Safety
///
/// As for [`pass`].
unsafe fn passes(
    target: &Target<'_>,
    span: &Range<usize>,
    req: &Request,
    win: &mut Window,
    mode: &Mode,
) -> Result<Seq> {
    check_aligned(span)?;
    if span.start < target.span.start
        || span.end > target.span.end
        || (span.end - span.start) >> PAGE_SHIFT > win.max_pages()
    {
        return Err(EINVAL);
    }

    let asked = clip(&req.asked, span)?;
    let around = clip(&req.around, span)?;
    let is_whole = |zone: &Option<Zone>| zone.as_ref().is_some_and(|(zone, _)| zone == span);

    // The last pass is over everything, since its sequence number is the one that counts; what it
    // needs all over it faults in itself. Other needs take a pass of their own before.
    let (first, access) = if is_whole(&asked) {
        ([None, None], asked.as_ref().map(|zone| zone.1))
    } else if is_whole(&around) {
        let access = around.as_ref().map(|zone| zone.1);
        let before = if implies(&around, &asked) {
            None
        } else {
            asked.clone()
        };

        ([None, before], access)
    } else if implies(&around, &asked) {
        ([around, None], None)
    } else {
        ([around, asked.clone()], None)
    };

    for _ in 0..MAX_ROUNDS {
        for (zone, access) in first.iter().flatten() {
            // SAFETY: By the safety requirements.
            unsafe { pass(target, zone, Some(*access), req, win, mode)? };
        }

        // SAFETY: By the safety requirements.
        let seq = unsafe { pass(target, span, access, req, win, mode)? };

        let satisfied = match &asked {
            None => true,
            Some((asked, access)) => win
                .get_mut((span.end - span.start) >> PAGE_SHIFT)
                .ok_or(EINVAL)?
                .iter()
                .skip((asked.start - span.start) >> PAGE_SHIFT)
                .take((asked.end - asked.start) >> PAGE_SHIFT)
                .all(|&raw| Pfn::from_raw(raw).allows(*access)),
        };
        if satisfied {
            return Ok(seq);
        }
    }

    Err(EAGAIN)
}

/// Finds out whether a page with a hardware memory error is the reason for `error`.
///
/// HMM says `EFAULT` for such a page, as for many other reasons, and does not say which page it is.
///
/// # Safety
///
/// As for [`pass`], and `mm` is the one of `target`.
unsafe fn explain(
    error: Error,
    target: &Target<'_>,
    mm: &MmWithUser,
    span: &Range<usize>,
    req: &Request,
    win: &mut Window,
    mode: &Mode,
) -> Error {
    if error != EFAULT {
        return error;
    }

    let needed = match clip(&req.asked, span) {
        Ok(Some(asked)) => Some(asked),
        Ok(None) => clip(&req.around, span).ok().flatten(),
        Err(_) => None,
    };
    let Some((needed, access)) = needed else {
        return error;
    };

    // Look only at pages that are not present, so that no other one is touched.
    // SAFETY: By the safety requirements.
    if unsafe { pass(target, &needed, None, req, win, mode) }.is_err() {
        return error;
    }
    let Some(pfns) = win.get_mut((needed.end - needed.start) >> PAGE_SHIFT) else {
        return error;
    };
    let missing = (needed.start..)
        .step_by(PAGE_SIZE)
        .zip(pfns.iter())
        .filter(|(_, &raw)| !Pfn::from_raw(raw).valid());

    // Not waiting: neither for a disk nor for user space, which a fault with the mmap lock held could
    // not do anyway. A page with a hardware error needs no waiting.
    let mut flags = bindings::FOLL_HWPOISON | bindings::FOLL_NOWAIT;
    if access == Access::Write {
        flags |= bindings::FOLL_WRITE;
    }

    let _mmap = match mode {
        Mode::Unlocked { .. } => Some(mm.mmap_read_lock()),
        Mode::Locked { .. } => None,
    };
    for (addr, _) in missing {
        // SAFETY: The mm has a user and its mmap lock is held, by us or by the caller. Without an
        // array of pages no references are taken.
        let got = unsafe {
            bindings::get_user_pages_remote(
                mm.as_raw(),
                addr,
                1,
                flags,
                core::ptr::null_mut(),
                core::ptr::null_mut(),
            )
        };
        // CAST: Error numbers are small.
        if got == EHWPOISON.to_errno() as isize {
            return EHWPOISON;
        }
        if got < 0 {
            break;
        }
    }

    error
}

/// # Safety
///
/// As for [`pass`], and `mm` is the one of `target`.
unsafe fn walk_in_mode<'w>(
    target: &Target<'_>,
    mm: &MmWithUser,
    span: Range<usize>,
    req: &Request,
    win: &'w mut Window,
    mode: &Mode,
) -> Result<Walked<'w>> {
    // SAFETY: By the safety requirements.
    let seq = match unsafe { passes(target, &span, req, win, mode) } {
        Ok(seq) => seq,
        // SAFETY: By the safety requirements.
        Err(error) => return Err(unsafe { explain(error, target, mm, &span, req, win, mode) }),
    };

    walked(seq, span, win)
}

/// The result of a walk over `span` that has just been made with `win`.
pub(super) fn walked(seq: Seq, span: Range<usize>, win: &mut Window) -> Result<Walked<'_>> {
    let pfns = win
        .get_mut((span.end - span.start) >> PAGE_SHIFT)
        .ok_or(EINVAL)?;

    Ok(Walked::new(seq, span, pfns))
}

/// See [`super::walk`].
pub(super) fn walk<'w>(
    target: &Target<'_>,
    mm: &MmWithUser,
    span: Range<usize>,
    req: &Request,
    win: &'w mut Window,
    timeout: Jiffies,
) -> Result<Walked<'w>> {
    if mm.as_raw() != target.mm {
        return Err(EINVAL);
    }

    // SAFETY: `mm` is the mm of `target`, as we have just checked, and it has a user. That its mmap
    // lock is not held is demanded by the documentation; a violation is a deadlock at worst.
    unsafe { walk_in_mode(target, mm, span, req, win, &Mode::Unlocked { timeout }) }
}

/// See [`super::walk_locked`].
pub(super) fn walk_locked<'w>(
    target: &Target<'_>,
    mmap: &MmapReadGuard<'_>,
    seq: Seq,
    span: Range<usize>,
    req: &Request,
    win: &'w mut Window,
) -> Result<Walked<'w>> {
    if mmap.mm.as_raw() != target.mm {
        return Err(EINVAL);
    }

    // SAFETY: `mmap` holds the mmap lock of the mm of `target`, as we have just checked, and that
    // mm has a user.
    unsafe { walk_in_mode(target, mmap.mm, span, req, win, &Mode::Locked { seq }) }
}

/// One try of [`super::walk_held`], which leaves its result in `win`.
pub(super) fn walk_held(
    target: &Target<'_>,
    held: &Held<'_>,
    seq: Seq,
    span: Range<usize>,
    req: &Request,
    win: &mut Window,
) -> Result<Seq> {
    let mm = held.mm();

    if mm.as_raw() != target.mm {
        return Err(EINVAL);
    }

    // SAFETY: By the type invariants of `Held`, the mmap lock is held (for writing, which is more than
    // is demanded) of the mm of `target`, as we have just checked, and that mm has a user.
    Ok(unsafe { walk_in_mode(target, mm, span, req, win, &Mode::Locked { seq }) }?.seq())
}

/// See [`super::probe`].
pub(super) fn probe(
    target: &Target<'_>,
    mm: &MmWithUser,
    addr: usize,
    req: &Request,
    win: &mut Window,
    timeout: Jiffies,
) -> Result<Option<(Seq, Segment)>> {
    let page = addr..addr.checked_add(PAGE_SIZE).ok_or(EINVAL)?;
    let seq = walk(target, mm, page, req, win, timeout)?.seq();

    let Some(pfn) = win
        .get_mut(1)
        .and_then(|pfns| pfns.first())
        .map(|&raw| Pfn::from_raw(raw))
    else {
        return Ok(None);
    };
    // The order means something only for an entry that is valid: that of `hugetlb` memory is set
    // in any case.
    if !pfn.valid() || (PAGE_SIZE << pfn.order()) < PMD_SIZE {
        return Ok(None);
    }
    let Some(kind) = Kind::of(pfn.number()) else {
        return Ok(None);
    };

    let segment = segment::block(pfn, addr, PMD_SIZE, &target.span, kind);
    Ok(Some((seq, segment)))
}
