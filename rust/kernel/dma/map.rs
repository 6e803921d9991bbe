// SPDX-License-Identifier: GPL-2.0

//! Streaming DMA mappings of physical ranges.
//!
//! The counterpart of [`iova`](super::iova) for devices that have no IOVA space of their own: one
//! call maps one physically contiguous range, and the DMA address is whatever the platform says.
//!
//! C header: [`include/linux/dma-mapping.h`](srctree/include/linux/dma-mapping.h)

use super::{
    attrs::DMA_ATTR_REQUIRE_COHERENT,
    Attrs,
    DataDirection,
    DmaAddress, //
};
use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    io::PhysAddr,
    prelude::*, //
};
use core::ops::Deref;

#[cfg(CONFIG_DRM_GPUSVM_RUST_KUNIT_TEST)]
mod tests;

/// A handle that names one device and keeps it bound to its driver.
///
/// Owners of DMA mappings store such a handle, because a mapping is a resource of the device that
/// must be gone before the driver is unbound. The ordinary handle is `&Device<Bound>`.
///
/// # Safety
///
/// For as long as a value of the implementing type exists, wherever it is moved to,
///
/// - [`Deref::deref`] returns a reference to the same device, and
/// - this device stays bound to its driver.
pub unsafe trait KeepBound: Deref<Target = Device<Bound>> {}

// SAFETY: A shared reference always refers to the same device. `Device<Bound>` is only lent while
// the device is bound to its driver, hence it stays bound for the lifetime of the reference, which
// the value cannot outlive.
unsafe impl KeepBound for &Device<Bound> {}

/// Checks that the memory of processes can be mirrored by `dev`.
///
/// A mirror gives the device and the CPU access to the same memory at the same time and for an
/// unknown time: there is no moment at which ownership of the memory could be handed over with
/// `dma_sync_*`. So the device must be cache coherent, and its DMA must never go to a bounce
/// buffer. Otherwise writes are lost silently.
///
/// Call it once, in process context, after the driver has set the DMA mask of the device (the DMA
/// core decides only then whether the device needs syncs). It follows `hmm_dma_map_alloc()` in
/// [`mm/hmm.c`](srctree/mm/hmm.c), and also refuses a device whose DMA is forced through bounce
/// buffers (`swiotlb=force`, restricted DMA pools, most confidential guests). That test is
/// conservative behind an IOMMU.
///
/// What cannot be known in advance is reported by each mapping, which must have the attribute
/// [`DMA_ATTR_REQUIRE_COHERENT`].
///
/// # Errors
///
/// [`EOPNOTSUPP`] when the device has no DMA mask, is not coherent, needs syncs, bounces, or cannot
/// address all memory of the system.
///
/// # Examples
///
/// ```
/// # use kernel::device::{
/// #     Bound,
/// #     Device, //
/// # };
/// use kernel::dma;
///
/// # fn test(dev: &Device<Bound>) -> Result {
/// dma::check_mirror(dev)?;
/// // `dev` may mirror memory of processes.
/// # Ok(()) }
/// ```
pub fn check_mirror(dev: &Device<Bound>) -> Result {
    let raw = dev.as_raw();

    if !has_mask(dev) {
        return Err(EOPNOTSUPP);
    }

    // SAFETY: `raw` is a valid device by the type invariants of `Device`.
    if !unsafe { bindings::dev_is_dma_coherent(raw) } {
        return Err(EOPNOTSUPP);
    }

    // Not a pure function of the above: a device loses the property when one of its mappings
    // bounced, and platforms with DMA operations of their own may need syncs always.
    //
    // SAFETY: `raw` is a valid device by the type invariants of `Device`.
    #[cfg(CONFIG_DMA_NEED_SYNC)]
    if !unsafe { bindings::dev_dma_skip_sync(raw) } {
        return Err(EOPNOTSUPP);
    }

    // SAFETY: `raw` is a valid device by the type invariants of `Device`.
    if unsafe { bindings::is_swiotlb_force_bounce(raw) } {
        return Err(EOPNOTSUPP);
    }

    // SAFETY: `raw` is a valid device by the type invariants of `Device`.
    if unsafe { bindings::dma_addressing_limited(raw) } {
        return Err(EOPNOTSUPP);
    }

    Ok(())
}

