// SPDX-License-Identifier: GPL-2.0

//! Which pages of a page map are in use.

use crate::{
    alloc::Flags,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Full,
        Relaxed,
        Release, //
    }, //
};
use core::ops::Range;

/// How many pages one word tells about.
const BITS: usize = u64::BITS as usize;

/// A bit per page: it is set from [`claim`](Self::claim) to [`release`](Self::release).
///
/// Pages are claimed and released one by one or in naturally aligned groups of a power of two, by any
/// number of threads, in any context.
pub(super) struct Used {
    words: KVVec<Atomic<u64>>,
    pages: usize,
    count: Atomic<i64>,
}

/// The bits of the words that a group of pages is in, as `(index of the word, mask)`.
fn masks(offset: usize, order: u32) -> impl Iterator<Item = (usize, u64)> + Clone {
    let pages = 1usize << order;
    let first = offset / BITS;

    let (words, mask) = match pages.checked_div(BITS) {
        Some(words) if words > 0 => (words, u64::MAX),
        // OVERFLOW: There are fewer than `BITS` pages, which is the width of the type.
        _ => (1, ((1u64 << pages) - 1) << (offset % BITS)),
    };
    // OVERFLOW: The words of a group exist.
    (first..first + words).map(move |word| (word, mask))
}

impl Used {
    pub(super) fn new(pages: usize, flags: Flags) -> Result<Self> {
        let len = pages.div_ceil(BITS);
        let mut words = KVVec::with_capacity(len, flags)?;
        for _ in 0..len {
            words.push(Atomic::new(0), flags)?;
        }

        Ok(Self {
            words,
            pages,
            count: Atomic::new(0),
        })
    }

    /// Whether all pages of a group exist, and the group is aligned.
    pub(super) fn is_group(&self, offset: usize, order: u32) -> bool {
        1usize.checked_shl(order).is_some_and(|pages| {
            offset % pages == 0
                && offset
                    .checked_add(pages)
                    .is_some_and(|end| end <= self.pages)
        })
    }

    /// Claims the group of `1 << order` pages at `offset`: all of it or, if one of its pages is in use
    /// or does not exist, nothing.
    pub(super) fn claim(&self, offset: usize, order: u32) -> bool {
        if !self.is_group(offset, order) {
            return false;
        }

        for (done, (index, mask)) in masks(offset, order).enumerate() {
            if !self.set(index, mask) {
                for (index, mask) in masks(offset, order).take(done) {
                    self.clear(index, mask);
                }
                return false;
            }
        }
        // Full: who claims pages and then looks whether that is still allowed, and who forbids it and then
        // looks whether there are any, must not both see nothing.
        self.count.fetch_add(1i64 << order, Full);
        true
    }

    /// Gives claimed pages back.
    pub(super) fn release(&self, offset: usize, order: u32) {
        for (index, mask) in masks(offset, order) {
            self.clear(index, mask);
        }
        self.count.fetch_sub(1i64 << order, Release);
    }

    /// Returns the number of pages in use.
    pub(super) fn count(&self) -> usize {
        // CAST: The count is never negative: a page is counted before anybody can release it. Well,
        // almost: the sum of a claim in progress may be late, and then zero is as good an answer.
        self.count.load(Acquire).max(0) as usize
    }

    /// Returns the number of pages in use among `pages`.
    pub(super) fn count_in(&self, pages: Range<usize>) -> usize {
        let end = pages.end.min(self.pages);
        let mut at = pages.start;
        let mut count = 0;

        while at < end {
            // OVERFLOW: Both are at most the number of pages.
            let next = ((at / BITS + 1) * BITS).min(end);
            let mask = (u64::MAX >> (BITS - (next - at))) << (at % BITS);

            count += (self.word(at / BITS) & mask).count_ones() as usize;
            at = next;
        }
        count
    }

    /// Whether a page is in use.
    pub(super) fn contains(&self, offset: usize) -> bool {
        offset < self.pages && self.word(offset / BITS) & (1 << (offset % BITS)) != 0
    }

    fn word(&self, index: usize) -> u64 {
        self.words.get(index).map_or(0, |word| word.load(Acquire))
    }

    /// Sets bits if none of them is set.
    fn set(&self, index: usize, mask: u64) -> bool {
        let Some(word) = self.words.get(index) else {
            return false;
        };
        let mut old = word.load(Relaxed);

        while old & mask == 0 {
            // Acquire, as a part of it: what was done with the pages by their former user is over.
            match word.cmpxchg(old, old | mask, Full) {
                Ok(_) => return true,
                Err(now) => old = now,
            }
        }
        false
    }

    fn clear(&self, index: usize, mask: u64) {
        let Some(word) = self.words.get(index) else {
            return;
        };
        let mut old = word.load(Relaxed);

        while let Err(now) = word.cmpxchg(old, old & !mask, Full) {
            old = now;
        }
    }
}

#[cfg(CONFIG_DRM_GPUSVM_RUST_KUNIT_TEST)]
#[macros::kunit_tests(rust_mm_pagemap_used)]
mod tests {
    use super::*;

    const PAGES: usize = 1024 + 3;

    fn used() -> Result<Used> {
        Used::new(PAGES, GFP_KERNEL)
    }

    #[test]
    fn single_pages() -> Result {
        let used = used()?;

        for offset in [0, 63, 64, PAGES - 1] {
            assert!(used.claim(offset, 0));
            assert!(used.contains(offset));
            assert!(!used.claim(offset, 0));
        }
        assert_eq!(used.count(), 4);
        assert_eq!(used.count_in(0..PAGES), 4);
        assert_eq!(used.count_in(1..PAGES), 3);
        assert_eq!(used.count_in(63..65), 2);
        assert_eq!(used.count_in(64..64), 0);

        used.release(63, 0);
        assert!(!used.contains(63));
        assert!(used.contains(64));
        assert_eq!(used.count(), 3);
        assert!(used.claim(63, 0));
        Ok(())
    }

    #[test]
    fn groups_are_claimed_whole_or_not_at_all() -> Result {
        let used = used()?;

        assert!(used.claim(512 + 511, 0));
        assert!(!used.claim(512, 9));
        // What had been set before the last word of the group is clear again.
        assert_eq!(used.count_in(512..1023), 0);
        assert_eq!(used.count(), 1);

        assert!(used.claim(0, 9));
        assert_eq!(used.count_in(0..512), 512);
        assert!(!used.claim(17, 0));
        assert_eq!(used.count(), 513);

        // A group may be released page by page, as after a split.
        for offset in 0..512 {
            used.release(offset, 0);
        }
        assert_eq!(used.count(), 1);
        assert!(used.claim(0, 9));
        Ok(())
    }

    #[test]
    fn small_groups_share_a_word() -> Result {
        let used = used()?;

        assert!(used.claim(4, 2));
        assert!(used.claim(8, 2));
        assert!(!used.claim(0, 3));
        used.release(4, 2);
        assert!(used.claim(0, 3));
        assert_eq!(used.count_in(0..16), 12);
        Ok(())
    }

    #[test]
    fn what_does_not_exist_cannot_be_claimed() -> Result {
        let used = used()?;

        for (offset, order) in [
            (PAGES, 0),
            (usize::MAX, 0),
            (1, 1),
            (1024, 9),
            (0, 11),
            (0, 63),
            (0, 64),
        ] {
            assert!(!used.claim(offset, order));
        }
        assert!(!used.contains(PAGES));
        assert!(!used.contains(usize::MAX));
        assert_eq!(used.count(), 0);
        assert_eq!(used.count_in(0..usize::MAX), 0);
        Ok(())
    }
}
