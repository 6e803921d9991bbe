// SPDX-License-Identifier: GPL-2.0

//! What the KUnit suites of DMA and of its users share.

use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    error::{
        from_err_ptr,
        to_result, //
    },
    io::PhysAddr,
    kunit::mm::skip,
    page::PAGE_SIZE,
    prelude::*, //
};
use core::ptr::NonNull;

use super::{
    iova::Reservation,
    DmaAddress, //
};

/// Pages that are physically contiguous, freed when dropped.
pub(crate) struct Pages {
    first: NonNull<bindings::page>,
    order: u32,
}

impl Pages {
    /// Allocates `1 << order` zeroed pages.
    pub(crate) fn new(order: u32) -> Result<Self> {
        let flags = GFP_KERNEL | __GFP_ZERO;
        // SAFETY: The arguments are valid. Ordinary pages are made, not a compound one.
        let first = unsafe { bindings::alloc_pages(flags.as_raw(), order) };

        Ok(Self {
            first: NonNull::new(first).ok_or(ENOMEM)?,
            order,
        })
    }

    /// The address of the first byte.
    pub(crate) fn phys(&self) -> PhysAddr {
        // SAFETY: `first` is a valid page.
        unsafe { bindings::page_to_phys(self.first.as_ptr()) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: The pages were allocated with this order, and nobody uses them any more.
        unsafe { bindings::__free_pages(self.first.as_ptr(), self.order) };
    }
}

/// A device of the current test, which KUnit removes at the end of the test.
///
/// It is not behind an IOMMU, and the DMA core does not know yet whether it needs syncs.
pub(crate) struct TestDevice(NonNull<bindings::device>);

impl TestDevice {
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: There are no requirements.
        let test = unsafe { bindings::kunit_get_current_test() };
        // SAFETY: These are only called in a test, so `test` is valid.
        let dev = unsafe { bindings::kunit_device_register(test, c"dma".as_char_ptr()) };
        let this = Self(NonNull::new(from_err_ptr(dev)?).ok_or(ENODEV)?);

        this.set_flag(bindings::struct_device_flags_DEV_FLAG_DMA_COHERENT, true);
        Ok(this)
    }

    /// As [`TestDevice::new`], with a mask that a driver has set.
    pub(crate) fn with_mask() -> Result<Self> {
        let this = Self::new()?;

        this.set_mask()?;
        Ok(this)
    }

    /// Sets a mask as the driver of the device would.
    pub(crate) fn set_mask(&self) -> Result {
        // SAFETY: The device is valid, and nobody else uses it.
        to_result(unsafe { bindings::dma_set_mask(self.0.as_ptr(), u64::from(u32::MAX)) })
    }

    /// The device as its driver sees it.
    pub(crate) fn bound(&self) -> &Device<Bound> {
        // SAFETY: The device is valid and bound to a driver that KUnit has made for it, both until the
        // end of the test.
        unsafe { Device::from_raw(self.0.as_ptr()) }
    }

    /// The device as C sees it.
    pub(crate) fn as_ptr(&self) -> *mut bindings::device {
        self.0.as_ptr()
    }

    /// Changes one of `enum struct_device_flags`.
    pub(crate) fn set_flag(&self, flag: bindings::struct_device_flags, value: bool) {
        // SAFETY: The device is valid, and nobody else changes its flags now.
        let flags = unsafe { &mut (*self.0.as_ptr()).flags[0] };

        if value {
            *flags |= 1 << flag;
        } else {
            *flags &= !(1 << flag);
        }
    }
}

/// A reference to QEMU's `edu` device (PCI 1234:11e8), behind an IOMMU.
///
/// It does not transfer anything: what it would reach is read from the page tables of the IOMMU.
pub(crate) struct Edu(NonNull<bindings::pci_dev>);

impl Edu {
    /// The first one that is translated. Marks the test as skipped if there is none.
    pub(crate) fn find() -> Option<Self> {
        let mut from = core::ptr::null_mut();

        loop {
            // SAFETY: `from` is null or a reference that we own, which is put by this call.
            from = unsafe { bindings::pci_get_device(0x1234, 0x11e8, from) };
            let Some(found) = NonNull::new(from) else {
                skip(c"no edu device behind an IOMMU");
                return None;
            };
            let this = core::mem::ManuallyDrop::new(Self(found));

            if Reservation::try_alloc(this.bound(), PAGE_SIZE).is_some() {
                return Some(core::mem::ManuallyDrop::into_inner(this));
            }
        }
    }

    fn as_dev(&self) -> *mut bindings::device {
        // SAFETY: We own a reference to the device.
        unsafe { &raw mut (*self.0.as_ptr()).dev }
    }

    pub(crate) fn bound(&self) -> &Device<Bound> {
        // SAFETY: We own a reference to the device. If it has no driver, then none is unbound from it
        // either, and the DMA API needs only a mask, which the PCI core has set.
        unsafe { Device::from_raw(self.as_dev()) }
    }

    /// The memory that the device reaches at `addr`, 0 if none.
    pub(crate) fn reaches(&self, addr: DmaAddress) -> PhysAddr {
        // SAFETY: The device is valid, and translated, so it has a domain.
        unsafe {
            let domain = bindings::iommu_get_domain_for_dev(self.as_dev());
            bindings::iommu_iova_to_phys(domain, addr)
        }
    }
}

impl Drop for Edu {
    fn drop(&mut self) {
        // SAFETY: We own a reference to the device.
        unsafe { bindings::pci_dev_put(self.0.as_ptr()) };
    }
}
