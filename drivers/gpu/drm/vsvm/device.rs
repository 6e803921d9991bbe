// SPDX-License-Identifier: GPL-2.0

//! The DRM device.

use kernel::{
    device::DeviceContext,
    drm::{
        self,
        gem,
        ioctl, //
    },
    pci,
    prelude::*,
    sync::Arc, //
};

use crate::{
    ffi::BoundDevice,
    file::File,
    gem::NoObject, //
};

/// The DRM driver.
pub(crate) struct VsvmDrm;

/// The DRM device of this driver.
pub(crate) type VsvmDevice<Ctx = drm::Normal> = drm::Device<VsvmDrm, Ctx>;

/// What all files of one device share.
pub(crate) struct Shared {
    bound: Arc<BoundDevice>,
}

impl Shared {
    /// Creates the shared state of the device `bound`.
    pub(crate) fn new(bound: Arc<BoundDevice>) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { bound }, GFP_KERNEL)?)
    }

    /// The device, which may be gone already.
    pub(crate) fn bound(&self) -> &BoundDevice {
        &self.bound
    }
}

const INFO: drm::DriverInfo = drm::DriverInfo {
    major: 1,
    minor: 0,
    patchlevel: 0,
    name: c"vsvm",
    desc: c"Software GPU with shared virtual memory",
};

#[vtable]
impl drm::Driver for VsvmDrm {
    type Data = Arc<Shared>;
    type RegistrationData<'a> = ();
    type File = File;
    type Object = gem::Object<NoObject>;
    type ParentDevice<Ctx: DeviceContext> = pci::Device<Ctx>;

    const INFO: drm::DriverInfo = INFO;
    const FEAT_RENDER: bool = true;

    kernel::declare_drm_ioctls! {
        (VSVM_SUBMIT, drm_vsvm_submit, ioctl::RENDER_ALLOW, File::submit),
    }
}
