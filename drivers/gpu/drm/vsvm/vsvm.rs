// SPDX-License-Identifier: GPL-2.0

//! vsvm: the reference driver of the GPU shared virtual memory library.
//!
//! A DRM render-node driver for a GPU that is software: it stands behind QEMU's `edu` PCI device,
//! reads and writes the memory of the process that uses it, and reaches that memory only by the
//! DMA addresses that the library gave it. A driver developer may read the files in this order:
//!
//! - `vsvm.rs`: the module and the PCI driver (this file);
//! - `device.rs`, `file.rs`: the DRM device and its files. One open file is one GPU address space;
//! - `svm.rs`: what the library calls, which is all that a driver must supply to have shared
//!   virtual memory. `vm.rs`: the state of an address space behind it;
//! - `page_table.rs`: the GPU's page table, 4 levels, with leaves of 4 KiB and of 2 MiB;
//! - `tlb.rs`: a TLB that keeps what it is not told to forget, and the flushes;
//! - `queue.rs`, `engine.rs`: command lists, and how a fault is raised and resolved;
//! - `memory.rs`, `edu.rs`: how bytes are moved at a DMA address, by the CPU or by the device;
//! - `dmirror.rs`: the same GPU behind the interface of `lib/test_hmm.c`, for its tests;
//! - `ffi.rs`: everything that is `unsafe`, and nothing else;
//! - `counters.rs`, `inject.rs`, `gem.rs`: what is left.

#![deny(unsafe_code)]

mod counters;
mod device;
mod dmirror;
mod edu;
mod engine;
#[allow(unsafe_code)]
mod ffi;
mod file;
mod gem;
mod inject;
mod memory;
mod page_table;
mod queue;
mod space;
mod svm;
mod tlb;
mod vm;

use kernel::{
    device::Core,
    drm,
    pci,
    prelude::*,
    sync::Arc, //
};

use crate::{
    device::{
        Shared,
        VsvmDrm, //
    },
    dmirror::Node, //
};

/// Vendor of QEMU's devices that have no vendor.
const VENDOR_QEMU: u32 = 0x1234;

/// QEMU's `edu` device.
const DEVICE_EDU: u32 = 0x11e8;

struct VsvmPci;

/// What one bound PCI device owns.
struct Bound<'bound> {
    shared: Arc<Shared>,
    _node: Option<Pin<KBox<Node>>>,
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

        let shared = Shared::new(pdev)?;
        let drm = drm::UnregisteredDevice::<VsvmDrm>::new(pdev, Ok(shared.clone()))?;

        Ok(Bound {
            _node: Node::new(&shared)?,
            _drm: ffi::register(pdev, drm)?,
            shared,
        })
    }

    fn unbind<'bound>(_pdev: &'bound pci::Device<Core<'_>>, this: Pin<&Self::Data<'bound>>) {
        // Before the DRM device is unregistered, which waits for the ioctls that wait for engines.
        this.shared.shut_down();
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
