// SPDX-License-Identifier: GPL-2.0

//! The only file of this driver with `unsafe` code: what the `kernel` crate does not offer safely.

use kernel::{
    bindings,
    device::{
        Bound,
        Core, //
    },
    devres,
    dma::{
        Device as _,
        DmaMask, //
    },
    drm,
    new_srcu,
    pci,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            ordering::{
                Acquire,
                Release, //
            },
            Atomic, //
        },
        srcu::Srcu,
        Arc, //
    }, //
};

use crate::device::VsvmDrm;

/// A PCI ID by number, for a vendor that the `pci` module has no name for.
pub(crate) const fn pci_device_id(vendor: u32, device: u32) -> pci::DeviceId {
    let id = bindings::pci_device_id {
        vendor,
        device,
        subvendor: !0,
        subdevice: !0,
        class: 0,
        class_mask: 0,
        driver_data: 0,
        override_only: 0,
    };
    // SAFETY: `pci::DeviceId` is a transparent wrapper of `struct pci_device_id` without further
    // invariants.
    unsafe { core::mem::transmute::<bindings::pci_device_id, pci::DeviceId>(id) }
}

/// Lets the device use 64-bit DMA addresses.
///
/// QEMU's device masks the addresses itself, by 28 bits unless it is started with
/// `dma_mask=0xffffffffffffffff`.
pub(crate) fn set_dma_mask_64(pdev: &pci::Device<Core<'_>>) -> Result {
    // SAFETY: `Core` says that the device is being probed: nobody uses it for DMA yet.
    unsafe { pdev.dma_set_mask_and_coherent(DmaMask::new::<64>()) }
}

/// Registers the DRM device with user space.
///
/// The result belongs into the private data of the PCI device, which is dropped at unbind.
pub(crate) fn register<'bound>(
    pdev: &'bound pci::Device<Bound>,
    drm: drm::UnregisteredDevice<VsvmDrm>,
) -> Result<drm::Registration<'bound, VsvmDrm>> {
    // SAFETY: The only caller is `probe`, which stores the registration in the private data of the
    // device and so drops it at unbind. The registration data is `()` and borrows nothing.
    unsafe { drm::Registration::new(pdev.as_ref(), drm, (), 0) }
}

/// A PCI device that may be unbound at any time, and access to it while it is not.
///
/// The `kernel` crate's [`Devres`](devres::Devres) does the same, but lets its users not sleep.
///
/// # Invariants
///
/// While `open` is true, and until an SRCU grace period has passed since it became false, `pdev`
/// is bound to this driver.
#[pin_data]
pub(crate) struct BoundDevice {
    pdev: ARef<pci::Device>,
    open: Atomic<bool>,
    #[pin]
    srcu: Srcu,
}

/// Closes a [`BoundDevice`] when devres lets go of it.
struct Closer(Arc<BoundDevice>);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl BoundDevice {
    /// Gives access to `pdev` until it is unbound.
    pub(crate) fn new(pdev: &pci::Device<Bound>) -> Result<Arc<Self>> {
        let this = Arc::pin_init(
            try_pin_init!(Self {
                pdev: pdev.into(),
                // INVARIANT: `pdev` is bound now, and the `Closer` below is dropped by devres
                // before unbinding is complete; if it cannot be registered it is dropped at once.
                open: Atomic::new(true),
                srcu <- new_srcu!(),
            }),
            GFP_KERNEL,
        )?;
        devres::register(pdev.as_ref(), Closer(this.clone()), GFP_KERNEL)?;
        Ok(this)
    }

    /// Calls `f` with the bound device; [`None`] if it is unbound.
    ///
    /// `f` may sleep; unbinding waits for it.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&pci::Device<Bound>) -> R) -> Option<R> {
        let _guard = self.srcu.read_lock();
        if !self.open.load(Acquire) {
            return None;
        }
        let dev: &kernel::device::Device = (*self.pdev).as_ref();
        // SAFETY: `open` was true inside this SRCU read section, which `close` waits for. By the
        // type invariant the device is bound until then.
        let dev = unsafe { dev.as_bound() };
        let pdev: &pci::Device<Bound> = dev.try_into().ok()?;
        Some(f(pdev))
    }

    fn close(&self) {
        // INVARIANT: The device is still bound for the grace period, since devres calls this
        // before it is unbound.
        self.open.store(false, Release);
        self.srcu.synchronize();
    }
}
