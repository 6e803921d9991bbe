// SPDX-License-Identifier: GPL-2.0

//! What the KUnit suites of this directory share.

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
    prelude::*, //
};
use core::ptr::NonNull;

/// Pages that are physically contiguous, freed when dropped.
pub(super) struct Pages {
    first: NonNull<bindings::page>,
    order: u32,
}

impl Pages {
    /// Allocates `1 << order` zeroed pages.
    pub(super) fn new(order: u32) -> Result<Self> {
        let flags = GFP_KERNEL | __GFP_ZERO;
        // SAFETY: The arguments are valid. Ordinary pages are made, not a compound one.
        let first = unsafe { bindings::alloc_pages(flags.as_raw(), order) };

        Ok(Self {
            first: NonNull::new(first).ok_or(ENOMEM)?,
            order,
        })
    }

    /// The address of the first byte.
    pub(super) fn phys(&self) -> PhysAddr {
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
pub(super) struct TestDevice(NonNull<bindings::device>);

impl TestDevice {
    pub(super) fn new() -> Result<Self> {
        // SAFETY: There are no requirements.
        let test = unsafe { bindings::kunit_get_current_test() };
        // SAFETY: These are only called in a test, so `test` is valid.
        let dev = unsafe { bindings::kunit_device_register(test, c"dma".as_char_ptr()) };
        let this = Self(NonNull::new(from_err_ptr(dev)?).ok_or(ENODEV)?);

        this.set_flag(bindings::struct_device_flags_DEV_FLAG_DMA_COHERENT, true);
        Ok(this)
    }

    /// As [`TestDevice::new`], with a mask that a driver has set.
    pub(super) fn with_mask() -> Result<Self> {
        let this = Self::new()?;

        this.set_mask()?;
        Ok(this)
    }

    /// Sets a mask as the driver of the device would.
    pub(super) fn set_mask(&self) -> Result {
        // SAFETY: The device is valid, and nobody else uses it.
        to_result(unsafe { bindings::dma_set_mask(self.0.as_ptr(), u64::from(u32::MAX)) })
    }

    /// The device as its driver sees it.
    pub(super) fn bound(&self) -> &Device<Bound> {
        // SAFETY: The device is valid and bound to a driver that KUnit has made for it, both until the
        // end of the test.
        unsafe { Device::from_raw(self.0.as_ptr()) }
    }

    /// The device as C sees it.
    pub(super) fn as_ptr(&self) -> *mut bindings::device {
        self.0.as_ptr()
    }

    /// Changes one of `enum struct_device_flags`.
    pub(super) fn set_flag(&self, flag: bindings::struct_device_flags, value: bool) {
        // SAFETY: The device is valid, and nobody else changes its flags now.
        let flags = unsafe { &mut (*self.0.as_ptr()).flags[0] };

        if value {
            *flags |= 1 << flag;
        } else {
            *flags &= !(1 << flag);
        }
    }
}
