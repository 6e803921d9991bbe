// SPDX-License-Identifier: GPL-2.0

//! A device whose memory is memory of the kernel, and a process whose pages move there.

use super::super::*;
use crate::{
    device::{
        Bound,
        Device, //
    },
    error::from_err_ptr,
    io::PhysAddr,
    kunit::mm::*,
    mm::{
        pagemap::{
            Fault,
            Freed,
            Handled,
            Ops,
            Owner,
            Pagemap,
            Place,
            Type,
            PMD_PAGES, //
        },
        MmWithUser, //
    },
    page::{
        BorrowedPage,
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    sizes::SZ_16M,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};
use core::{
    ops::Range,
    ptr::NonNull, //
};

/// The words of a page.
pub(super) const WORDS: usize = PAGE_SIZE / size_of::<u64>();

/// How many pages the device has: two windows, where those are small enough to test with.
pub(super) const MEMORY: usize = if SMALL {
    2 * PMD_PAGES
} else {
    SZ_16M / PAGE_SIZE
};

/// Whether a large folio is small enough to test with. It is 512 MiB with pages of 64 KiB.
pub(super) const SMALL: bool = WINDOW <= SZ_16M;

/// The first window of the memory of the device.
pub(super) const BLOCK: Range<usize> = 0..if SMALL { PMD_PAGES } else { MEMORY };

/// A device of the current test, which KUnit removes at the end of the test. Once per test.
pub(super) fn device() -> Result<&'static Device<Bound>> {
    // SAFETY: There are no requirements.
    let test = unsafe { bindings::kunit_get_current_test() };
    // SAFETY: This is called in tests only, so `test` is valid.
    let dev =
        from_err_ptr(unsafe { bindings::kunit_device_register(test, c"migrate".as_char_ptr()) })?;
    // SAFETY: It is valid and bound until the end of the test, and so of all who use it.
    Ok(unsafe { Device::from_raw(dev) })
}

/// What a page fault of the CPU does.
#[derive(Copy, Clone, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum OnFault {
    /// Brings the page back, with some around it.
    Migrate,
    /// As that, but there are no large folios in system memory.
    NoLarge,
    /// Waits once.
    Wait,
    Sigbus,
}

/// The memory of a device.
pub(super) struct Memory {
    words: KVVec<Atomic<u64>>,
    on_fault: Atomic<u32>,
    pub(super) faults: Atomic<u32>,
    pub(super) waits: Atomic<u32>,
    pub(super) splits: Atomic<u32>,
    pub(super) freed: Atomic<u64>,
    pub(super) drains: Atomic<u32>,
}

/// How many bytes around the address a page fault brings back.
pub(super) const FAULT_AROUND: usize = 4 * PAGE_SIZE;

impl Memory {
    fn new() -> Result<Self> {
        let len = MEMORY * WORDS;
        let mut words = KVVec::with_capacity(len, GFP_KERNEL)?;
        for _ in 0..len {
            // What is not copied or zeroed shows.
            words.push(Atomic::new(u64::MAX), GFP_KERNEL)?;
        }

        Ok(Self {
            words,
            on_fault: Atomic::new(OnFault::Migrate as u32),
            faults: Atomic::new(0),
            waits: Atomic::new(0),
            splits: Atomic::new(0),
            freed: Atomic::new(0),
            drains: Atomic::new(0),
        })
    }

    pub(super) fn on_fault(&self, what: OnFault) {
        self.on_fault.store(what as u32, Relaxed);
    }

    fn does(&self, what: OnFault) -> bool {
        self.on_fault.load(Relaxed) == what as u32
    }

    /// The first word of a page.
    pub(super) fn word(&self, offset: usize) -> Option<u64> {
        Some(self.words.get(offset * WORDS)?.load(Relaxed))
    }

    fn page(&self, offset: usize) -> Result<&[Atomic<u64>]> {
        self.words
            .get(offset * WORDS..(offset + 1) * WORDS)
            .ok_or(EINVAL)
    }
}

impl Ops for Memory {
    fn folio_free(&self, folio: Freed) {
        self.freed.add(1 << folio.order, Relaxed);
    }

    fn folio_split(&self, head: usize, tail: usize) {
        if head / PMD_PAGES == tail / PMD_PAGES && head < tail {
            self.splits.add(1, Relaxed);
        }
    }

