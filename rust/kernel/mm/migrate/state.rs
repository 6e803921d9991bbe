// SPDX-License-Identifier: GPL-2.0

//! The states of a migration.

use super::{
    buffer::Buffer,
    destination::Destination,
    entry::{
        to_phys,
        Entry,
        Source, //
    },
    window::Window,
    Request, //
};
use crate::{
    bindings,
    io::PhysAddr,
    mm::virt::VmaRef,
    prelude::*, //
};
use core::ops::Range;

/// Pages that are locked and not mapped by any CPU.
///
/// Dropping it puts them back.
#[must_use]
pub struct Collected<'a>(Window<'a>);

/// How destinations in system memory are allocated.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct SystemAlloc {
    /// Try to get large folios for large folios.
    pub large: bool,
    /// Wait for base pages until there are some.
    pub nofail: bool,
}

impl Default for SystemAlloc {
    fn default() -> Self {
        Self {
            large: true,
            nofail: false,
        }
    }
}

impl<'a> Collected<'a> {
    /// Collects pages by address.
    ///
    /// # Errors
    ///
    /// `EINVAL`: as [`collect`](super::collect).
    ///
    /// # Safety
    ///
    /// - The mmap lock of the VMA is held for reading for `'a`.
    /// - `fault_page` is null, or a page that is locked for `'a`, with a reference.
    pub(in crate::mm) unsafe fn from_vma(
        vma: &'a VmaRef,
        span: Range<usize>,
        request: &Request<'_>,
        fault_page: *mut bindings::page,
        buf: &'a mut Buffer,
    ) -> Result<Self> {
        // SAFETY: By the requirements.
        Ok(Self(unsafe {
            Window::from_vma(vma, span, request, fault_page, buf)
        }?))
    }

    /// Collects those pages of device memory in `pfns` that `is_used` says yes to.
    ///
    /// # Safety
    ///
    /// All of them exist, are device memory, and those that are in use exist for `'a`. There are at most
    /// as many as in a window.
    pub(in crate::mm) unsafe fn from_pfns(
        pfns: Range<usize>,
        is_used: impl Fn(usize) -> bool,
        buf: &'a mut Buffer,
    ) -> Self {
        // SAFETY: By the requirements.
        Self(unsafe { Window::from_pfns(pfns, is_used, buf) })
    }

    /// Whether there is nothing that can move.
    pub fn is_empty(&self) -> bool {
        self.entries().next().is_none()
    }

    /// Returns what can move. A large folio is one entry.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        entries(&self.0)
    }

    /// Asks `alloc` for a destination of each entry.
    ///
    /// `None` leaves it where it is. A large entry is then asked for again, as pages of order 0; if
    /// there is one for its first page, then it is split. That is not possible for what was collected by
    /// frame numbers, and for the folio of a page fault: look at [`Pagemap::split`] and
    /// [`Fault::split`].
    ///
    /// A destination of another order than that of the entry is freed.
    ///
    /// [`Pagemap::split`]: crate::mm::pagemap::Pagemap::split
    /// [`Fault::split`]: crate::mm::pagemap::Fault::split
    pub fn populate(
        mut self,
        mut alloc: impl FnMut(&Entry<'_>) -> Option<Destination>,
    ) -> Populated<'a> {
        let mut alloc = |entry: &Entry<'_>| alloc(entry).filter(|dst| dst.order() == entry.order);
        let mut index = 0;

        while index < self.0.len() {
            let next = self.0.next(index);

            if let Some(entry) = self.0.entry(index) {
                if let Some(dst) = alloc(&entry) {
                    self.0.set(index, dst);
                } else if entry.order > 0 && self.0.can_split(index) {
                    self.populate_pages(&entry, next - index, &mut alloc);
                }
            }
            index = next;
        }
        Populated(self.0)
    }

    /// Asks for destinations for the pages of a large entry.
    fn populate_pages(
        &mut self,
        entry: &Entry<'_>,
        pages: usize,
        alloc: &mut impl FnMut(&Entry<'_>) -> Option<Destination>,
    ) {
        let is_hole = matches!(entry.source, Source::Hole);

        for page in 0..pages {
            let entry = entry.page(page);
            if let Some(dst) = alloc(&entry) {
                self.0.set(entry.index, dst);
            } else if page == 0 && !is_hole {
                // Without this one the folio is not split.
                break;
            }
        }
    }

    /// Allocates destinations in system memory for everything that is in device memory.
    ///
    /// They follow the NUMA policy of the VMA. If there is no large folio, base pages are used where
    /// [`Self::populate`] can do so. What there is no memory for stays where it is.
    pub fn populate_system(self, how: SystemAlloc) -> Populated<'a> {
        let vma = self.0.vma();

        self.populate(|entry| {
            if !matches!(entry.source, Source::Device(_)) || (entry.order > 0 && !how.large) {
                return None;
            }
            Destination::alloc(vma.zip(entry.va), entry.order, how.nofail).ok()
        })
    }
}

