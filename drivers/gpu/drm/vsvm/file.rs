// SPDX-License-Identifier: GPL-2.0

//! A DRM file: one GPU address space, and the ioctls on it.

use kernel::{
    drm::{
        self,
        Registered, //
    },
    prelude::*,
    uapi, //
};

use crate::device::{
    VsvmDevice,
    VsvmDrm, //
};

/// One open file of the render node.
pub(crate) struct File;

impl drm::file::DriverFile for File {
    type Driver = VsvmDrm;

    fn open(dev: &VsvmDevice) -> Result<Pin<KBox<Self>>> {
        dev.bound().with(|_| ()).ok_or(ENODEV)?;
        Ok(KBox::new(Self, GFP_KERNEL)?.into())
    }
}

impl File {
    /// DRM_IOCTL_VSVM_SUBMIT.
    pub(crate) fn submit(
        _dev: &VsvmDevice<Registered>,
        _reg: &(),
        args: &mut uapi::drm_vsvm_submit,
        _file: &drm::File<File>,
    ) -> Result<u32> {
        if args.flags != 0 || args.pad != 0 {
            return Err(EINVAL);
        }
        Err(EOPNOTSUPP)
    }
}
