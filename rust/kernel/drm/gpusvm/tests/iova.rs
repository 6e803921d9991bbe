// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Tests of pages that are mapped by an IOMMU.

use kernel::{
    dma::{
        test::Edu,
        DmaAddress, //
    }, //
};

use super::{
    super::{
        device::MirrorDevice,
        pages::{
            Pages,
            Segment, //
        },
        BLOCK_SIZE, //
    },
    pages::OnePage,
    *,
};

/// Pages that only the test's thread uses, so that it may have any view at any time, one after the
/// other.
struct Translated {
    pages: Pages,
    page: OnePage,
    edu: Edu,
}

impl Translated {
    /// Nothing is mapped yet. `None` if there is no IOMMU, and the test is marked as skipped.
    fn new(span: core::ops::Range<usize>) -> Result<Option<KBox<Self>>> {
        let Some(edu) = Edu::find() else {
            return Ok(None);
        };

        Ok(Some(KBox::new(
            Self {
                pages: Pages::new(span, MirrorDevice::new(edu.bound()))?,
                page: OnePage::new()?,
                edu,
            },
            GFP_KERNEL,
        )?))
    }

    /// Maps the page as the first of the block of `addr`; where the device finds it.
    fn fill(&self, addr: usize) -> Result<DmaAddress> {
        let mut staged = self.page.staged()?;
        // SAFETY: There is no other view, and nobody binds or unbinds the device during the tests.
        let filled = unsafe { self.pages.filling() }.fill(addr, &mut staged)?;

        filled.publish();
        // SAFETY: There is no other view.
        unsafe { self.pages.shared() }
            .mapped(&(addr..addr + PAGE_SIZE))
            .next()
            .map(|(_, segment)| segment.dma())
            .ok_or(EINVAL)
    }

    fn unmap(&self) {
        let span = self.pages.span();
        // SAFETY: There is no other view.
        let mut exclusive = unsafe { self.pages.exclusive() };

        exclusive.stop(&span);
        exclusive.unmap(&span, u64::MAX);
    }

    fn has_iova(&self) -> bool {
        // SAFETY: There is no other view.
        unsafe { self.pages.exclusive() }.has_iova()
    }
}

#[kernel::macros::kunit_tests(drm_gpusvm_iova)]
mod iova_tests {
    use super::*;

    #[test]
    fn addresses_are_kept_until_they_are_given_back() -> Result {
        // Covers B-5: what was reserved is given back, and not only what was linked.
        let Some(t) = Translated::new(SZ_1G..SZ_1G + 2 * BLOCK_SIZE)? else {
            return Ok(());
        };
        let second = SZ_1G + BLOCK_SIZE;

        let first = t.fill(SZ_1G)?;
        assert_eq!(t.edu.reaches(first), t.page.phys());
        // As the two lie in the CPU's address space, and with the alignment that large leaves need.
        assert_eq!(t.fill(second)?, first + BLOCK_SIZE as DmaAddress);
        assert_eq!(first % BLOCK_SIZE as DmaAddress, 0);
        t.unmap();
        assert_eq!(t.edu.reaches(first), 0);
        assert!(t.has_iova());
        assert_eq!(t.fill(second)?, first + BLOCK_SIZE as DmaAddress);
        t.unmap();
        // SAFETY: There is no other view.
        unsafe { t.pages.exclusive() }.free_iova();
        assert!(!t.has_iova());
        Ok(())
    }

    #[test]
    fn failed_block_leaves_nothing_linked() -> Result {
        // Covers B-6: the second of three segments cannot be linked.
        let Some(t) = Translated::new(SZ_1G..SZ_1G + BLOCK_SIZE)? else {
            return Ok(());
        };
        let first = t.fill(SZ_1G)?;

        t.unmap();
        let mut staged = t.page.staged()?;
        staged.push(Segment::new(PAGE_SIZE, t.page.phys() + 1, PAGE_SIZE, false))?;
        staged.push(Segment::new(2 * PAGE_SIZE, t.page.phys(), PAGE_SIZE, false))?;
        // SAFETY: There is no other view.
        let failed = unsafe { t.pages.filling() }.fill(SZ_1G, &mut staged).err();
        assert_eq!(failed, Some(EINVAL));
        assert_eq!(t.edu.reaches(first), 0);
        assert_eq!(t.edu.reaches(first + 2 * PAGE_SIZE as DmaAddress), 0);
        assert!(!t.pages.is_busy(&t.pages.span()));
        // Its place is free: linking there again would fail otherwise.
        assert_eq!(t.fill(SZ_1G)?, first);
        t.unmap();
        Ok(())
    }
}