/// Returns what can move.
fn entries<'c>(window: &'c Window<'_>) -> impl Iterator<Item = Entry<'c>> {
    let mut index = 0;

    core::iter::from_fn(move || {
        while index < window.len() {
            let entry = window.entry(index);
            index = window.next(index);
            if entry.is_some() {
                return entry;
            }
        }
        None
    })
}

/// Something to be copied.
#[derive(Copy, Clone)]
pub struct Transfer<'c> {
    /// What is copied, with the size that it is copied with: `PAGE_SIZE << entry.order` bytes.
    pub entry: Entry<'c>,
    /// Where to, as [`Destination::phys`].
    pub dst: PhysAddr,
}

/// Pages, some of which have got a destination.
///
/// Dropping it frees the destinations and puts the pages back.
#[must_use]
pub struct Populated<'a>(Window<'a>);

impl<'a> Populated<'a> {
    /// Whether nothing has got a destination.
    pub fn is_empty(&self) -> bool {
        self.copies().next().is_none()
    }

    /// Returns what must be copied, or filled with zeroes.
    pub fn copies(&self) -> impl Iterator<Item = Transfer<'_>> {
        let window = &self.0;

        entries(window).flat_map(move |entry| {
            let large = window.dst(entry.index).large();
            let pages = if large { 1 } else { 1usize << entry.order };

            (0..pages).filter_map(move |page| {
                let entry = if large { entry } else { entry.page(page) };
                let dst = window.dst(entry.index);

                dst.has_page().then(|| Transfer {
                    entry,
                    dst: to_phys(dst.pfn()),
                })
            })
        })
    }

    /// Gives up moving what has a destination at `index`, for instance because it could not be copied.
    ///
    /// A large entry that was to be split stays as a whole if this is its first page.
    pub fn reject(&mut self, index: usize) {
        drop(self.0.unset(index));
    }

    /// Moves what has a destination.
    ///
    /// Everything that [`Self::copies`] names has been copied, and the copies are visible to whoever
    /// will access the destination: the processes will see whatever is there. No device accesses the
    /// sources any more, which may be freed.
    ///
    /// It sleeps. If holes are filled, then an event for them is sent to the notifiers of the address
    /// space, so that it must not be called with a lock that a notifier callback takes.
    ///
    /// C: `migrate_vma_pages()`, `migrate_device_pages()`.
    pub fn commit(mut self) -> Moved<'a> {
        self.0.commit();
        Moved(self.0)
    }
}

/// What has become of something that had a destination.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Its first page, in pages from the start of the window.
    pub index: usize,
    /// It has `1 << order` pages.
    pub order: u32,
    /// Its address, if the window was collected by addresses.
    pub va: Option<usize>,
    /// Where it was to be moved to, as [`Destination::phys`].
    pub dst: PhysAddr,
    /// Whether it was. If not, the destination is freed in the end.
    pub moved: bool,
}

/// Pages that have moved, or not, and are still locked.
///
/// A device may be told about them. Dropping it ends the migration: from then on they can be
/// accessed, and move again.
#[must_use]
pub struct Moved<'a>(Window<'a>);

impl Moved<'_> {
    /// Returns what has become of everything that had a destination.
    pub fn moves(&self) -> impl Iterator<Item = Move> + '_ {
        let window = &self.0;

        (0..window.len()).filter_map(move |index| {
            let dst = window.dst(index);

            dst.has_page().then(|| Move {
                index,
                order: dst.order(),
                va: window.va(index),
                dst: to_phys(dst.pfn()),
                moved: window.has_moved(index),
            })
        })
    }

    /// Returns the number of pages that have moved.
    pub fn pages(&self) -> usize {
        self.moves()
            .filter(|moved| moved.moved)
            .map(|moved| 1 << moved.order)
            .sum()
    }

    /// Ends the migration. Returns the number of pages that have moved.
    ///
    /// C: `migrate_vma_finalize()`, `migrate_device_finalize()`.
    pub fn finish(self) -> usize {
        self.pages()
    }
}
