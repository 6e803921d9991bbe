// SPDX-License-Identifier: GPL-2.0

//! User memory in KUnit tests.
//!
//! A KUnit test runs in a kernel thread without an address space. [`attach_mm`] gives it one, in
//! which it can map, change and access memory like a process does with system calls. The address
//! space ends with the test's thread.
//!
//! A failed assertion ends the thread without unwinding. So what is registered with the address
//! space must be on the heap, not on the stack, and no assertion may be made with a lock held.
//!
//! # Examples
//!
//! ```
//! use kernel::{
//!     kunit::mm::*,
//!     page::PAGE_SIZE, //
//! };
//!
//! let _mm = attach_mm()?;
//! let addr = vm_mmap(0, 2 * PAGE_SIZE, PROT_RW, PRIVATE)?;
//!
//! write_user(addr, 42)?;
//! assert_eq!(read_user(addr), Ok(42));
//! madvise(addr, PAGE_SIZE, Advice::DontNeed)?;
//! assert_eq!(read_user(addr), Ok(0));
//! vm_munmap(addr, 2 * PAGE_SIZE)?;
//! assert!(read_user(addr).is_err());
//! # Ok::<(), Error>(())
//! ```
//!
//! C: [`lib/kunit/user_alloc.c`](srctree/lib/kunit/user_alloc.c)

use crate::{
    bindings,
    error::to_result,
    mm::MmWithUser,
    page::PAGE_SIZE,
    prelude::*,
    sync::aref::ARef,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};
use core::ptr::NonNull;

/// Memory can be read.
pub const PROT_READ: usize = bindings::PROT_READ as usize;
/// Memory can be written.
pub const PROT_WRITE: usize = bindings::PROT_WRITE as usize;
/// Memory cannot be accessed.
pub const PROT_NONE: usize = bindings::PROT_NONE as usize;
/// Memory can be read and written.
pub const PROT_RW: usize = PROT_READ | PROT_WRITE;

/// Private memory without a file.
pub const PRIVATE: usize = (bindings::MAP_PRIVATE | bindings::MAP_ANONYMOUS) as usize;
/// Shared memory without a file.
pub const SHARED: usize = (bindings::MAP_SHARED | bindings::MAP_ANONYMOUS) as usize;

/// What [`madvise`] can advise.
#[derive(Copy, Clone, Debug)]
#[repr(u32)]
pub enum Advice {
    /// The content is not needed any more.
    DontNeed = bindings::MADV_DONTNEED,
    /// Huge pages shall be used.
    HugePage = bindings::MADV_HUGEPAGE,
    /// Huge pages shall not be used.
    NoHugePage = bindings::MADV_NOHUGEPAGE,
    /// Pages shall be collapsed into a huge page now.
    Collapse = bindings::MADV_COLLAPSE,
    /// The content shall be written to swap.
    PageOut = bindings::MADV_PAGEOUT,
    /// The memory shall be treated as if it had a hardware error.
    HwPoison = bindings::MADV_HWPOISON,
    /// Access shall end with a signal, without a VMA of its own.
    GuardInstall = bindings::MADV_GUARD_INSTALL,
    /// The end of that.
    GuardRemove = bindings::MADV_GUARD_REMOVE,
}

/// Gives the current test an address space of its own, if it does not have one.
///
/// Dropping the last reference while the thread is alive does not end it.
pub fn attach_mm() -> Result<ARef<MmWithUser>> {
    // SAFETY: This may be called in any thread. It does nothing if there already is an mm.
    to_result(unsafe { bindings::kunit_attach_mm() })?;

    current_mm()
}

/// Creates an address space that no task runs in. It ends with its last reference.
pub fn new_mm() -> Result<ARef<MmWithUser>> {
    // SAFETY: This may be called in process context.
    let mm = NonNull::new(unsafe { bindings::mm_alloc() }).ok_or(ENOMEM)?;

    // SAFETY: The new mm has one user, which we hand over. `MmWithUser` is transparent.
    Ok(unsafe { ARef::from_raw(mm.cast()) })
}

