// SPDX-License-Identifier: GPL-2.0

//! A page fault of the CPU on device memory.

use super::{
    Ops,
    Pagemap,
    PMD_ORDER, //
};
use crate::{
    bindings,
    error::to_result,
    mm::{
        migrate::{
            Buffer,
            Collected,
            Request,
            WINDOW, //
        },
        virt::VmaRef,
        MmWithUser, //
    },
    page::PAGE_SIZE,
    prelude::*,
    time::Jiffies,
    types::NotThreadSafe, //
};
use core::{
    ops::Range,
    ptr::NonNull, //
};

/// A page fault of the CPU on a page of private device memory.
///
/// # Invariants
///
/// `vmf` is a fault that is being handled by the current task, with the mmap lock held for reading. Its
/// page is of `map`, it is locked, and there is a reference to it.
pub struct Fault<'a, T: Ops> {
    vmf: NonNull<bindings::vm_fault>,
    map: &'a Pagemap<T>,
    _nts: NotThreadSafe,
}

impl<'a, T: Ops> Fault<'a, T> {
    /// # Safety
    ///
    /// As the type invariants say, for the life of the result.
    pub(super) unsafe fn new(vmf: *mut bindings::vm_fault, map: &'a Pagemap<T>) -> Self {
        // INVARIANT: By the requirement.
        Self {
            // SAFETY: A fault is not null.
            vmf: unsafe { NonNull::new_unchecked(vmf) },
            map,
            _nts: NotThreadSafe,
        }
    }

    fn vmf(&self) -> &bindings::vm_fault {
        // SAFETY: By the type invariants it is valid. The core mm does not change it meanwhile.
        unsafe { self.vmf.as_ref() }
    }

    fn vma(&self) -> &VmaRef {
        // SAFETY: The VMA of a fault stays as long as the mmap lock is held.
        unsafe { VmaRef::from_raw(self.vmf().__bindgen_anon_1.vma) }
    }

    /// The page map that the page belongs to.
    pub fn map(&self) -> &'a Pagemap<T> {
        self.map
    }

    /// The address that the CPU has touched, rounded down to a page.
    pub fn address(&self) -> usize {
        self.vmf().__bindgen_anon_1.address & !(PAGE_SIZE - 1)
    }

    /// Whether the CPU wants to write.
    pub fn write(&self) -> bool {
        self.vmf().flags & bindings::fault_flag_FAULT_FLAG_WRITE != 0
    }

    /// The page at [`Self::address`], in pages from the start of the page map.
    pub fn offset(&self) -> usize {
        // SAFETY: By the type invariants, the page is one of the map.
        let pfn = unsafe { bindings::page_to_pfn(self.vmf().page) };
        let head = self.map.raw().offset(pfn).unwrap_or_default();

        match self.order() {
            0 => head,
            // A huge entry names the first page of what it maps.
            _ => head + (self.address() % WINDOW) / PAGE_SIZE,
        }
    }

    /// [`PMD_ORDER`](super::PMD_ORDER) if one huge entry of the CPU page table maps a large folio here, 0
    /// otherwise.
    pub fn order(&self) -> u32 {
        if self.vmf().pte.is_null() {
            PMD_ORDER
        } else {
            0
        }
    }

    /// The addresses of the VMA.
    pub fn vma_span(&self) -> Range<usize> {
        self.vma().start()..self.vma().end()
    }

    /// The address space.
    pub fn mm(&self) -> &MmWithUser {
        self.vma().mm()
    }

    /// Whether the fault may wait without the mmap lock and be tried again, as
    /// [`Handled::Wait`](super::Handled::Wait) asks for. That is so once per fault.
    pub fn may_wait(&self) -> bool {
        let flags = self.vmf().flags;
        let allowed = bindings::fault_flag_FAULT_FLAG_ALLOW_RETRY;
        let spent =
            bindings::fault_flag_FAULT_FLAG_TRIED | bindings::fault_flag_FAULT_FLAG_RETRY_NOWAIT;

        flags & (allowed | spent) == allowed
    }

    /// Collects private pages of this owner around the touched one.
    ///
    /// As [`migrate::collect`](crate::mm::migrate::collect), for private memory. `span` is clipped to
    /// the VMA and to the [`WINDOW`] that the address is in; and if the page is part of a large folio
    /// that is mapped by one entry, then it is the whole window, since such a folio moves as one.
    ///
    /// Without a large destination, such a folio cannot be moved page by page while the fault holds
    /// on to it: [split](Self::split) it, and let the CPU try again.
    ///
    /// # Errors
    ///
    /// `EINVAL`: `span` is not page aligned or does not contain the address.
    pub fn collect<'b>(&'b self, span: Range<usize>, buf: &'b mut Buffer) -> Result<Collected<'b>> {
        let address = self.address();
        if !span.contains(&address) {
            return Err(EINVAL);
        }

        let start = address & !(WINDOW - 1);
        // OVERFLOW: There is no user memory at the end of the address space.
        let window = start..start + WINDOW;
        let vma = self.vma_span();
        let span = match self.order() {
            0 => span.start.max(window.start).max(vma.start)..span.end.min(window.end).min(vma.end),
            _ => window,
        };
        let request = Request {
            system: false,
            private: true,
            coherent: false,
            large: true,
            owner: self.map.owner(),
        };
        // SAFETY: By the type invariants, the mmap lock is held as long as this fault is there, and
        // the page is locked.
        unsafe { Collected::from_vma(self.vma(), span, &request, self.vmf().page, buf) }
    }

    /// Splits the large folio that one entry maps here into base pages, where it is.
    ///
    /// Let the CPU try again after that ([`Handled::Done`](super::Handled::Done)).
    ///
    /// # Errors
    ///
    /// - `EINVAL`: there is no large folio (any more);
    /// - `EAGAIN`, `EBUSY`: somebody else is using it.
    pub fn split(&self) -> Result {
        if self.order() == 0 {
            return Err(EINVAL);
        }
        // SAFETY: By the type invariants, the page is locked, with a reference of the fault. A huge
        // entry names the first page, which is what stays locked.
        to_result(unsafe { bindings::migrate_fault_split(bindings::page_folio(self.vmf().page)) })
    }

    /// Waits as [`Handled::Wait`](super::Handled::Wait) says, and returns the result of the fault.
    pub(super) fn wait(self, jiffies: Jiffies) -> bindings::vm_fault_t {
        if !self.may_wait() {
            return 0;
        }
        // SAFETY: By the type invariants, the page is locked and the mmap lock is held. The former is
        // so again afterwards. The latter is not, which is what the result says; and this is the last
        // use of the fault.
        unsafe { bindings::migrate_fault_wait(self.vmf.as_ptr(), jiffies) };
        bindings::vm_fault_reason_VM_FAULT_RETRY
    }
}