/// Whether the bus of `dev` gave it a DMA mask. Without one the C code would warn.
fn has_mask(dev: &Device<Bound>) -> bool {
    // SAFETY: `dev.as_raw()` is a valid device by the type invariants of `Device`. Its `dma_mask`
    // pointer is set by the bus before a driver is bound and not changed afterwards.
    !unsafe { (*dev.as_raw()).dma_mask }.is_null()
}

/// Whether the `len` bytes from `phys` are a range that can be mapped in direction `dir`.
pub(super) fn check_args(phys: PhysAddr, len: usize, dir: DataDirection) -> Result {
    let last = len.checked_sub(1).ok_or(EINVAL)?;
    let last = PhysAddr::try_from(last).map_err(|_| EINVAL)?;

    phys.checked_add(last).ok_or(EINVAL)?;

    // `DMA_NONE` is a `BUG()` in the C code.
    if dir == DataDirection::None {
        return Err(EINVAL);
    }
    Ok(())
}

/// Maps `len` bytes of physical memory from `phys` for DMA by `dev`.
///
/// Returns the DMA address of the first byte; the others follow contiguously. The range must be
/// unmapped as a whole, by [`unmap_phys`] with the same arguments. Use [`Mapping`] where the
/// mapping has an owner of its own.
///
/// Does not sleep. Behind an IOMMU it allocates with `GFP_ATOMIC` and may fail at any time.
///
/// # Errors
///
/// - [`EINVAL`]: the range is empty or wraps, or `dir` is [`DataDirection::None`].
/// - [`EOPNOTSUPP`]: `attrs` contains [`DMA_ATTR_REQUIRE_COHERENT`], and the device is not coherent
///   or must bounce; or the device has no DMA mask.
/// - [`ENOMEM`]: everything else, which is lack of memory or of IOVA space.
///
/// # Safety
///
/// - The memory must stay allocated to its purpose until the range is unmapped, and the caller must
///   have permission to let the device access it in direction `dir`.
/// - With [`DMA_ATTR_MMIO`](super::attrs::DMA_ATTR_MMIO) the range must be memory-mapped I/O to which
///   the device may send peer-to-peer transfers; without it, it must be system memory.
/// - The range must be unmapped before `dev` is unbound from its driver.
pub unsafe fn map_phys(
    dev: &Device<Bound>,
    phys: PhysAddr,
    len: usize,
    dir: DataDirection,
    attrs: Attrs,
) -> Result<DmaAddress> {
    check_args(phys, len, dir)?;
    if !has_mask(dev) {
        return Err(EOPNOTSUPP);
    }

    let raw = dev.as_raw();
    // SAFETY: `raw` is a valid device, bound to its driver and with a DMA mask; `dir` is a valid
    // direction; the caller guarantees that the device may access the range.
    let addr = unsafe { bindings::dma_map_phys(raw, phys, len, dir.into(), attrs.as_raw()) };

    // SAFETY: `raw` is a valid device.
    if unsafe { bindings::dma_mapping_error(raw, addr) } != 0 {
        return Err(map_error(dev, attrs));
    }
    Ok(addr)
}

/// The reason for which a mapping with `attrs` failed.
///
/// The C code has one value for all of them, but a caller must know whether to try again.
#[cold]
fn map_error(dev: &Device<Bound>, attrs: Attrs) -> Error {
    let raw = dev.as_raw();

    if attrs.contains(DMA_ATTR_REQUIRE_COHERENT)
        // SAFETY: `raw` is a valid device by the type invariants of `Device`.
        && (!unsafe { bindings::dev_is_dma_coherent(raw) }
            // SAFETY: As above.
            || unsafe { bindings::is_swiotlb_force_bounce(raw) })
    {
        EOPNOTSUPP
    } else {
        ENOMEM
    }
}

/// Unmaps what [`map_phys`] has mapped.
///
/// When it returns, the device cannot reach the memory through `addr` any more. (With a lazy IOMMU
/// that is true only after its flush queue has been worked off; a stale address is not given out
/// again before.) Does not sleep and does not allocate.
///
/// # Safety
///
/// - `addr` must have been returned by [`map_phys`] for the same `dev`, `len`, `dir` and `attrs`, and
///   must not have been unmapped since.
/// - The device must not use the address any more.
pub unsafe fn unmap_phys(
    dev: &Device<Bound>,
    addr: DmaAddress,
    len: usize,
    dir: DataDirection,
    attrs: Attrs,
) {
    // SAFETY: `dev` is a valid device, and the caller guarantees that this is an existing mapping
    // of it.
    unsafe { bindings::dma_unmap_phys(dev.as_raw(), addr, len, dir.into(), attrs.as_raw()) };
}

