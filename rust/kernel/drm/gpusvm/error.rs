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
/// # Examples
///
/// ```
/// use kernel::drm::gpusvm::{
///     FaultError,
///     Unresolved, //
/// };
///
/// /// Whether the access may be tried again, and if not, what the user is told.
/// fn decide(failed: Unresolved) -> Result<(), (usize, Error)> {
///     match failed.error {
///         FaultError::Retry | FaultError::Timeout => Ok(()),
///         error => Err((failed.addr, error.into())),
///     }
/// }
///
/// let failed = |error| Unresolved { error, addr: 0x1000 };
///
/// assert!(decide(failed(FaultError::Timeout)).is_ok());
/// assert_eq!(decide(failed(FaultError::Access)), Err((0x1000, EPERM)));
/// assert_eq!(decide(failed(FaultError::Driver(ENOSPC))), Err((0x1000, ENOSPC)));
/// ```
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
    /// The memory has to be in the device's own, and could not be brought there (`EACCES`).
    Placement,
    /// The device's DMA mapping failed, also after backing off (`EIO`).
    Dma,
    /// Out of memory (`ENOMEM`).
    NoMemory,
    /// The driver failed for a reason of its own (this errno), see [`Driver`](super::Driver).
    Driver(Error),
    /// The deadline passed while invalidations kept winning (`ETIME`).
    Timeout,
    /// The calling task is being killed (`EINTR`).
    Killed,
    /// The page has a hardware memory error (`EHWPOISON`).
    Poisoned,
    /// The address space has ended or is being ended by the OOM killer, or the device is gone
    /// (`ESRCH`).
    Gone,
}

/// A fault that could not be resolved.
///
/// Of a request to map a long span ahead, what is before [`addr`](Self::addr) was mapped.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// Why.
    pub error: FaultError,
    /// The first page for which this is so, in bytes: inside of the span that was asked for.
    pub addr: usize,
}

impl From<Unresolved> for Error {
    fn from(failed: Unresolved) -> Error {
        failed.error.into()
    }
}

impl From<FaultError> for Error {
    fn from(err: FaultError) -> Error {
        match err {
            FaultError::Invalid => EINVAL,
            FaultError::Retry => EAGAIN,
            FaultError::Unmapped | FaultError::Inaccessible => EFAULT,
            FaultError::Access => EPERM,
            FaultError::Conflict => EOPNOTSUPP,
            FaultError::Placement => EACCES,
            FaultError::Dma => EIO,
            FaultError::NoMemory => ENOMEM,
            FaultError::Driver(err) => err,
            FaultError::Timeout => ETIME,
            FaultError::Killed => EINTR,
            FaultError::Poisoned => EHWPOISON,
            FaultError::Gone => ESRCH,
        }
    }
}

impl FaultError {
    /// Whether it says something of one page, and nothing of those beside it.
    pub(super) fn is_about_a_page(self) -> bool {
        matches!(
            self,
            FaultError::Inaccessible | FaultError::Poisoned | FaultError::Conflict
        )
    }
}