    fn migrate_to_ram(&self, fault: &Fault<'_, Self>) -> Handled {
        self.faults.add(1, Relaxed);
        if self.does(OnFault::Sigbus) {
            return Handled::Sigbus;
        }
        if self.does(OnFault::Wait) && fault.may_wait() {
            self.on_fault(OnFault::Migrate);
            self.waits.add(1, Relaxed);
            return Handled::Wait(1);
        }

        let large = !self.does(OnFault::NoLarge);
        let start = fault.address() & !(FAULT_AROUND - 1);
        let moved = Buffer::new(GFP_KERNEL).and_then(|mut buf| {
            let collected = fault.collect(start..start + FAULT_AROUND, &mut buf)?;
            move_out(collected, fault.map(), large)
        });

        match moved {
            // Somebody else was faster, or else it is a folio that must be split first.
            Ok(0) if fault.order() > 0 => {
                let _ = fault.split();
                Handled::Done
            }
            Ok(_) => Handled::Done,
            Err(_) => Handled::OutOfMemory,
        }
    }

    fn drain(&self, map: &Pagemap<Self>) {
        self.drains.add(1, Relaxed);
        let _ = evict(map);
    }
}

/// The page at a physical address.
fn page_at(phys: PhysAddr) -> Result<BorrowedPage<'static>> {
    let pfn = (phys >> PAGE_SHIFT) as usize;
    // SAFETY: Any number is allowed.
    let page = NonNull::new(unsafe { bindings::pfn_to_online_page(pfn) }).ok_or(EFAULT)?;
    // SAFETY: The page is system memory that the tests do not free while they look at it.
    Ok(unsafe { BorrowedPage::from_raw(page) })
}

/// Copies from a page of the device to a page of the system.
fn copy_out(memory: &Memory, offset: usize, phys: PhysAddr) -> Result {
    let page = page_at(phys)?;

    for (index, word) in memory.page(offset)?.iter().enumerate() {
        let word = word.load(Relaxed);
        // SAFETY: The source is valid. Nobody else knows the destination yet.
        unsafe { page.write_raw((&raw const word).cast(), index * 8, 8) }?;
    }
    Ok(())
}

/// Copies from a page of the system to a page of the device.
fn copy_in(memory: &Memory, phys: PhysAddr, offset: usize) -> Result {
    let page = page_at(phys)?;

    for (index, to) in memory.page(offset)?.iter().enumerate() {
        let mut word = 0u64;
        // SAFETY: The destination is valid. The page is locked and not mapped.
        unsafe { page.read_raw((&raw mut word).cast(), index * 8, 8) }?;
        to.store(word, Relaxed);
    }
    Ok(())
}

/// Copies everything that is to be copied, as a device would.
pub(super) fn copy_all(populated: &Populated<'_>, map: &Pagemap<Memory>) -> Result {
    for copy in populated.copies() {
        for page in 0..1 << copy.entry.order {
            let dst = copy.dst + ((page as PhysAddr) << PAGE_SHIFT);

            match copy.entry.source {
                Source::Hole => {
                    let offset = map.offset_of_phys(dst).ok_or(EINVAL)?;
                    for word in map.page(offset)? {
                        word.store(0, Relaxed);
                    }
                }
                Source::System { phys, .. } => {
                    let phys = phys + ((page as PhysAddr) << PAGE_SHIFT);
                    copy_in(map, phys, map.offset_of_phys(dst).ok_or(EINVAL)?)?;
                }
                Source::Device(device) => {
                    let offset = map.offset_of(&device).ok_or(EINVAL)? + page;
                    copy_out(map, offset, dst)?;
                }
            }
        }
    }
    Ok(())
}

/// Brings back what was collected. Returns the number of pages that moved.
pub(super) fn move_out(
    collected: Collected<'_>,
    map: &Pagemap<Memory>,
    large: bool,
) -> Result<usize> {
    let populated = collected.populate_system(SystemAlloc {
        large,
        nofail: false,
    });

    copy_all(&populated, map)?;
    Ok(populated.commit().finish())
}

/// Brings back everything, whoever has it.
pub(super) fn evict(map: &Pagemap<Memory>) -> Result<usize> {
    let mut buf = Buffer::new(GFP_KERNEL)?;
    let mut moved = 0;

    for start in (0..MEMORY).step_by(PMD_PAGES) {
        let pages = start..MEMORY.min(start + PMD_PAGES);
        moved += move_out(map.collect(pages, &mut buf)?, map, true)?;
    }
    Ok(moved)
}

