// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The device behind a mirror, and what happens when it goes away.

use core::{
    ops::Deref,
    ptr::NonNull, //
};

use kernel::{
    device::{
        Bound,
        Device, //
    },
    dma::map::KeepBound,
    sync::aref::ARef,
};

use super::{
    Driver,
    GpuSvm, //
};

/// The device of a mirror.
///
/// It may have been unbound in the meantime. It is not, as long as a notifier lock of the mirror is
/// held under which the mirror was found not to be [detached](GpuSvm::detach), or under which
/// something is still mapped.
#[derive(Clone)]
pub(super) struct MirrorDevice(ARef<Device>);

impl MirrorDevice {
    pub(super) fn new(dev: &Device<Bound>) -> Self {
        let dev: &Device = dev;

        Self(dev.into())
    }

    /// The device, bound or not.
    pub(super) fn device(&self) -> &Device {
        &self.0
    }

    /// The device, while it is bound.
    ///
    /// # Safety
    ///
    /// The device must be bound as long as the result is used.
    pub(super) unsafe fn bound(&self) -> &Device<Bound> {
        // SAFETY: By the requirement.
        unsafe { self.0.as_bound() }
    }

    /// The device, for the owner of a mapping.
    ///
    /// # Safety
    ///
    /// The device must be bound as long as the result exists.
    pub(super) unsafe fn keep(&self) -> KeptDevice {
        // INVARIANT: By the requirement.
        KeptDevice(self.0.clone())
    }
}

/// The device of a mapping.
///
/// # Invariants
///
/// The device is bound. `GpuSvm::detach` drops all of these when the device goes away, before it is
/// unbound.
pub(super) struct KeptDevice(ARef<Device>);

impl Deref for KeptDevice {
    type Target = Device<Bound>;

    fn deref(&self) -> &Device<Bound> {
        // SAFETY: By the type invariant.
        unsafe { self.0.as_bound() }
    }
}

// SAFETY: By the type invariant, the device is bound as long as a value exists, and it always is the
// same one.
unsafe impl KeepBound for KeptDevice {}

/// Ties a mirror to its device: dropped by the device core at unbind, or by the mirror at its end.
///
/// # Invariants
///
/// `svm` is valid: the mirror owns the `Devres` that owns this, and drops it first.
pub(super) struct Attachment<T: Driver> {
    svm: NonNull<GpuSvm<T>>,
}

// SAFETY: `GpuSvm<T>` is `Sync`, and this is but a shared reference to one.
unsafe impl<T: Driver> Send for Attachment<T> {}

impl<T: Driver> Attachment<T> {
    /// # Safety
    ///
    /// `svm` must drop the result before it is freed.
    pub(super) unsafe fn new(svm: &GpuSvm<T>) -> Self {
        // INVARIANT: By the safety requirement.
        Self { svm: svm.into() }
    }
}

impl<T: Driver> Drop for Attachment<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { self.svm.as_ref() }.detach();
    }
}
