// SPDX-License-Identifier: GPL-2.0

//! KUnit suite of IOVA reservations.
//!
//! It needs a device behind an IOMMU, and takes QEMU's `edu` (PCI 1234:11e8). The device does not
//! transfer anything: what it would reach is read from the page tables of the IOMMU.

use super::*;
use crate::{
    device::Device,
    dma::test::{
        Edu,
        Pages,
        TestDevice, //
    },
    sizes::SZ_2M, //
};

const ATTRS: Attrs = DMA_ATTR_REQUIRE_COHERENT;
const BOTH: DataDirection = DataDirection::Bidirectional;

/// What the page at index `n` of a reservation leads to.
fn at(edu: &Edu, span: &Reservation<&Device<Bound>>, n: usize) -> PhysAddr {
    edu.reaches(span.addr() + (n * PAGE_SIZE) as DmaAddress)
}

/// Links `count` pages from `pages` at index `n` of a reservation.
fn link_at(
    span: &Reservation<&Device<Bound>>,
    n: usize,
    pages: &Pages,
    count: usize,
    dir: DataDirection,
) -> Result {
    // SAFETY: The tests link pages of their own to free places, and unlink them before the pages and
    // the reservation are dropped. If the test fails, all of that leaks.
    unsafe { span.link(n * PAGE_SIZE, pages.phys(), count * PAGE_SIZE, dir, ATTRS) }
}

/// Unlinks `count` pages at index `n` of a reservation.
fn unlink_at(span: &Reservation<&Device<Bound>>, n: usize, count: usize, dir: DataDirection) {
    // SAFETY: The tests unlink whole runs that they have linked, and the device does nothing.
    unsafe { span.unlink(n * PAGE_SIZE, count * PAGE_SIZE, dir, ATTRS) };
}

#[kunit_tests(rust_dma_iova)]
mod suite {
    use super::*;

    #[test]
    fn reserves() -> Result {
        let Some(edu) = Edu::find() else {
            return Ok(());
        };
        let size = 64 * PAGE_SIZE;
        let a = Reservation::try_alloc(edu.bound(), size).ok_or(ENOSPC)?;
        let b = Reservation::try_alloc(edu.bound(), size).ok_or(ENOSPC)?;

        assert_eq!(a.size(), size);
        assert_eq!(a.addr() % size as DmaAddress, 0);
        assert!(a.addr().abs_diff(b.addr()) >= size as DmaAddress);
        assert_eq!(edu.reaches(a.addr()), 0);

        // The largest power of two in the size, not the next one.
        let c = Reservation::try_alloc(edu.bound(), SZ_2M + PAGE_SIZE).ok_or(ENOSPC)?;
        assert_eq!(c.addr() % SZ_2M as DmaAddress, 0);
        Ok(())
    }

    #[test]
    fn refuses_bad_sizes() -> Result {
        let Some(edu) = Edu::find() else {
            return Ok(());
        };
        let alloc = |size| Reservation::try_alloc(edu.bound(), size).is_some();

        assert!(!alloc(0));
        assert!(!alloc(PAGE_SIZE / 2));
        assert!(!alloc(PAGE_SIZE + 1));
        assert!(!alloc(isize::MAX as usize + 1));
        assert!(alloc(PAGE_SIZE));
        Ok(())
    }

    /// Without an IOMMU there is nothing to reserve, which is not an error.
    #[test]
    fn refuses_untranslated_device() -> Result {
        let dev = TestDevice::with_mask()?;

        assert!(Reservation::try_alloc(dev.bound(), PAGE_SIZE).is_none());
        Ok(())
    }

    /// Runs at offsets of their own, with a hole between them, and each unlinked by itself.
    #[test]
    fn links_runs() -> Result {
        let Some(edu) = Edu::find() else {
            return Ok(());
        };
        let (a, b, c) = (Pages::new(0)?, Pages::new(1)?, Pages::new(0)?);
        let span = Reservation::try_alloc(edu.bound(), 8 * PAGE_SIZE).ok_or(ENOSPC)?;

        // Pages: a c . . b b . .
        link_at(&span, 4, &b, 2, BOTH)?;
        link_at(&span, 0, &a, 1, BOTH)?;
        link_at(&span, 1, &c, 1, BOTH)?;
        // One sync for all, over the hole.
        span.sync(0, 6 * PAGE_SIZE)?;

        let all: [PhysAddr; 8] = core::array::from_fn(|n| at(&edu, &span, n));
        // In the middle of the run, in the order of linking, and adjacent ones together.
        unlink_at(&span, 4, 2, BOTH);
        let without_b: [PhysAddr; 8] = core::array::from_fn(|n| at(&edu, &span, n));
        unlink_at(&span, 0, 2, BOTH);
        let none: [PhysAddr; 8] = core::array::from_fn(|n| at(&edu, &span, n));

        let b2 = b.phys() + PAGE_SIZE as PhysAddr;
        assert_eq!(all, [a.phys(), c.phys(), 0, 0, b.phys(), b2, 0, 0]);
        assert_eq!(without_b, [a.phys(), c.phys(), 0, 0, 0, 0, 0, 0]);
        assert_eq!(none, [0; 8]);
        Ok(())
    }

