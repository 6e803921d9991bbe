// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Why a fault could not be resolved.

use kernel::prelude::*;

/// The reason why [`GpuSvm::fault`] did not resolve a fault.
///
/// Each reason has one meaning, so that a driver never has to guess from an errno whether trying
/// again can help; `drm_gpusvm_get_pages()` in
/// [`drivers/gpu/drm/drm_gpusvm.c`](srctree/drivers/gpu/drm/drm_gpusvm.c) returns `-EFAULT` for a
/// lost race, for a failed DMA mapping and for an address without memory alike, and its users retry
/// all of them for ever.
///
/// [`GpuSvm::fault`]: super::GpuSvm::fault
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum FaultError {
    /// The span is empty, not page aligned or not inside the user address space (`EINVAL`).
    Invalid,
    /// Invalidations kept winning until the retry limit was reached (`EAGAIN`).
    ///
    /// The fault can be tried again; usually a deadline passes first ([`Timeout`](Self::Timeout)).
    Retry,
    /// There is no mapping at the address (`EFAULT`).
    Unmapped,
    /// The mapping does not permit the access: a write to read-only memory (`EPERM`).
    Access,
    /// There is a mapping, but its memory cannot be had (`EFAULT`).
    ///
    /// The mapping is `PROT_NONE`, belongs to a device (`VM_IO`, `VM_PFNMAP`), lies beyond the end
    /// of its file, or is a guard region.
    Inaccessible,
    /// The memory is on a device, and this mirror cannot map it (`EOPNOTSUPP`).
    Conflict,
    /// The device's DMA mapping failed, also after backing off (`EIO`).
    Dma,
    /// Out of memory (`ENOMEM`).
    NoMemory,
    /// The deadline passed while invalidations kept winning (`ETIME`).
    Timeout,
    /// The calling task is being killed (`EINTR`).
    Killed,
    /// The page has a hardware memory error (`EHWPOISON`).
    Poisoned,
    /// The address space has ended, or the device is gone (`ESRCH`).
    Gone,
}

impl From<FaultError> for Error {
    fn from(err: FaultError) -> Error {
        match err {
            FaultError::Invalid => EINVAL,
            FaultError::Retry => EAGAIN,
            FaultError::Unmapped | FaultError::Inaccessible => EFAULT,
            FaultError::Access => EPERM,
            FaultError::Conflict => EOPNOTSUPP,
            FaultError::Dma => EIO,
            FaultError::NoMemory => ENOMEM,
            FaultError::Timeout => ETIME,
            FaultError::Killed => EINTR,
            FaultError::Poisoned => EHWPOISON,
            FaultError::Gone => ESRCH,
        }
    }
}
