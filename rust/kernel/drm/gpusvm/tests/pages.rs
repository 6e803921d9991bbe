// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Tests of the states of a block.

use core::ptr::NonNull;

use kernel::{
    bindings,
    io::PhysAddr, //
};

use super::{
    super::{
        pages::{
            Backoff,
            Pages,
            Segment,
            Segments, //
        },
        BLOCK_SIZE, //
    },
    *,
};

/// A page of kernel memory.
pub(super) struct OnePage(NonNull<bindings::page>);

impl OnePage {
    pub(super) fn new() -> Result<Self> {
        // SAFETY: The arguments are valid.
        let page = unsafe { bindings::alloc_pages(GFP_KERNEL.as_raw(), 0) };

        Ok(Self(NonNull::new(page).ok_or(ENOMEM)?))
    }

    pub(super) fn phys(&self) -> PhysAddr {
        // SAFETY: The page is valid.
        unsafe { bindings::page_to_phys(self.0.as_ptr()) }
    }

    /// It as the only segment of a block, read-only, so that it is not marked dirty.
    pub(super) fn staged(&self) -> Result<Segments> {
        let mut staged = Segments::new();

        staged.push(Segment::new(0, self.phys(), PAGE_SIZE, false))?;
        Ok(staged)
    }
}

impl Drop for OnePage {
    fn drop(&mut self) {
        // SAFETY: It was allocated so, and nobody uses it any more.
        unsafe { bindings::__free_pages(self.0.as_ptr(), 0) };
    }
}

/// Pages of a span that is not mirrored otherwise.
///
/// Only the test's thread uses them, so that it may have any view at any time, one after the other.
struct Alone {
    pages: Pages,
    page: OnePage,
    // Owns the device of the pages.
    _t: Fixture,
}

impl Alone {
    fn new(blocks: usize) -> Result<KBox<Self>> {
        let t = Fixture::new()?;
        let span = SZ_1G..SZ_1G + blocks * BLOCK_SIZE;

        Ok(KBox::new(
            Self {
                pages: Pages::new(span, t.svm.dev.clone())?,
                page: OnePage::new()?,
                _t: t,
            },
            GFP_KERNEL,
        )?)
    }

    fn block(&self, i: usize) -> core::ops::Range<usize> {
        let start = self.pages.span().start + i * BLOCK_SIZE;

        start..start + PAGE_SIZE
    }

    fn is_covered(&self, i: usize) -> bool {
        let block = self.block(i);
        // SAFETY: There is no other view.
        unsafe { self.pages.shared() }.covered(&block, Access::Read) == block.end
    }

    /// Fills block `i` and publishes it if asked to; whether the driver could see it in between, and
    /// nobody else.
    fn fill(&self, i: usize, publish: bool) -> Result<bool> {
        let block = self.block(i);
        let mut staged = self.page.staged()?;
        // SAFETY: There is no other view, and the device is bound until the test ends.
        let mut filling = unsafe { self.pages.filling() };
        let filled = filling.fill(block.start, &mut staged)?;
        let seen = filling.valid(block).iter().count() == 1 && !self.is_covered(i);

        if publish {
            filled.publish();
        }
        Ok(seen)
    }

    /// Stops and unmaps, `limit` blocks at most; where to go on.
    fn unmap(&self, limit: u64) -> (u64, Option<usize>) {
        let span = self.pages.span();
        // SAFETY: There is no other view.
        let mut exclusive = unsafe { self.pages.exclusive() };

        exclusive.stop(&span);
        let done = exclusive.unmap(&span, limit);
        (done.blocks, done.next)
    }
}

#[kernel::macros::kunit_tests(drm_gpusvm_pages)]
mod pages_tests {
    use super::*;

    #[test]
    fn reservation_is_tried_again_now_and_then() {
        let mut backoff = Backoff::FIRST;
        let mut tried = 0;

        for occasion in 1..=63 {
            if backoff.is_due() {
                tried += 1;
                // After the first, third, seventh ... one.
                assert_eq!(occasion, (1 << tried) - 1);
                backoff = backoff.failed_again();
            }
        }
        assert_eq!(tried, 6);
    }

    #[test]
    fn block_is_published_after_the_driver_wrote_it() -> Result {
        let t = Alone::new(1)?;

        assert!(!t.is_covered(0));
        assert!(t.fill(0, true)?);
        assert!(t.is_covered(0));
        // There is a block already.
        assert_eq!(t.fill(0, true), Err(EBUSY));
        assert_eq!(t.unmap(64), (1, None));
        assert!(!t.is_covered(0));
        Ok(())
    }

    #[test]
    fn block_of_a_driver_that_failed_is_stopped_and_unmapped() -> Result {
        // Covers B-6: what was mapped before an error is unmapped.
        let t = Alone::new(1)?;
        let span = t.pages.span();

        assert!(t.fill(0, false)?);
        assert!(!t.is_covered(0));
        assert!(t.pages.is_busy(&span));
        // SAFETY: There is no other view.
        let (hit, stopping) = unsafe { t.pages.exclusive() }.stop(&span);
        assert_eq!(hit, Some(span.clone()));
        assert!(stopping);
        assert_eq!(t.unmap(64), (1, None));
        assert!(!t.pages.is_busy(&span));
        Ok(())
    }

    #[test]
    fn unmapping_stops_at_the_limit() -> Result {
        let t = Alone::new(7)?;

        for i in [0, 1, 3, 4, 6] {
            assert!(t.fill(i, true)?);
        }
        assert_eq!(t.unmap(2), (2, Some(t.block(3).start)));
        assert!(t.pages.is_busy(&t.block(3)));
        assert_eq!(t.unmap(2), (2, Some(t.block(6).start)));
        assert_eq!(t.unmap(2), (1, None));
        assert!(!t.pages.is_busy(&t.pages.span()));
        Ok(())
    }

    #[test]
    fn stopping_block_is_reported_to_everybody() -> Result {
        // PM-4: the second invalidation must wait for the flush of the first.
        let t = Alone::new(2)?;
        let span = t.pages.span();

        assert!(t.fill(1, true)?);
        // SAFETY: There is no other view.
        let mut exclusive = unsafe { t.pages.exclusive() };
        assert_eq!(
            exclusive.stop(&span),
            (Some(t.block(1).start..span.end), true)
        );
        assert_eq!(exclusive.stop(&span), (None, true));
        assert!(!t.is_covered(1));
        // A fault in between has to wait as well.
        assert_eq!(t.fill(1, true), Err(EBUSY));
        assert_eq!(t.unmap(64), (1, None));
        Ok(())
    }
}
