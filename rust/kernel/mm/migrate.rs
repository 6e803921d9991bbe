// SPDX-License-Identifier: GPL-2.0

//! Moving pages of processes between system memory and device memory.
//!
//! A migration goes through these states, each of which is a type:
//!
//! 1. [`Collected`]: the pages of a window are locked and taken out of all CPU page tables. Whoever
//!    touches them waits.
//! 2. [`Populated`]: some of them have got a [`Destination`]. Now the content is copied.
//! 3. [`Moved`]: what could be moved is now at its destination. The pages are still locked.
//! 4. [`Moved::finish`] lets everybody go on.
//!
//! Dropping a state before [`Populated::commit`] puts everything back as it was, and frees the
//! destinations. Any page may stay behind at each step: a migration is best effort, and the result says
//! which pages have moved.
//!
//! Pages are found by address ([`collect`], and [`Fault::collect`] for a page fault of the CPU) or by
//! what is in use in the memory of a device ([`Pagemap::collect`]). In both cases it is a window of at
//! most [`WINDOW`] bytes at a time, which never crosses a multiple of that: so the memory that a
//! migration needs is bounded, and a large folio is in a window as a whole or not at all. Several windows
//! may be in progress at the same time.
//!
//! # Examples
//!
//! ```
//! use core::ops::Range;
//! use kernel::{
//!     mm::{
//!         migrate::{
//!             self,
//!             Buffer,
//!             Request,
//!             SystemAlloc, //
//!         },
//!         pagemap::Owner,
//!         MmWithUser, //
//!     },
//! };
//!
//! /// Brings what is in the private memory of `owner` back. Returns the number of pages that moved.
//! fn bring_back(mm: &MmWithUser, span: Range<usize>, owner: &Owner) -> Result<usize> {
//!     let mut buffer = Buffer::new(GFP_KERNEL)?;
//!     let request = Request {
//!         system: false,
//!         private: true,
//!         coherent: false,
//!         large: true,
//!         owner,
//!     };
//!
//!     let mmap = mm.mmap_read_lock();
//!     let populated = migrate::collect(&mmap, span, &request, &mut buffer)?
//!         .populate_system(SystemAlloc::default());
//!
//!     for copy in populated.copies() {
//!         // ... have the device copy from `copy.entry` to `copy.dst`, and wait for it ...
//!         let _ = copy.dst;
//!     }
//!
//!     Ok(populated.commit().finish())
//! }
//! ```
//!
//! C header: [`include/linux/migrate.h`](srctree/include/linux/migrate.h)
//!
//! [`Fault::collect`]: super::pagemap::Fault::collect
//! [`Pagemap::collect`]: super::pagemap::Pagemap::collect

use super::{
    pagemap::Owner,
    MmapReadGuard, //
};
use crate::{
    bindings,
    prelude::*, //
};
use core::ops::Range;

mod buffer;
mod destination;
mod entry;
mod state;
mod window;

pub use buffer::Buffer;
pub use destination::Destination;
pub use entry::{
    DevicePage,
    Entry,
    Source, //
};
pub use state::{
    Collected,
    Move,
    Moved,
    Populated,
    SystemAlloc,
    Transfer, //
};

/// The size and alignment, in bytes, of what is migrated at a time: that of a large folio.
pub const WINDOW: usize = bindings::PMD_SIZE;

/// What shall be migrated.
#[derive(Copy, Clone)]
pub struct Request<'a> {
    /// System memory, and where there is none in an anonymous mapping: holes, and the zero page.
    pub system: bool,
    /// Private memory of `owner`.
    pub private: bool,
    /// Coherent memory of `owner`.
    pub coherent: bool,
    /// Large folios as such, where the window is a whole [`WINDOW`] and they are mapped by one entry.
    /// All others are split first.
    pub large: bool,
    /// Whose device memory is migrated, and what [`Invalidation::is_owner`] recognises the event by
    /// that is sent to the notifiers of the window.
    ///
    /// The event is for the whole window, with all that is selected in it: it must not be ignored.
    ///
    /// [`Invalidation::is_owner`]: crate::mm::notifier::Invalidation::is_owner
    pub owner: &'a Owner,
}

/// Collects what can move of the pages at `span`.
///
/// What is pinned, locked by somebody else or not of a requested kind is left out. If nothing is
/// found, then the result is [empty](Collected::is_empty).
///
/// It sleeps, and sends an event for `span` to the notifiers of the address space. So it must not be
/// called with a lock that a notifier callback takes.
///
/// C: `migrate_vma_setup()`.
///
/// # Errors
///
/// - `EINVAL`: `span` is empty, not page aligned, crosses a multiple of [`WINDOW`], or ends behind the
///   VMA that it begins in; or the VMA is one whose pages do not move (`hugetlb`, `VM_SPECIAL`, DAX);
/// - `EFAULT`: there is no VMA.
pub fn collect<'a>(
    mmap: &'a MmapReadGuard<'_>,
    span: Range<usize>,
    request: &Request<'_>,
    buf: &'a mut Buffer,
) -> Result<Collected<'a>> {
    let vma = mmap.vma_lookup(span.start).ok_or(EFAULT)?;

    // SAFETY: The mmap lock is held as long as the result exists, and there is no fault.
    unsafe { Collected::from_vma(vma, span, request, core::ptr::null_mut(), buf) }
}

#[cfg(CONFIG_DRM_GPUSVM_RUST_KUNIT_TEST)]
mod tests;
