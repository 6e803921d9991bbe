// SPDX-License-Identifier: GPL-2.0

//! Reservations of a device's I/O virtual addresses.
//!
//! A driver that knows the size of what it is going to map, but not yet the memory behind it,
//! reserves a contiguous span of I/O virtual addresses once and links memory into it piece by
//! piece. Linking costs a page-table update and no allocation of addresses, and the addresses
//! survive an unlink.
//!
//! C header: [`include/linux/dma-mapping.h`](srctree/include/linux/dma-mapping.h)

use super::{
    attrs::DMA_ATTR_REQUIRE_COHERENT,
    map::{
        check_args,
        KeepBound, //
    },
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
    error::to_result,
    io::PhysAddr,
    page::PAGE_SIZE,
    prelude::*,
    unsafe_precondition_assert, //
};

#[cfg(CONFIG_DRM_GPUSVM_RUST_KUNIT_TEST)]
mod tests;

/// A contiguous span of I/O virtual addresses of one device.
///
/// Memory is linked into the reservation at offsets of the caller's choice. One successful
/// [`link`](Self::link) makes one *run*. The IOMMU driver may map a run with large pages, so a run
/// can only be unlinked as a whole: unlinking takes one run, or several runs that follow each other
/// without a hole. Runs may be linked and unlinked in any order, and from several tasks at the same
/// time if the offsets do not overlap (IOMMU page tables need no lock for disjoint ranges).
///
/// Every link has the attribute [`DMA_ATTR_REQUIRE_COHERENT`]: a device for which memory would have
/// to be bounced or flushed is refused, since there is no call here to synchronise it.
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
///     iova::Reservation,
///     DataDirection,
///     DmaAddress, //
/// };
/// use kernel::io::PhysAddr;
/// use kernel::page::PAGE_SIZE;
///
/// /// Lets the device see two pages that are not neighbours as two contiguous ones.
/// ///
/// /// # Safety
/// ///
/// /// Both pages must stay allocated for the duration of the call.
/// unsafe fn join(
///     dev: &Device<Bound>,
///     pages: [PhysAddr; 2],
///     f: impl FnOnce(DmaAddress),
/// ) -> Result {
///     let dir = DataDirection::Bidirectional;
///     let attrs = DMA_ATTR_REQUIRE_COHERENT;
///     let span = Reservation::try_alloc(dev, 2 * PAGE_SIZE).ok_or(EOPNOTSUPP)?;
///
///     // SAFETY: The page is unlinked below, before this function returns.
///     unsafe { span.link(0, pages[0], PAGE_SIZE, dir, attrs) }?;
///     // SAFETY: As above.
///     let second = unsafe { span.link(PAGE_SIZE, pages[1], PAGE_SIZE, dir, attrs) };
///     let done = second.and_then(|()| span.sync(0, 2 * PAGE_SIZE));
///
///     if done.is_ok() {
///         f(span.addr());
///     }
///     // SAFETY: If the second link succeeded, these are two adjacent runs, else one run.
///     unsafe { span.unlink(0, if second.is_ok() { 2 } else { 1 } * PAGE_SIZE, dir, attrs) };
///     done
/// }
/// ```
///
/// # Invariants
///
/// - `state` describes a reservation of the device that `dev` keeps bound, made by
///   `dma_iova_try_alloc()` with `phys == 0` and a size of `size` bytes, and not freed.
/// - `state` has never been changed since. (The C functions change it only when they bounce, which
///   [`DMA_ATTR_REQUIRE_COHERENT`] forbids. Hence they can be given copies of it, and concurrent
///   calls do not share anything in it.)
/// - `size` is a non-zero multiple of `PAGE_SIZE`, which is a multiple of the IOMMU's granule.
pub struct Reservation<D: KeepBound> {
    dev: D,
    state: bindings::dma_iova_state,
    size: usize,
}

impl<D: KeepBound> Reservation<D> {
    /// Reserves `size` bytes, a non-zero multiple of `PAGE_SIZE`.
    ///
    /// [`None`] means that I/O virtual addresses cannot be reserved for this device: it is not
    /// translated by an IOMMU, or the IOMMU's granule is larger than a page, or its address space (as
    /// limited by the device's DMA mask) has no hole of this size, or `size` is not as demanded. In
    /// all these cases use [`map_phys`](super::map::map_phys).
    ///
    /// The address is aligned to at least the largest power of two that is not larger than `size`.
    /// So, for IOMMU pages of 2 MiB, reserve whole 2 MiB blocks around the span in question and link
    /// at offsets that are congruent to the memory's address modulo 2 MiB.
    ///
    /// May be called in any context in which the DMA API may be; it allocates with `GFP_ATOMIC` and
    /// takes spinlocks.
    pub fn try_alloc(dev: D, size: usize) -> Option<Self> {
        let state = try_alloc(&dev, size)?;

        // INVARIANT: `try_alloc` has just made this reservation and checked `size`.
        Some(Self { dev, state, size })
    }