/// The address space of the current task; `EINVAL` if it has none.
fn current_mm() -> Result<ARef<MmWithUser>> {
    current!().mm().map(ARef::from).ok_or(EINVAL)
}

/// Maps `len` bytes of memory without a file, at `addr` or, if that is 0 or in use, somewhere else.
pub fn vm_mmap(addr: usize, len: usize, prot: usize, flags: usize) -> Result<usize> {
    current_mm()?;

    // SAFETY: The current task has an mm. There is no file.
    let addr = unsafe { bindings::vm_mmap(core::ptr::null_mut(), addr, len, prot, flags, 0) };
    // CAST: As in `IS_ERR_VALUE()`, the last values of the address space are negative errors.
    let error = addr as isize;
    if error < 0 && error >= -(bindings::MAX_ERRNO as isize) {
        return Err(Error::from_errno(error as c_int));
    }
    Ok(addr)
}

/// Maps `len` bytes of private memory at an address that is a multiple of `align`, a power of two.
pub fn vm_mmap_aligned(len: usize, align: usize, prot: usize) -> Result<usize> {
    let room = len.checked_add(align).ok_or(EINVAL)?;
    let addr = vm_mmap(0, room, prot, PRIVATE)?;
    let start = addr.checked_next_multiple_of(align).ok_or(EINVAL)?;

    if start > addr {
        vm_munmap(addr, start - addr)?;
    }
    if addr + room > start + len {
        vm_munmap(start + len, addr + room - (start + len))?;
    }
    Ok(start)
}

/// Unmaps memory.
pub fn vm_munmap(addr: usize, len: usize) -> Result {
    current_mm()?;

    // SAFETY: The current task has an mm; user addresses may be unmapped at any time.
    to_result(unsafe { bindings::vm_munmap(addr, len) })
}

/// Changes the protection of memory inside of one VMA. `addr` and `len` must be page aligned.
pub fn mprotect(addr: usize, len: usize, prot: usize) -> Result {
    current_mm()?;
    if addr % PAGE_SIZE != 0 || len % PAGE_SIZE != 0 || len == 0 || addr.checked_add(len).is_none()
    {
        return Err(EINVAL);
    }

    // SAFETY: The current task has an mm and the range has been checked.
    to_result(unsafe { bindings::kunit_mprotect(addr, len, prot) })
}

/// Gives advice about the use of memory.
pub fn madvise(addr: usize, len: usize, advice: Advice) -> Result {
    let mm = current_mm()?;

    // SAFETY: The mm has a user. The function checks the range.
    to_result(unsafe { bindings::do_madvise(mm.as_raw(), addr, len, advice as c_int) })
}

/// Says that the OOM reaper takes the memory of `mm` away, or that it does not.
pub fn set_unstable(mm: &MmWithUser, unstable: bool) {
    // SAFETY: The mm is valid, and its flags may be changed at any time.
    unsafe { bindings::kunit_mm_set_unstable(mm.as_raw(), unstable) };
}

/// Reads from memory, with a page fault if needed.
pub fn read_user(addr: usize) -> Result<u64> {
    current_mm()?;

    UserSlice::new(UserPtr::from_addr(addr), size_of::<u64>())
        .reader()
        .read::<u64>()
}

/// Writes to memory, with a page fault if needed.
pub fn write_user(addr: usize, value: u64) -> Result {
    current_mm()?;

    UserSlice::new(UserPtr::from_addr(addr), size_of::<u64>())
        .writer()
        .write(&value)
}

/// Marks the current test as skipped. It should return after that.
pub fn skip(reason: &CStr) {
    // SAFETY: This may be called in any context.
    let test = unsafe { bindings::kunit_get_current_test() };
    if !test.is_null() {
        // SAFETY: It is the test of the current thread; the reason is copied.
        unsafe { bindings::kunit_mark_skipped(test, reason.as_char_ptr()) };
    }
}