/// Whether mappings of `dev` need to be unmapped at all.
///
/// If not, the addresses need not even be remembered for [`unmap_phys`]. The answer may change from
/// `false` to `true` when a mapping bounces, so ask after the mappings in question have been made.
/// Mappings with [`DMA_ATTR_REQUIRE_COHERENT`] never bounce.
pub fn need_unmap(dev: &Device<Bound>) -> bool {
    // SAFETY: `dev.as_raw()` is a valid device by the type invariants of `Device`. The C function
    // dereferences the mask, hence the check before.
    has_mask(dev) && unsafe { bindings::dma_need_unmap(dev.as_raw()) }
}

/// A physical range that is mapped for DMA by a device.
///
/// The range is unmapped when the value is dropped; dropping does not sleep.
///
/// # Examples
///
/// ```
/// # use kernel::device::{
/// #     Bound,
/// #     Device, //
/// # };
/// use kernel::dma::{
///     attrs::DMA_ATTR_REQUIRE_COHERENT,
///     map::Mapping,
///     DataDirection, //
/// };
/// use kernel::io::PhysAddr;
///
/// /// # Safety
/// ///
/// /// The page at `phys` must stay allocated for the duration of the call.
/// unsafe fn transfer(dev: &Device<Bound>, phys: PhysAddr) -> Result {
///     // SAFETY: The page outlives `mapping`, and nobody else uses it.
///     let mapping = unsafe {
///         Mapping::new(
///             dev,
///             phys,
///             kernel::page::PAGE_SIZE,
///             DataDirection::Bidirectional,
///             DMA_ATTR_REQUIRE_COHERENT,
///         )
///     }?;
///
///     assert_eq!(mapping.len(), kernel::page::PAGE_SIZE);
///     let _address_for_the_device = mapping.addr();
///     Ok(())
/// }
/// ```
///
/// # Invariants
///
/// `len` bytes from `addr` are mapped for the device that `dev` keeps bound, by one [`map_phys`] with
/// `dir` and `attrs`.
pub struct Mapping<D: KeepBound> {
    dev: D,
    addr: DmaAddress,
    len: usize,
    dir: DataDirection,
    attrs: Attrs,
}

impl<D: KeepBound> Mapping<D> {
    /// Maps `len` bytes of physical memory from `phys`.
    ///
    /// Context and errors are those of [`map_phys`].
    ///
    /// # Safety
    ///
    /// - Until the returned value has been dropped, the memory must stay allocated to its purpose,
    ///   and the caller must have permission to let the device access it in direction `dir`. If the
    ///   value is leaked, that is forever.
    /// - With [`DMA_ATTR_MMIO`](super::attrs::DMA_ATTR_MMIO) the range must be memory-mapped I/O to
    ///   which the device may send peer-to-peer transfers; without it, it must be system memory.
    /// - The device must not use the address after the value has been dropped.
    pub unsafe fn new(
        dev: D,
        phys: PhysAddr,
        len: usize,
        dir: DataDirection,
        attrs: Attrs,
    ) -> Result<Self> {
        // SAFETY: The caller guarantees what is required of the memory. `drop` unmaps the range,
        // and the device stays bound until then because `dev` keeps it so.
        let addr = unsafe { map_phys(&dev, phys, len, dir, attrs) }?;

        // INVARIANT: The range has just been mapped with these arguments.
        Ok(Self {
            dev,
            addr,
            len,
            dir,
            attrs,
        })
    }

    /// The DMA address of the first byte.
    #[inline]
    pub fn addr(&self) -> DmaAddress {
        self.addr
    }

    /// The length in bytes; never zero.
    #[inline]
    #[expect(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The direction in which the device may access the memory.
    #[inline]
    pub fn direction(&self) -> DataDirection {
        self.dir
    }
}

impl<D: KeepBound> Drop for Mapping<D> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants this is an existing mapping of the device, which is the
        // same as at creation by the contract of `KeepBound`. The creator has guaranteed that the
        // device does not use the address any more.
        unsafe { unmap_phys(&self.dev, self.addr, self.len, self.dir, self.attrs) };
    }
}