    /// The first address of the reservation.
    ///
    /// The device may only use those addresses to which memory is linked.
    #[inline]
    pub fn addr(&self) -> DmaAddress {
        self.state.addr
    }

    /// The size of the reservation in bytes.
    #[inline]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Links `len` bytes of physical memory from `phys` at `offset` of the reservation.
    ///
    /// `offset`, `phys` and `len` are multiples of `PAGE_SIZE`. On success the memory is one new run,
    /// of which the device knows after the next [`sync`](Self::sync) that covers it. On failure
    /// nothing is linked.
    ///
    /// Does not sleep; allocates IOMMU page tables with `GFP_ATOMIC`.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`]: an argument is not aligned, `len` is zero, the range lies outside the
    ///   reservation, or `dir` is [`DataDirection::None`].
    /// - [`EOPNOTSUPP`]: the device is not coherent.
    /// - [`ENOMEM`]: no memory for page tables. Worth a retry when memory may be reclaimed.
    /// - Others from the IOMMU driver.
    ///
    /// # Safety
    ///
    /// - Nothing is linked in the range at the time of the call.
    /// - The memory must stay allocated to its purpose until the run has been unlinked, and the
    ///   caller must have permission to let the device access it in direction `dir`.
    /// - With [`DMA_ATTR_MMIO`](super::attrs::DMA_ATTR_MMIO) the memory must be memory-mapped I/O to
    ///   which the device may send peer-to-peer transfers; without it, it must be system memory.
    /// - The run must be unlinked by [`unlink`](Self::unlink) before the reservation is dropped.
    pub unsafe fn link(
        &self,
        offset: usize,
        phys: PhysAddr,
        len: usize,
        dir: DataDirection,
        attrs: Attrs,
    ) -> Result {
        check_args(phys, len, dir)?;
        self.check_range(offset, len)?;
        if phys % (PAGE_SIZE as PhysAddr) != 0 {
            return Err(EINVAL);
        }

        // SAFETY: By the type invariants `self.state` is a live reservation of `self.dev`. The range
        // is inside of it, aligned, and not empty, and `dir` is valid. The caller guarantees that
        // the range is free and the memory may be accessed by the device.
        unsafe { link(&self.dev, self.state, offset, phys, len, dir, attrs) }
    }

    /// Makes linked memory known to the device.
    ///
    /// To be called once after a sequence of links, for a range that covers them, and before the
    /// device uses the addresses. Does not sleep.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`]: a bound is not aligned to `PAGE_SIZE`, `len` is zero, or the range lies outside
    ///   the reservation.
    /// - Others from the IOMMU driver. The memory is still linked, but must be taken as not
    ///   accessible.
    pub fn sync(&self, offset: usize, len: usize) -> Result {
        self.check_range(offset, len)?;

        // SAFETY: By the type invariants `self.state` is a live reservation of `self.dev`, and the
        // range is inside of it. The function tells the IOMMU to look at its page tables anew, which
        // is harmless where nothing is linked.
        unsafe { sync(&self.dev, self.state, offset, len) }
    }

    /// Unlinks one run, or several runs that follow each other without a hole.
    ///
    /// When it returns, the device cannot reach the memory any more; `dma_iova_unlink()` flushes
    /// the IOTLB also with a lazy IOMMU. Its cost is that of one flush, so unlink neighbouring runs
    /// together. Does not sleep and does not allocate, and so may be called in memory reclaim.
    ///
    /// # Safety
    ///
    /// - The range must consist of whole runs, each linked with the same `attrs` as given here, and
    ///   not unlinked since. (`dir` matters only to cache maintenance. Runs exist on coherent devices
    ///   only, see above, which do without: those of several directions may be unlinked together.)
    /// - The device must not use the addresses any more.
    pub unsafe fn unlink(&self, offset: usize, len: usize, dir: DataDirection, attrs: Attrs) {
        unsafe_precondition_assert!(self.check_range(offset, len).is_ok());

        // SAFETY: By the type invariants `self.state` is a live reservation of `self.dev`. The caller
        // guarantees that the range consists of whole runs.
        unsafe { unlink(&self.dev, self.state, offset, len, dir, attrs) };
    }

