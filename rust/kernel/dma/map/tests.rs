// SPDX-License-Identifier: GPL-2.0

//! KUnit suite of streaming mappings.

use super::*;
use crate::dma::test::{
    Pages,
    TestDevice, //
};
use crate::page::PAGE_SIZE;

const COHERENT: Attrs = DMA_ATTR_REQUIRE_COHERENT;
const BOTH: DataDirection = DataDirection::Bidirectional;

#[kunit_tests(rust_dma_map)]
mod suite {
    use super::*;

    #[test]
    fn maps_and_unmaps() -> Result {
        let dev = TestDevice::with_mask()?;
        let pages = Pages::new(1)?;
        let phys = pages.phys();

        check_mirror(dev.bound())?;
        // SAFETY: The pages are ours until they are unmapped below.
        let whole = unsafe { map_phys(dev.bound(), phys, 2 * PAGE_SIZE, BOTH, COHERENT) }?;
        assert!(whole.checked_add(2 * PAGE_SIZE as DmaAddress - 1) <= Some(u32::MAX.into()));

        // Memory may be mapped more than once, as memory that processes share is.
        let second = phys + PAGE_SIZE as PhysAddr;
        // SAFETY: As above.
        let part = unsafe { map_phys(dev.bound(), second, PAGE_SIZE, BOTH, COHERENT) }?;
        // Without an IOMMU, a DMA address depends on nothing but the physical one.
        assert_eq!(part, whole + PAGE_SIZE as DmaAddress);

        // SAFETY: The two ranges are mapped with these arguments, and used by nobody.
        unsafe {
            unmap_phys(dev.bound(), part, PAGE_SIZE, BOTH, COHERENT);
            unmap_phys(dev.bound(), whole, 2 * PAGE_SIZE, BOTH, COHERENT);
        }
        Ok(())
    }

    #[test]
    fn mapping_owns_a_range() -> Result {
        let dev = TestDevice::with_mask()?;
        let pages = Pages::new(0)?;
        let dir = DataDirection::ToDevice;
        // SAFETY: The page is ours, and outlives the mapping.
        let first = unsafe { Mapping::new(dev.bound(), pages.phys(), PAGE_SIZE, dir, COHERENT) }?;
        let addr = first.addr();

        assert_eq!(first.len(), PAGE_SIZE);
        assert_eq!(first.direction(), dir);
        drop(first);

        // With `CONFIG_DMA_API_DEBUG` a range that is still mapped at device removal is reported, and
        // so is one that is unmapped twice.
        //
        // SAFETY: As above.
        let again = unsafe { Mapping::new(dev.bound(), pages.phys(), PAGE_SIZE, dir, COHERENT) }?;
        assert_eq!(again.addr(), addr);
        Ok(())
    }

    #[test]
    fn refuses_bad_ranges() -> Result {
        let dev = TestDevice::with_mask()?;
        let pages = Pages::new(0)?;
        let phys = pages.phys();
        let last = PhysAddr::MAX;

        // SAFETY: Nothing is mapped, since all of these fail.
        let map = |phys, len, dir| unsafe { map_phys(dev.bound(), phys, len, dir, COHERENT) };
        assert_eq!(map(phys, 0, BOTH), Err(EINVAL));
        assert_eq!(map(phys, PAGE_SIZE, DataDirection::None), Err(EINVAL));
        assert_eq!(map(last, 2, BOTH), Err(EINVAL));
        assert_eq!(map(phys, usize::MAX, BOTH), Err(EINVAL));

        // The last byte is a byte like others.
        assert_eq!(check_args(last, 1, BOTH), Ok(()));
        assert_eq!(check_args(0, 1, BOTH), Ok(()));
        Ok(())
    }

    #[test]
    fn refuses_device_without_mask() -> Result {
        let dev = TestDevice::with_mask()?;
        let pages = Pages::new(0)?;
        // SAFETY: The device is valid, and nobody else uses it.
        let mask = unsafe { &mut (*dev.as_ptr()).dma_mask };
        let before = core::mem::replace(mask, core::ptr::null_mut());

        let mirror = check_mirror(dev.bound());
        // SAFETY: Nothing is mapped, since it fails.
        let mapped = unsafe { map_phys(dev.bound(), pages.phys(), PAGE_SIZE, BOTH, COHERENT) };
        let unmap = need_unmap(dev.bound());

        *mask = before;
        assert_eq!(mirror, Err(EOPNOTSUPP));
        assert_eq!(mapped, Err(EOPNOTSUPP));
        assert!(!unmap);
        Ok(())
    }