    /// The addresses survive an unlink, and get other memory.
    #[test]
    fn links_again() -> Result {
        let Some(edu) = Edu::find() else {
            return Ok(());
        };
        let (a, b) = (Pages::new(0)?, Pages::new(0)?);
        let span = Reservation::try_alloc(edu.bound(), 2 * PAGE_SIZE).ok_or(ENOSPC)?;
        let mut seen = [0; 4];

        for (n, pages) in [&a, &b, &a, &b].into_iter().enumerate() {
            // The direction is that of the run, not of the reservation.
            let dir = if n % 2 == 0 {
                DataDirection::ToDevice
            } else {
                BOTH
            };

            link_at(&span, 1, pages, 1, dir)?;
            span.sync(PAGE_SIZE, PAGE_SIZE)?;
            seen[n] = at(&edu, &span, 1);
            unlink_at(&span, 1, 1, dir);
        }
        assert_eq!(seen, [a.phys(), b.phys(), a.phys(), b.phys()]);
        assert_eq!(at(&edu, &span, 1), 0);
        Ok(())
    }

    /// A run that the IOMMU maps with a large page, between small ones.
    #[test]
    fn links_large_run() -> Result {
        let Some(edu) = Edu::find() else {
            return Ok(());
        };
        let per_block = SZ_2M / PAGE_SIZE;
        let (small, large) = (Pages::new(0)?, Pages::new(per_block.ilog2())?);
        let span = Reservation::try_alloc(edu.bound(), 2 * SZ_2M).ok_or(ENOSPC)?;

        link_at(&span, per_block - 1, &small, 1, BOTH)?;
        link_at(&span, per_block, &large, per_block, BOTH)?;
        span.sync(0, 2 * SZ_2M)?;

        let odd = at(&edu, &span, per_block + 5);
        let last = at(&edu, &span, 2 * per_block - 1);
        let before = at(&edu, &span, per_block - 1);
        unlink_at(&span, per_block, per_block, BOTH);
        let gone = at(&edu, &span, per_block + 5);
        let stays = at(&edu, &span, per_block - 1);
        unlink_at(&span, per_block - 1, 1, BOTH);

        assert_eq!(odd, large.phys() + (5 * PAGE_SIZE) as PhysAddr);
        assert_eq!(last, large.phys() + (SZ_2M - PAGE_SIZE) as PhysAddr);
        assert_eq!(before, small.phys());
        assert_eq!(gone, 0);
        assert_eq!(stays, small.phys());
        Ok(())
    }

    #[test]
    fn refuses_bad_links() -> Result {
        let Some(edu) = Edu::find() else {
            return Ok(());
        };
        let pages = Pages::new(1)?;
        let phys = pages.phys();
        let span = Reservation::try_alloc(edu.bound(), 4 * PAGE_SIZE).ok_or(ENOSPC)?;
        // SAFETY: Nothing is linked, since all of these fail.
        let link = |offset, phys, len, dir| unsafe { span.link(offset, phys, len, dir, ATTRS) };
        let half = PAGE_SIZE / 2;

        // Beyond the end, altogether or in part, or around the end of the numbers.
        assert_eq!(link(4 * PAGE_SIZE, phys, PAGE_SIZE, BOTH), Err(EINVAL));
        assert_eq!(link(3 * PAGE_SIZE, phys, 2 * PAGE_SIZE, BOTH), Err(EINVAL));
        assert_eq!(
            link(usize::MAX - PAGE_SIZE + 1, phys, PAGE_SIZE, BOTH),
            Err(EINVAL)
        );
        assert_eq!(link(0, phys, usize::MAX - PAGE_SIZE + 1, BOTH), Err(EINVAL));
        // Not aligned.
        assert_eq!(link(half, phys, PAGE_SIZE, BOTH), Err(EINVAL));
        assert_eq!(
            link(0, phys + half as PhysAddr, PAGE_SIZE, BOTH),
            Err(EINVAL)
        );
        assert_eq!(link(0, phys, half, BOTH), Err(EINVAL));
        // Empty, or without a direction.
        assert_eq!(link(0, phys, 0, BOTH), Err(EINVAL));
        assert_eq!(link(0, phys, PAGE_SIZE, DataDirection::None), Err(EINVAL));

        assert_eq!(span.sync(0, 0), Err(EINVAL));
        assert_eq!(span.sync(half, PAGE_SIZE), Err(EINVAL));
        assert_eq!(span.sync(3 * PAGE_SIZE, 2 * PAGE_SIZE), Err(EINVAL));

        let all: [PhysAddr; 4] = core::array::from_fn(|n| at(&edu, &span, n));
        assert_eq!(all, [0; 4]);
        Ok(())
    }
}