    /// Whether `offset` and `len` are a page-aligned, non-empty range inside the reservation.
    fn check_range(&self, offset: usize, len: usize) -> Result {
        let end = offset.checked_add(len).ok_or(EINVAL)?;

        if len == 0 || (offset | len) % PAGE_SIZE != 0 || end > self.size {
            return Err(EINVAL);
        }
        Ok(())
    }
}

impl<D: KeepBound> Drop for Reservation<D> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants `self.state` is a live reservation of `self.dev`, and it
        // ends here. Whoever linked a run has guaranteed that it was unlinked before.
        unsafe { free(&self.dev, self.state) };
    }
}

// The functions below are not generic, so that they are compiled once, into the kernel, and what
// they call need not be available to modules.

/// Reserves `size` bytes; see [`Reservation::try_alloc`].
fn try_alloc(dev: &Device<Bound>, size: usize) -> Option<bindings::dma_iova_state> {
    // The upper limit is that of `isize`, as for all objects in memory. It keeps clear of the bit of
    // the size that the C code uses as a flag.
    if size == 0 || size % PAGE_SIZE != 0 || isize::try_from(size).is_err() {
        return None;
    }

    // Translated devices report their granule (less one) here, all others zero. A page of which the
    // IOMMU cannot map less than a multiple cannot have an offset of its own.
    //
    // SAFETY: `dev.as_raw()` is a valid device.
    if unsafe { bindings::dma_get_merge_boundary(dev.as_raw()) } >= PAGE_SIZE {
        return None;
    }

    let mut state = bindings::dma_iova_state::default();
    // SAFETY: `dev.as_raw()` is a valid device and bound to its driver, and `state` is valid for
    // writing. `size` is not zero. A physical address of zero stands for "aligned to the granule",
    // which is what `link` demands of all addresses.
    let ok = unsafe { bindings::dma_iova_try_alloc(dev.as_raw(), &mut state, 0, size) };

    ok.then_some(state)
}

/// Links one run; see [`Reservation::link`].
///
/// # Safety
///
/// `state` must be a live reservation of `dev`, and the aligned and non-empty range must be inside of
/// it. `dir` must not be [`DataDirection::None`]. Further as for [`Reservation::link`].
unsafe fn link(
    dev: &Device<Bound>,
    mut state: bindings::dma_iova_state,
    offset: usize,
    phys: PhysAddr,
    len: usize,
    dir: DataDirection,
    attrs: Attrs,
) -> Result {
    let attrs = attrs | DMA_ATTR_REQUIRE_COHERENT;

    // SAFETY: The caller guarantees all that is required of the arguments. With
    // `DMA_ATTR_REQUIRE_COHERENT` the function does not change `state`, so a copy will do. It
    // undoes a partial mapping itself when it fails.
    to_result(unsafe {
        bindings::dma_iova_link(
            dev.as_raw(),
            &mut state,
            phys,
            offset,
            len,
            dir.into(),
            attrs.as_raw(),
        )
    })
}

/// Makes linked memory known to the device; see [`Reservation::sync`].
///
/// # Safety
///
/// `state` must be a live reservation of `dev`, and the range must be inside of it.
unsafe fn sync(
    dev: &Device<Bound>,
    mut state: bindings::dma_iova_state,
    offset: usize,
    len: usize,
) -> Result {
    // SAFETY: The caller guarantees that the reservation is live and the range inside of it. The
    // function only reads `state`.
    to_result(unsafe { bindings::dma_iova_sync(dev.as_raw(), &mut state, offset, len) })
}

/// Unlinks whole runs; see [`Reservation::unlink`].
///
/// # Safety
///
/// `state` must be a live reservation of `dev`. Further as for [`Reservation::unlink`].
unsafe fn unlink(
    dev: &Device<Bound>,
    mut state: bindings::dma_iova_state,
    offset: usize,
    len: usize,
    dir: DataDirection,
    attrs: Attrs,
) {
    let attrs = attrs | DMA_ATTR_REQUIRE_COHERENT;

    // SAFETY: The caller guarantees that the reservation is live and the range consists of whole
    // runs of it. The function only reads `state`.
    unsafe {
        bindings::dma_iova_unlink(
            dev.as_raw(),
            &mut state,
            offset,
            len,
            dir.into(),
            attrs.as_raw(),
        )
    };
}

/// Gives a reservation back.
///
/// # Safety
///
/// `state` must be a live reservation of `dev` in which nothing is linked. It must not be used
/// afterwards.
unsafe fn free(dev: &Device<Bound>, mut state: bindings::dma_iova_state) {
    // SAFETY: The caller guarantees that the reservation is live and empty.
    unsafe { bindings::dma_iova_free(dev.as_raw(), &mut state) };
}
