// SPDX-License-Identifier: GPL-2.0

//! vsvm: the reference driver of the GPU shared virtual memory library.
//!
//! A DRM render-node driver for a GPU that is software: it stands behind QEMU's `edu` PCI device,
//! reads and writes the memory of the process that uses it, and reaches that memory only by the
//! DMA addresses that the library gave it. A driver developer may read the files in this order:
//!
//! - `vsvm.rs`: the module and the PCI driver (this file);
//! - `device.rs`, `file.rs`: the DRM device and its files. One open file is one GPU address space;
//! - `page_table.rs`: the GPU's page table, 4 levels, with leaves of 4 KiB and of 2 MiB;
//! - `ffi.rs`: everything that is `unsafe`, and nothing else.

#![deny(unsafe_code)]

mod device;
#[allow(unsafe_code)]
mod ffi;
mod file;
mod gem;

use kernel::{
    device::Core,
    drm,
    pci,
    prelude::*, //
};

use crate::{
    device::{
        Shared,
        VsvmDrm, //
    },
    ffi::BoundDevice, //
};

/// Vendor of QEMU's devices that have no vendor.
const VENDOR_QEMU: u32 = 0x1234;

/// QEMU's `edu` device.
const DEVICE_EDU: u32 = 0x11e8;

struct VsvmPci;

/// What one bound PCI device owns.
struct Bound<'bound> {
    _drm: drm::Registration<'bound, VsvmDrm>,
}

kernel::pci_device_table!(
    PCI_TABLE,
    <VsvmPci as pci::Driver>::IdInfo,
    [(ffi::pci_device_id(VENDOR_QEMU, DEVICE_EDU), ())]
);

impl pci::Driver for VsvmPci {
    type IdInfo = ();
    type Data<'bound> = Bound<'bound>;
    const ID_TABLE: pci::IdTable<Self::IdInfo> = &PCI_TABLE;

    fn probe<'bound>(
        pdev: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        pdev.enable_device_mem()?;
        pdev.set_master();
        ffi::set_dma_mask_64(pdev)?;

        let bound = BoundDevice::new(pdev)?;
        let shared = Shared::new(bound)?;
        let drm = drm::UnregisteredDevice::<VsvmDrm>::new(pdev, Ok(shared))?;

        Ok(Bound {
            _drm: ffi::register(pdev, drm)?,
        })
    }
}

kernel::module_pci_driver! {
    type: VsvmPci,
    name: "vsvm",
    authors: ["The Rust GPU SVM authors"],
    description: "Software GPU with shared virtual memory",
    license: "GPL",
    params: {
        debug: bool {
            default: false,
            description: "Allow the debug ioctl that injects delays and failures",
        },
    },
}
