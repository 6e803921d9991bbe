// SPDX-License-Identifier: GPL-2.0

//! What sort of memory a page is.

use crate::{
    bindings,
    page::PAGE_SHIFT,
    sizes::SZ_2M, //
};

/// What sort of memory a page is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Ordinary memory of the system.
    System,
    /// Memory of a device that the CPU cannot access, of the owner that the walk named.
    DevicePrivate,
    /// Memory of a device that the CPU can access coherently.
    DeviceCoherent,
    /// Memory behind a PCI BAR that was published for peer-to-peer transfers. It must not be mapped
    /// like ordinary memory.
    PciP2p,
    /// Other memory of a device: persistent memory with a file system, or generic.
    OtherDevice,
}

/// The kind of memory can change only at multiples of this many page frames: device memory is
/// added in sub-sections of 2 MiB.
pub(super) const GRANULE: usize = SZ_2M >> PAGE_SHIFT;

impl Kind {
    /// Looks up the kind of a page frame. `None` if it is not, or no longer, memory.
    ///
    /// This may be called with or without the lock of a notifier held: it does not look into
    /// `struct page`, which for device memory goes away with the device.
    pub(super) fn of(pfn: usize) -> Option<Self> {
        // SAFETY: Any number is allowed. The result is not dereferenced.
        if !unsafe { bindings::pfn_to_online_page(pfn) }.is_null() {
            return Some(Self::System);
        }

        // SAFETY: Any number is allowed. If the result is not null, it is a reference.
        let pgmap = unsafe { bindings::get_dev_pagemap(pfn) };
        if pgmap.is_null() {
            return None;
        }
        // SAFETY: We have a reference, and the field does not change while the pages exist.
        let kind = unsafe { (*pgmap).type_ };
        // SAFETY: Gives up the reference that we have got above.
        unsafe { bindings::put_dev_pagemap(pgmap) };

        Some(match kind {
            bindings::memory_type_MEMORY_DEVICE_PRIVATE => Self::DevicePrivate,
            bindings::memory_type_MEMORY_DEVICE_COHERENT => Self::DeviceCoherent,
            bindings::memory_type_MEMORY_DEVICE_PCI_P2PDMA => Self::PciP2p,
            _ => Self::OtherDevice,
        })
    }
}

/// Looks up the kind of many page frames, and asks for it only where it can have changed.
pub(super) struct KindCache<F> {
    lookup: F,
    last: Option<(usize, Option<Kind>)>,
}

impl<F: Fn(usize) -> Option<Kind>> KindCache<F> {
    pub(super) fn new(lookup: F) -> Self {
        Self { lookup, last: None }
    }

    pub(super) fn of(&mut self, pfn: usize) -> Option<Kind> {
        let granule = pfn / GRANULE;

        match self.last {
            Some((last, kind)) if last == granule => kind,
            _ => {
                let kind = (self.lookup)(pfn);
                self.last = Some((granule, kind));
                kind
            }
        }
    }
}
