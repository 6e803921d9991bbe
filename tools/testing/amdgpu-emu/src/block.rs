// SPDX-License-Identifier: GPL-2.0

//! A hardware block as the driver sees it: registers with effects, and doorbells.

use crate::gpu::Gpu;

/// A hardware block that owns some registers.
///
/// Every register that no block owns is plain storage. All functions answer at once: QEMU's
/// vfio-user client waits for the answer, holds up a CPU of the guest meanwhile, and gives the
/// device up after 5 s. What takes longer is an [`Engine`](crate::engine::Engine)'s work.
pub trait Block: Send + Sync {
    /// The block's name in the hardware documentation.
    fn name(&self) -> &'static str;

    /// Does an access to this register (a dword offset) come to this block?
    fn owns(&self, reg: u32) -> bool;

    /// A read of an owned register.
    fn read(&self, gpu: &Gpu, reg: u32) -> u32;

    /// A write of an owned register.
    fn write(&self, gpu: &Gpu, reg: u32, value: u32);

    /// A write of the doorbell at `byte`, of 4 or 8 bytes as `size` says. Every block sees every
    /// doorbell and ignores what is not for it.
    fn doorbell(&self, _gpu: &Gpu, _byte: u64, _value: u64, _size: usize) {}

    /// The device is reset: registers are 0 again afterwards, and queues gone.
    fn reset(&self, _gpu: &Gpu) {}
}
