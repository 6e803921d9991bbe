// SPDX-License-Identifier: GPL-2.0

//! The result of a walk.

use super::{
    kind::Kind,
    segment::{
        self,
        PageState,
        Segment, //
    }, //
};
use crate::mm::notifier::Seq;
use core::ops::Range;

/// What a walk has found.
///
/// It is worth nothing before [`ReadGuard::retry`] has been asked with [`seq`](Self::seq), and
/// after the guard is gone.
///
/// [`ReadGuard::retry`]: crate::mm::notifier::ReadGuard::retry
///
/// # Invariants
///
/// `pfns` has one entry for each page of `span`, as `hmm_range_fault()` has filled it in.
#[must_use = "walking has no effect but this, apart from faults"]
pub struct Walked<'w> {
    seq: Seq,
    span: Range<usize>,
    pfns: &'w [usize],
}

impl<'w> Walked<'w> {
    /// `pfns` must have been filled in by a walk over `span`.
    pub(super) fn new(seq: Seq, span: Range<usize>, pfns: &'w [usize]) -> Self {
        // INVARIANT: The callers in this module have just walked.
        Self { seq, span, pfns }
    }

    /// Returns the sequence number under which the walk was made.
    #[inline]
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Returns what was walked.
    #[inline]
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Returns the pages that are present as contiguous segments, in order of their addresses.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + use<'w> {
        segment::segments(self.pfns, self.span.start, Kind::of)
    }

    /// Returns the state of each page of the span, in order of their addresses.
    pub fn pages(&self) -> impl Iterator<Item = PageState> + use<'w> {
        segment::pages(self.pfns)
    }
}