    /// A device is taken to need syncs until it is known not to. This is all that is different for a
    /// non-coherent device on an architecture where all devices are coherent otherwise.
    #[test]
    #[cfg(CONFIG_DMA_NEED_SYNC)]
    fn refuses_device_that_needs_syncs() -> Result {
        let dev = TestDevice::new()?;

        assert_eq!(check_mirror(dev.bound()), Err(EOPNOTSUPP));
        dev.set_mask()?;
        assert_eq!(check_mirror(dev.bound()), Ok(()));

        // As when a mapping has bounced.
        dev.set_flag(bindings::struct_device_flags_DEV_FLAG_DMA_SKIP_SYNC, false);
        assert_eq!(check_mirror(dev.bound()), Err(EOPNOTSUPP));
        // Now unmapping is more than forgetting.
        assert!(need_unmap(dev.bound()));
        Ok(())
    }

    #[test]
    #[cfg(CONFIG_ARCH_HAS_SYNC_DMA_FOR_DEVICE)]
    fn refuses_device_that_is_not_coherent() -> Result {
        let dev = TestDevice::new()?;
        let pages = Pages::new(0)?;

        dev.set_flag(bindings::struct_device_flags_DEV_FLAG_DMA_COHERENT, false);
        dev.set_mask()?;
        assert_eq!(check_mirror(dev.bound()), Err(EOPNOTSUPP));
        // SAFETY: Nothing is mapped, since it fails.
        let mapped = unsafe { map_phys(dev.bound(), pages.phys(), PAGE_SIZE, BOTH, COHERENT) };
        assert_eq!(mapped, Err(EOPNOTSUPP));
        Ok(())
    }

    #[test]
    fn refuses_device_that_cannot_address_all_memory() -> Result {
        let dev = TestDevice::with_mask()?;

        // SAFETY: The device is valid, and nobody else uses it.
        unsafe { (*dev.as_ptr()).bus_dma_limit = 0xff_ffff };
        assert_eq!(check_mirror(dev.bound()), Err(EOPNOTSUPP));
        // SAFETY: As above.
        unsafe { (*dev.as_ptr()).bus_dma_limit = 0 };
        assert_eq!(check_mirror(dev.bound()), Ok(()));
        Ok(())
    }

    /// As with `swiotlb=force`.
    #[test]
    #[cfg(CONFIG_SWIOTLB)]
    fn refuses_device_that_must_bounce() -> Result {
        let dev = TestDevice::with_mask()?;
        let pages = Pages::new(0)?;
        let mut bounce = KBox::<bindings::io_tlb_mem>::init(pin_init::init_zeroed(), GFP_KERNEL)?;
        bounce.force_bounce = true;

        // SAFETY: The device is valid, and nobody else uses it.
        let pool = unsafe { &mut (*dev.as_ptr()).dma_io_tlb_mem };
        let before = core::mem::replace(pool, &mut *bounce);

        let mirror = check_mirror(dev.bound());
        // SAFETY: Nothing is mapped, since it fails.
        let mapped = unsafe { map_phys(dev.bound(), pages.phys(), PAGE_SIZE, BOTH, COHERENT) };

        *pool = before;
        assert_eq!(mirror, Err(EOPNOTSUPP));
        assert_eq!(mapped, Err(EOPNOTSUPP));
        Ok(())
    }

    /// Without an IOMMU and without debugging, nothing remembers a mapping.
    #[test]
    #[cfg(CONFIG_DMA_NEED_SYNC)]
    fn tells_whether_to_unmap() -> Result {
        let dev = TestDevice::with_mask()?;

        assert_eq!(need_unmap(dev.bound()), cfg!(CONFIG_DMA_API_DEBUG));
        Ok(())
    }
}
