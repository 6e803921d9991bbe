// SPDX-License-Identifier: GPL-2.0

//! Memory of devices as pages.
//!
//! A [`Pagemap`] gives the memory of a device pages (`struct page`), so that pages of a process can be
//! [migrated](crate::mm::migrate) to it: *private* memory, which the CPU cannot access and brings back
//! when it wants to, or *coherent* memory, which it can access.
//!
//! A page is free, or [taken](Pagemap::take): then it is part of a folio with a reference count, and
//! [`Ops::folio_free`] is called when the last reference is gone. Who owns which pages in between is
//! the business of an allocator, not of the page map; but a page that is in use cannot be taken, and
//! the page map cannot go away while one is.
//!
//! C header: [`include/linux/memremap.h`](srctree/include/linux/memremap.h)

use crate::{
    bindings,
    container_of,
    device::{
        Bound,
        Device, //
    },
    io::PhysAddr,
    mm::migrate::{
        Buffer,
        Collected,
        Destination,
        DevicePage, //
    },
    page::PAGE_SHIFT,
    prelude::*,
    sync::Arc,
    time::{
        delay::fsleep,
        Delta, //
    }, //
};
use core::ops::{
    Deref,
    Range, //
};

mod fault;
mod ops;
mod owner;
mod raw;
mod region;
mod used;

pub use fault::Fault;
pub use ops::{
    Freed,
    Handled,
    Ops, //
};
pub use owner::Owner;
pub use region::Place;

use ops::Callbacks;
use raw::Raw;

/// The order of large folios: what one entry of the page middle directory maps.
pub const PMD_ORDER: u32 = bindings::PMD_SIZE.ilog2() - PAGE_SHIFT as u32;

/// The number of pages of a large folio.
pub const PMD_PAGES: usize = 1 << PMD_ORDER;

/// Whether this kernel can migrate large folios to and from private memory.
pub const LARGE: bool = cfg!(CONFIG_ARCH_HAS_PMD_SOFTLEAVES);

/// How device memory can be accessed by the CPU.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// Not at all.
    Private,
    /// As ordinary memory. It has no large folios: the core mm does not support them.
    Coherent,
}

impl Type {
    fn as_raw(self) -> bindings::memory_type {
        match self {
            Self::Private => bindings::memory_type_MEMORY_DEVICE_PRIVATE,
            Self::Coherent => bindings::memory_type_MEMORY_DEVICE_COHERENT,
        }
    }
}

/// The memory of a device as pages.
///
/// Dropping it [unregisters](Self::unregister) the pages, which waits until none is in use.
///
/// C: `struct dev_pagemap`.
///
/// # Invariants
///
/// `raw` was created with the callbacks of `Callbacks<T>`.
#[pin_data(PinnedDrop)]
pub struct Pagemap<T: Ops> {
    // Before `data`, which the callbacks use until there are no pages any more.
    #[pin]
    raw: Raw,
    name: &'static CStr,
    #[pin]
    data: T,
}

