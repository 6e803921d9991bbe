// SPDX-License-Identifier: GPL-2.0

//! The entries of the arrays of a migration, and what they say.

use crate::{
    bindings,
    io::PhysAddr,
    mm::pagemap::{
        PMD_ORDER,
        PMD_PAGES, //
    },
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    }, //
};
use core::marker::PhantomData;

const VALID: usize = bindings::MIGRATE_PFN_VALID as usize;
const MIGRATE: usize = bindings::MIGRATE_PFN_MIGRATE as usize;
const WRITE: usize = bindings::MIGRATE_PFN_WRITE as usize;
const COMPOUND: usize = bindings::MIGRATE_PFN_COMPOUND as usize;
const SHIFT: u32 = bindings::MIGRATE_PFN_SHIFT;

/// An entry of the arrays.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(super) struct Mpfn(usize);

impl Mpfn {
    pub(super) fn from_raw(raw: usize) -> Self {
        Self(raw)
    }

    pub(super) fn raw(self) -> usize {
        self.0
    }

    /// The entry for a destination.
    pub(super) fn destination(pfn: usize, large: bool) -> Self {
        Self(pfn << SHIFT | VALID | if large { COMPOUND } else { 0 })
    }

    /// There is a page. A source without one is a hole.
    pub(super) fn has_page(self) -> bool {
        self.0 & VALID != 0
    }

    /// The source can move, or has moved.
    pub(super) fn moves(self) -> bool {
        self.0 & MIGRATE != 0
    }

    pub(super) fn write(self) -> bool {
        self.0 & WRITE != 0
    }

    /// It is, or is for, a large folio. The entries of the other pages of it are empty.
    pub(super) fn large(self) -> bool {
        self.0 & COMPOUND != 0
    }

    pub(super) fn order(self) -> u32 {
        if self.large() {
            PMD_ORDER
        } else {
            0
        }
    }

    /// The number of entries that it stands for.
    pub(super) fn pages(self) -> usize {
        if self.large() {
            PMD_PAGES
        } else {
            1
        }
    }

    pub(super) fn pfn(self) -> usize {
        self.0 >> SHIFT
    }

    /// A hole as a source that shall be filled page by page.
    pub(super) fn small_hole() -> Self {
        Self(MIGRATE)
    }
}

/// Returns the physical address of a page frame.
pub(super) fn to_phys(pfn: usize) -> PhysAddr {
    // CAST: Physical addresses are at least as wide as `usize` wherever migration exists.
    (pfn as PhysAddr) << PAGE_SHIFT
}

/// A page of device memory that is being moved away. It is locked.
#[derive(Copy, Clone)]
pub struct DevicePage<'c> {
    pfn: usize,
    private: bool,
    _window: PhantomData<&'c ()>,
}

impl DevicePage<'_> {
    /// Returns the physical address. For private memory it only says which page it is.
    pub fn phys(&self) -> PhysAddr {
        to_phys(self.pfn)
    }

    /// Whether it is in private memory, rather than in coherent memory.
    pub fn is_private(&self) -> bool {
        self.private
    }

    pub(in crate::mm) fn pfn(&self) -> usize {
        self.pfn
    }
}

/// Where the content of a page is.
#[derive(Copy, Clone)]
pub enum Source<'c> {
    /// Nowhere: there is no page, or it is the zero page. The destination must be filled with zeroes.
    Hole,
    /// In system memory.
    System {
        /// Its physical address.
        phys: PhysAddr,
        /// Whether it is anonymous memory. What is not cannot move to a device.
        anon: bool,
    },
    /// In the memory of a device.
    Device(DevicePage<'c>),
}

/// A page, or a large folio, of a window.
#[derive(Copy, Clone)]
pub struct Entry<'c> {
    /// Its first page, in pages from the start of the window.
    pub index: usize,
    /// It has `1 << order` pages.
    pub order: u32,
    /// Its address, if the window was collected by addresses.
    pub va: Option<usize>,
    /// Whether the process can write to it. That is not known if it was collected by frame numbers.
    pub write: bool,
    /// Where the content is.
    pub source: Source<'c>,
}

impl Entry<'_> {
    /// Returns the entry for the source `mpfn` at `index` of a window that begins at `start`.
    ///
    /// # Safety
    ///
    /// If the entry has a page, then that is locked and stays so as long as the result exists.
    pub(super) unsafe fn new<'c>(index: usize, mpfn: Mpfn, start: Option<usize>) -> Entry<'c> {
        let source = if mpfn.has_page() {
            // SAFETY: By the requirement.
            unsafe { Self::source(mpfn.pfn()) }
        } else {
            Source::Hole
        };

        Entry {
            index,
            order: mpfn.order(),
            // OVERFLOW: This is an address of the window.
            va: start.map(|start| start + index * PAGE_SIZE),
            write: mpfn.write(),
            source,
        }
    }

    /// # Safety
    ///
    /// The page exists, is locked, and stays so as long as the result exists.
    unsafe fn source<'c>(pfn: usize) -> Source<'c> {
        // SAFETY: By the requirement, the page and its folio are valid.
        let (private, coherent, anon) = unsafe {
            let folio = bindings::page_folio(bindings::pfn_to_page(pfn));

            (
                bindings::folio_is_device_private(folio),
                bindings::folio_is_device_coherent(folio),
                bindings::folio_test_anon(folio),
            )
        };

        if private || coherent {
            Source::Device(DevicePage {
                pfn,
                private,
                _window: PhantomData,
            })
        } else {
            Source::System {
                phys: to_phys(pfn),
                anon,
            }
        }
    }

    /// Returns the entry for one page of this one.
    pub(super) fn page(&self, page: usize) -> Self {
        // OVERFLOW: All of these are numbers and addresses of pages of the folio.
        Entry {
            index: self.index + page,
            order: 0,
            va: self.va.map(|va| va + page * PAGE_SIZE),
            write: self.write,
            source: match self.source {
                Source::Hole => Source::Hole,
                Source::System { phys, anon } => Source::System {
                    phys: phys + to_phys(page),
                    anon,
                },
                Source::Device(device) => Source::Device(DevicePage {
                    pfn: device.pfn + page,
                    ..device
                }),
            },
        }
    }
}
