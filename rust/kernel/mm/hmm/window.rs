// SPDX-License-Identifier: GPL-2.0

//! Scratch memory of walks.

use crate::{
    alloc::Flags,
    prelude::*, //
};

/// Scratch memory for walks of up to a fixed number of pages.
///
/// It is used again and again, so that a walk does not allocate. Its size bounds the memory that
/// mirroring a large span needs: walk such a span in windows.
pub struct Window {
    pfns: KVVec<usize>,
}

impl Window {
    /// Allocates scratch memory for walks of up to `max_pages` pages.
    pub fn new(max_pages: usize, flags: Flags) -> Result<Self> {
        Ok(Self {
            pfns: KVVec::zeroed(max_pages, flags)?,
        })
    }

    /// Returns the number of pages of the longest walk.
    #[inline]
    pub fn max_pages(&self) -> usize {
        self.pfns.len()
    }

    /// Returns zeroed scratch memory for `pages` pages, or `None` if that is too many.
    ///
    /// For HMM the array is input as well as output: it keeps some bits of it. So what an earlier
    /// walk has left must not be seen by the next one.
    pub(super) fn zeroed(&mut self, pages: usize) -> Option<&mut [usize]> {
        let pfns = self.pfns.get_mut(..pages)?;
        pfns.fill(0);
        Some(pfns)
    }

    /// Returns what the last walk, of `pages` pages, has left.
    pub(super) fn get_mut(&mut self, pages: usize) -> Option<&mut [usize]> {
        self.pfns.get_mut(..pages)
    }
}
