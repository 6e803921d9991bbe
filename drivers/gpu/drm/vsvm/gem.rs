// SPDX-License-Identifier: GPL-2.0

//! The buffer object type that every DRM driver has to name.
//!
//! vsvm has no buffer objects, it works on the memory of the process. No ioctl makes one.

use kernel::{
    drm::gem,
    prelude::*, //
};

use crate::{
    device::{
        VsvmDevice,
        VsvmDrm, //
    }, //
};

/// A buffer object without content.
#[pin_data]
pub(crate) struct NoObject {}

impl gem::DriverObject for NoObject {
    type Driver = VsvmDrm;
    type Args = ();

    fn new(_dev: &VsvmDevice, _size: usize, _args: Self::Args) -> impl PinInit<Self, Error> {
        try_pin_init!(NoObject {})
    }
}