impl<T: Ops> Pagemap<T> {
    /// Registers pages for the memory of `dev`.
    ///
    /// They are marked with `owner`. `name` shows up in `/proc/iomem`. The pages are on the node of
    /// `dev`, which is not used afterwards: a driver unregisters them when it is unbound, while its
    /// engines can still move what is in them.
    ///
    /// It sleeps.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: `place` is empty or not made of whole 2 MiB blocks, is [`Place::Free`] for coherent
    ///   memory, or the architecture refuses it;
    /// - `EBUSY`: somebody else has the addresses;
    /// - `ENOMEM`, `ERANGE`: there is no memory, or there are no free addresses;
    /// - what `data` gives.
    pub fn new<'a, E, I>(
        dev: &'a Device<Bound>,
        name: &'static CStr,
        kind: Type,
        place: Place,
        owner: Arc<Owner>,
        data: I,
    ) -> impl PinInit<Self, Error> + use<'a, T, E, I>
    where
        I: PinInit<T, E>,
        Error: From<E>,
    {
        try_pin_init!(Self {
            name,
            data <- data,
            // INVARIANT: These are the callbacks.
            // SAFETY: The callbacks are for the pages of a `Pagemap<T>`, which this is.
            raw <- unsafe {
                Raw::new(dev, name, kind, place, owner, const { &Callbacks::<T>::OPS })
            },
        }? Error)
    }

    /// # Safety
    ///
    /// `raw` is that of a `Pagemap<T>`.
    unsafe fn from_raw(raw: &Raw) -> &Self {
        // SAFETY: By the requirement, it is the field of a `Pagemap<T>`.
        unsafe { &*container_of!(core::ptr::from_ref(raw).cast_mut(), Self, raw) }
    }

    fn raw(&self) -> &Raw {
        &self.raw
    }

    /// Returns the number of pages.
    pub fn pages(&self) -> usize {
        self.raw.pages()
    }

    /// Returns how the CPU can access the memory.
    pub fn kind(&self) -> Type {
        self.raw.kind()
    }

    /// Returns whom the pages are marked with.
    pub fn owner(&self) -> &Arc<Owner> {
        self.raw.owner()
    }

    /// Returns the physical address of a page. It means something to the CPU for coherent memory only.
    pub fn phys(&self, offset: usize) -> Option<PhysAddr> {
        self.raw.phys(offset)
    }

    /// Returns the page at a physical address, if it is one of ours.
    pub fn offset_of_phys(&self, phys: PhysAddr) -> Option<usize> {
        // CAST: A page frame number fits into a `usize`.
        self.raw.offset((phys >> PAGE_SHIFT) as usize)
    }

    /// Returns the page that a migration has found, if it is one of ours.
    pub fn offset_of(&self, page: &DevicePage<'_>) -> Option<usize> {
        self.raw.offset(page.pfn())
    }

    /// Returns the number of pages in use. It may be called in any context.
    pub fn used(&self) -> usize {
        self.raw.used().count()
    }

    /// Returns the number of pages in use among `pages`. It may be called in any context.
    pub fn used_in(&self, pages: Range<usize>) -> usize {
        self.raw.used().count_in(pages)
    }

    /// Returns whether a page is in use. It may be called in any context.
    pub fn is_used(&self, offset: usize) -> bool {
        self.raw.used().contains(offset)
    }

    /// Makes the free pages at `offset` the destination of a migration: a folio of `1 << order` pages.
    ///
    /// Its content is whatever was there before. It may sleep, since it locks the folio, but it takes no
    /// lock otherwise.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: there are no such pages, they are not aligned, or `order` is neither 0 nor, for
    ///   private memory where [`LARGE`] folios are possible, [`PMD_ORDER`];
    /// - `EBUSY`: one of them is in use;
    /// - `ENODEV`: the pages are being unregistered.
    pub fn take(&self, offset: usize, order: u32) -> Result<Destination> {
        self.raw.take(offset, order)
    }

    /// Collects what is in use among `pages`, whoever has mapped it.
    ///
    /// This needs no address space, and works for those that are coming to an end. Folios that are
    /// locked or that somebody holds on to are left out, and so are those that are not mapped; look at
    /// [`Self::used_in`] and try again. So are large folios that are not inside of `pages` as a whole.
    ///
    /// Large folios move to large destinations only; see [`Self::split`].
    ///
    /// It sleeps. The reverse mapping takes locks of the core mm, and invalidates what devices have
    /// mapped; so it must not be called with a lock that a notifier callback takes.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: `pages` is empty, does not exist, or crosses a multiple of [`PMD_PAGES`];
    /// - `ENODEV`: the pages have been unregistered.
    pub fn collect<'a>(
        &'a self,
        pages: Range<usize>,
        buf: &'a mut Buffer,
    ) -> Result<Collected<'a>> {
        self.raw.collect(pages, buf)
    }

    /// Splits the mapped large folio that begins at `offset` into base pages, where it is.
    ///
    /// It sleeps, as [`Self::collect`].
    ///
    /// # Errors
    ///
    /// - `EINVAL`: there is no large folio that begins there;
    /// - `EBUSY`: it is not mapped;
    /// - `EAGAIN`: it is locked, or somebody else holds on to it;
    /// - `ENODEV`: the pages have been unregistered.
    pub fn split(&self, offset: usize) -> Result {
        self.raw.split(offset)
    }

    /// Refuses to have pages taken from now on.
    pub fn close(&self) {
        self.raw.close();
    }

    /// Unregisters the pages: there are none any more when this returns.
    ///
    /// It refuses new ones, and calls [`Ops::drain`] until none is in use. That can take as long as
    /// somebody holds on to a page; there is a message every ten seconds. It sleeps.
    pub fn unregister(&self) {
        // In milliseconds.
        const SHORTEST: i64 = 1;
        const LONGEST: i64 = 100;
        const MESSAGE: i64 = 10_000;

        let mut pause = SHORTEST;
        let mut waited = 0;

        self.close();
        while !self.raw.try_unregister() {
            self.data.drain(self);
            if self.raw.try_unregister() {
                return;
            }

            if waited >= MESSAGE {
                pr_warn!(
                    "{}: {} pages of device memory are held, waiting\n",
                    self.name,
                    self.used()
                );
                waited = 0;
            }
            fsleep(Delta::from_millis(pause));
            waited += pause;
            pause = (2 * pause).min(LONGEST);
        }
    }
}

impl<T: Ops> Deref for Pagemap<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.data
    }
}

#[pinned_drop]
impl<T: Ops> PinnedDrop for Pagemap<T> {
    fn drop(self: Pin<&mut Self>) {
        self.unregister();
    }
}
