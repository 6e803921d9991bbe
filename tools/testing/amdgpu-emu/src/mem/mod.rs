// SPDX-License-Identifier: GPL-2.0

//! Memory that the GPU can reach: the guest's RAM by DMA address, and its own VRAM by offset.
//!
//! Both are shared with QEMU, whose CPUs access them at the same time. The guest decides every
//! address, so each access is checked and an error says which address it was.

use std::fmt;

mod ram;
mod test;
mod vram;

pub use ram::GuestRam;
pub use test::TestMemory;
pub use vram::Vram;

/// Why a memory access failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemErrorKind {
    /// Part of it is not memory, or memory that the guest took away.
    Unmapped,
    /// An atomic access that is not aligned to its size.
    Unaligned,
}

/// A memory access that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemError {
    /// Why.
    pub kind: MemErrorKind,
    /// The first address of the access.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u64,
}

impl MemError {
    pub(crate) fn unmapped(addr: u64, len: usize) -> Self {
        Self { kind: MemErrorKind::Unmapped, addr, len: len as u64 }
    }

    pub(crate) fn unaligned(addr: u64, len: usize) -> Self {
        Self { kind: MemErrorKind::Unaligned, addr, len: len as u64 }
    }
}

impl fmt::Display for MemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            MemErrorKind::Unmapped => "not memory",
            MemErrorKind::Unaligned => "not aligned",
        };
        write!(f, "{:#x} (length {:#x}): {what}", self.addr, self.len)
    }
}

impl std::error::Error for MemError {}

/// Memory with addresses; [`GuestRam`] by DMA address, [`Vram`] by offset.
pub trait Memory: Send + Sync {
    /// Reads bytes; nothing is known about `to` after an error.
    fn read(&self, addr: u64, to: &mut [u8]) -> Result<(), MemError>;

    /// Writes bytes; a part may have been written when this fails.
    fn write(&self, addr: u64, from: &[u8]) -> Result<(), MemError>;

    /// Reads an aligned dword in one access (acquire).
    fn load32(&self, addr: u64) -> Result<u32, MemError>;

    /// Reads an aligned quadword in one access (acquire).
    fn load64(&self, addr: u64) -> Result<u64, MemError>;

    /// Writes an aligned dword in one access (release).
    fn store32(&self, addr: u64, value: u32) -> Result<(), MemError>;

    /// Writes an aligned quadword in one access (release).
    fn store64(&self, addr: u64, value: u64) -> Result<(), MemError>;

    /// Is there memory at all of these bytes?
    fn contains(&self, addr: u64, len: u64) -> bool;
}

/// The offset of `addr` in a piece of memory `[base, base + size)` that holds `len` bytes from it.
pub(crate) fn offset_in(base: u64, size: u64, addr: u64, len: u64) -> Option<u64> {
    let offset = addr.checked_sub(base)?;
    (offset.checked_add(len)? <= size).then_some(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_do_not_wrap() {
        assert_eq!(offset_in(0x1000, 0x1000, 0x1ff0, 0x10), Some(0xff0));
        assert_eq!(offset_in(0x1000, 0x1000, 0x1ff0, 0x11), None);
        assert_eq!(offset_in(0x1000, 0x1000, 0xfff, 1), None);
        assert_eq!(offset_in(0x1000, u64::MAX, 0x1001, u64::MAX), None);
    }
}