/// The simplest allocator: what is free.
pub(super) fn take(map: &Pagemap<Memory>, order: u32) -> Option<Destination> {
    let step = 1 << order;

    (0..MEMORY)
        .step_by(step)
        .find(|offset| map.used_in(*offset..*offset + step) == 0)
        .and_then(|offset| map.take(offset, order).ok())
}

/// A process, and a device.
pub(super) struct Fixture {
    pub(super) mm: ARef<MmWithUser>,
    pub(super) map: Arc<Pagemap<Memory>>,
    pub(super) buf: Buffer,
}

impl Fixture {
    pub(super) fn new() -> Result<Self> {
        Self::with(device()?, Type::Private, Place::Free(MEMORY * PAGE_SIZE))
    }

    pub(super) fn with(dev: &Device<Bound>, kind: Type, place: Place) -> Result<Self> {
        let map = Pagemap::new(
            dev,
            c"kunit-migrate",
            kind,
            place,
            Owner::new(GFP_KERNEL)?,
            Memory::new()?,
        );

        Ok(Self {
            mm: attach_mm()?,
            map: Arc::pin_init(map, GFP_KERNEL)?,
            buf: Buffer::new(GFP_KERNEL)?,
        })
    }

    pub(super) fn owner(&self) -> Arc<Owner> {
        self.map.owner().clone()
    }

    /// Collects system memory.
    pub(super) fn collect_system<R>(
        &mut self,
        span: Range<usize>,
        f: impl FnOnce(Collected<'_>, &Pagemap<Memory>) -> R,
    ) -> Result<R> {
        let owner = self.owner();
        let request = Request {
            system: true,
            private: false,
            coherent: false,
            large: true,
            owner: &owner,
        };
        let mmap = self.mm.mmap_read_lock();

        let collected = collect(&mmap, span, &request, &mut self.buf)?;
        Ok(f(collected, &self.map))
    }

    /// Collects device memory.
    pub(super) fn collect_device<R>(
        &mut self,
        span: Range<usize>,
        f: impl FnOnce(Collected<'_>, &Pagemap<Memory>) -> R,
    ) -> Result<R> {
        let owner = self.owner();
        let request = Request {
            system: false,
            private: self.map.kind() == Type::Private,
            coherent: self.map.kind() == Type::Coherent,
            large: true,
            owner: &owner,
        };
        let mmap = self.mm.mmap_read_lock();

        let collected = collect(&mmap, span, &request, &mut self.buf)?;
        Ok(f(collected, &self.map))
    }

    /// Moves what can move to the device. Returns the number of pages that did.
    pub(super) fn move_in(&mut self, span: Range<usize>) -> Result<usize> {
        self.collect_system(span, |collected, map| {
            let populated = collected.populate(|entry| take(map, entry.order));

            copy_all(&populated, map)?;
            Ok(populated.commit().finish())
        })?
    }

    /// Moves what can move to the system. Returns the number of pages that did.
    pub(super) fn move_out(&mut self, span: Range<usize>, large: bool) -> Result<usize> {
        self.collect_device(span, |collected, map| move_out(collected, map, large))?
    }
}

/// Maps pages that are written to: the first word of each is its number plus `seed`.
pub(super) fn written(pages: usize, seed: u64) -> Result<Range<usize>> {
    // Never more than one window, and not in large folios.
    let addr = vm_mmap_aligned(WINDOW, WINDOW, PROT_RW)?;
    madvise(addr, WINDOW, Advice::NoHugePage)?;
    write_pages(addr..addr + pages * PAGE_SIZE, seed)
}

/// As [`written`], in one large folio.
pub(super) fn written_large(seed: u64) -> Result<Range<usize>> {
    let addr = vm_mmap_aligned(WINDOW, WINDOW, PROT_RW)?;
    madvise(addr, WINDOW, Advice::HugePage)?;
    write_pages(addr..addr + WINDOW, seed)
}

fn write_pages(span: Range<usize>, seed: u64) -> Result<Range<usize>> {
    for (page, addr) in span.clone().step_by(PAGE_SIZE).enumerate() {
        write_user(addr, seed + page as u64)?;
    }
    Ok(span)
}

/// Whether the pages are as [`written`] has left them.
pub(super) fn is_written(span: Range<usize>, seed: u64) -> bool {
    span.step_by(PAGE_SIZE)
        .enumerate()
        .all(|(page, addr)| read_user(addr) == Ok(seed + page as u64))
}
