// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a driver supplies.

use core::ops::Range;

use kernel::{
    dma::DmaAddress,
    page::PAGE_SIZE,
    prelude::*,
    sizes::*, //
};

use super::{
    DevMem,
    ValidPages, //
};

/// A GPU address space that follows a process's address space.
///
/// The methods are called by the library only; each states its context. None of them is called with
/// a lock held that the driver could know, and a driver lock taken in [`commit`], [`stop`] or
/// [`wait`] must never be held around an allocation that can reclaim memory, a user access, or a
/// call into the library.
///
/// [`commit`] and [`stop`] are called only while the device is bound. The others may also be called
/// while it is being unbound, or after: they must not assume that it is there.
///
/// The counterpart in C is `struct drm_gpusvm_ops` in
/// [`include/drm/drm_gpusvm.h`](srctree/include/drm/drm_gpusvm.h).
///
/// [`commit`]: Driver::commit
/// [`stop`]: Driver::stop
/// [`wait`]: Driver::wait
pub trait Driver: Sized + Send + Sync + 'static {
    /// Sizes in bytes of the ranges that faults create: powers of two, none larger than the one
    /// before, the last one `PAGE_SIZE` or less. Sizes below `PAGE_SIZE` count as `PAGE_SIZE`.
    const CHUNK_SIZES: &'static [usize] = &[SZ_2M, SZ_64K, PAGE_SIZE];

    /// Size and alignment in bytes of the windows that are followed by one interval notifier and
    /// one lock each; a power of two, at least as large as the largest chunk and as a block.
    const NOTIFIER_SIZE: usize = SZ_512M;

    /// The device's memory, if processes' memory may move there.
    fn memory(&self) -> Option<&DevMem> {
        None
    }

    /// The address by which the device reaches `span`, in bytes, of `memory`, which is another device's
    /// of the same [group](super::Group); `None` if it cannot, and the pages go to system memory first.
    ///
    /// The address must stay good until `memory` is removed: a window into it that was mapped once, not
    /// something that is made for each page. Same context as [`prepare`](Driver::prepare).
    fn peer_address(&self, memory: &DevMem, span: Range<u64>) -> Option<DmaAddress> {
        let _ = (memory, span);
        None
    }

    /// Makes sure that page tables for `span` exist, down to the smallest leaf.
    ///
    /// `span` lies in one block and is page aligned. Called in process context with the range's
    /// mutex held: may sleep and allocate. It may be called again for a span that is prepared.
    fn prepare(&self, span: Range<usize>) -> Result;

    /// Tells that the CPU page tables of `span` were walked, before the result is committed.
    ///
    /// Same context as [`prepare`](Driver::prepare). Nothing depends on it: it is the place where a
    /// driver's tests hold a fault, or let an invalidation overtake it. It is not called for a walk with
    /// the address space held still, which nothing can overtake.
    fn walked(&self, span: Range<usize>) {
        let _ = span;
    }

    /// Writes the leaf entries of `pages`, replacing what is there.
    ///
    /// Called with the notifier lock held for reading, in parallel for different spans: must not
    /// allocate. An address read from `pages` is valid until this returns and until the next
    /// [`stop`](Driver::stop) of its span. An error unmaps the span again.
    ///
    /// # Errors
    ///
    /// `EAGAIN` (a table is missing, say) has the fault tried again from [`prepare`](Driver::prepare)
    /// on; `EINTR` ends it with [`FaultError::Killed`](super::FaultError), `ENODEV` and `ENXIO` with
    /// `Gone`, `ENOMEM` with `NoMemory`, and all others with `Driver` and this errno. So it is with
    /// `prepare`.
    fn commit(&self, pages: &ValidPages<'_>) -> Result;

    /// Zaps the leaf entries of `span` and submits the TLB flush, without waiting for it.
    ///
    /// Called with the notifier lock held for writing, possibly from memory reclaim: must neither
    /// allocate nor wait for anything that does. It may be called several times for one event, and
    /// for spans in which nothing is mapped. `span` consists of whole blocks, cut by the range.
    fn stop(&self, span: Range<usize>);

    /// Waits until every flush is complete that was submitted by a [`stop`](Driver::stop) which
    /// returned before this call, and until no access through the old translations is in flight.
    ///
    /// Called without the notifier lock, possibly from memory reclaim: see `stop`. After it, the
    /// library unmaps the pages from the device. It must not depend on a thread that is in
    /// [`GpuSvm::fault`](super::GpuSvm::fault): that one may wait for this invalidation to end.
    fn wait(&self);

    /// Tells that `span` has left the mirror, so that its page tables can be freed.
    ///
    /// Called after [`stop`](Driver::stop) and [`wait`](Driver::wait) in process context with the
    /// range's mutex held: may sleep.
    fn release(&self, span: Range<usize>) {
        let _ = span;
    }
}
