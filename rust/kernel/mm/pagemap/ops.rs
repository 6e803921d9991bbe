// SPDX-License-Identifier: GPL-2.0

//! What the owner of a page map does.

use super::{
    Fault,
    Pagemap,
    Raw, //
};
use crate::{
    bindings,
    time::Jiffies, //
};
use core::marker::PhantomData;

/// A folio whose last reference is gone.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Freed {
    /// Its first page, in pages from the start of the page map.
    pub offset: usize,
    /// It has had `1 << order` pages.
    pub order: u32,
}

/// How a page fault of the CPU has ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Handled {
    /// The CPU shall try again: the page is in system memory now, or somebody else was faster.
    Done,
    /// The CPU shall try again after so many jiffies, which are waited for without the mmap lock.
    ///
    /// Where the fault does not permit that ([`Fault::may_wait`]) this is [`Self::Done`].
    Wait(Jiffies),
    /// There was no memory (`VM_FAULT_OOM`).
    OutOfMemory,
    /// The content is lost, the process gets a SIGBUS.
    Sigbus,
}

/// What the owner of device memory does for the core mm.
///
/// C: `struct dev_pagemap_ops`.
pub trait Ops: Sized + Send + Sync + 'static {
    /// The last reference of a folio is gone.
    ///
    /// Its pages can be [taken](Pagemap::take) again, even before this returns.
    ///
    /// # Context
    ///
    /// Atomic, with spinlocks of page tables held or interrupts disabled. It must not sleep or
    /// allocate.
    fn folio_free(&self, folio: Freed);

    /// `tail` has become a folio of one page, which it has been a part of the large folio at `head`.
    /// Both are in pages from the start of the page map.
    ///
    /// Called for each page of the large folio but the first one. Only private memory has large
    /// folios.
    ///
    /// # Context
    ///
    /// Atomic, with interrupts disabled and locks of the reverse mapping held.
    fn folio_split(&self, head: usize, tail: usize) {
        let _ = (head, tail);
    }

    /// The CPU has touched a page of private memory: it must become accessible.
    ///
    /// Use [`Fault::collect`]. The process is any one that maps the page: it has inherited it from a
    /// parent that may be gone.
    ///
    /// # Context
    ///
    /// The mmap lock is held for reading, and the folio is locked. It may sleep and allocate, but it
    /// must not access user memory or take a lock that is held while somebody does.
    fn migrate_to_ram(&self, fault: &Fault<'_, Self>) -> Handled;

    /// Pages are in use while the page map is being [unregistered](Pagemap::unregister): move some of
    /// them away with [`Pagemap::collect`].
    ///
    /// Called again and again, with a pause in between, until no page is in use. New pages are
    /// refused by then.
    ///
    /// # Context
    ///
    /// That of [`Pagemap::unregister`]. It may sleep.
    fn drain(&self, map: &Pagemap<Self>);
}

/// The callbacks of a type of page maps.
pub(super) struct Callbacks<T>(PhantomData<T>);

impl<T: Ops> Callbacks<T> {
    pub(super) const OPS: bindings::dev_pagemap_ops = bindings::dev_pagemap_ops {
        folio_free: Some(Self::folio_free),
        migrate_to_ram: Some(Self::migrate_to_ram),
        memory_failure: None,
        folio_split: Some(Self::folio_split),
    };

    /// # Safety
    ///
    /// `folio` is of a `Pagemap<T>` and was taken from it, so that it stays for `'a` at least.
    unsafe fn map<'a>(folio: *const bindings::folio) -> &'a Pagemap<T> {
        // SAFETY: By the requirement, the page map of the folio is that of a `Pagemap<T>`.
        unsafe { Pagemap::from_raw(Raw::from_inner(bindings::folio_pagemap(folio))) }
    }

    /// # Safety
    ///
    /// Called by the core mm when the last reference of a folio is gone.
    unsafe extern "C" fn folio_free(folio: *mut bindings::folio) {
        // SAFETY: The core mm waits for the end of this callback before it unregisters the page map.
        let map = unsafe { Self::map(folio) };
        // SAFETY: The core mm frees the folio now, which nobody else has a reference to.
        let freed = unsafe { map.raw().freed(folio) };

        map.folio_free(freed);
    }

    /// # Safety
    ///
    /// Called by the core mm for each folio of one page that it has split off a large one, and in the
    /// end without one.
    unsafe extern "C" fn folio_split(head: *mut bindings::folio, tail: *mut bindings::folio) {
        if tail.is_null() {
            return;
        }
        // SAFETY: The folio has a reference.
        let map = unsafe { Self::map(head) };
        // SAFETY: Both are valid, and nobody else uses the new one yet.
        let (head, tail) = unsafe { map.raw().split_off(head, tail) };

        map.folio_split(head, tail);
    }

    /// # Safety
    ///
    /// Called by the core mm for a page fault, with `vmf->page` locked and a reference to it.
    unsafe extern "C" fn migrate_to_ram(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: By the requirement there is a page, which is one of a `Pagemap<T>`.
        let map = unsafe { Self::map(bindings::page_folio((*vmf).page)) };
        // SAFETY: The fault is one for a page of this map. It lives until the callback returns.
        let fault = unsafe { Fault::new(vmf, map) };

        match map.migrate_to_ram(&fault) {
            Handled::Done => 0,
            Handled::Wait(jiffies) => fault.wait(jiffies),
            Handled::OutOfMemory => bindings::vm_fault_reason_VM_FAULT_OOM,
            Handled::Sigbus => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
        }
    }
}
