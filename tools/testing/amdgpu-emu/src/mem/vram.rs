// SPDX-License-Identifier: GPL-2.0

//! The GPU's own memory: an anonymous file that QEMU maps as BAR 0.

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;

use rustix::fs::{memfd_create, MemfdFlags};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

use super::{offset_in, MemError, Memory};

/// An anonymous file of zeros.
pub(crate) fn memory_file(name: &str, size: u64) -> io::Result<File> {
    let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.set_len(size)?;
    Ok(file)
}

/// The GPU's memory by offset.
pub struct Vram {
    file: File,
    region: MmapRegion<()>,
}

impl Vram {
    /// Memory of `size` bytes, all zero.
    ///
    /// # Errors
    ///
    /// If the system has not so much memory, or no more files.
    pub fn new(size: u64) -> io::Result<Self> {
        let file = memory_file("vram", size)?;
        let length = usize::try_from(size).map_err(io::Error::other)?;
        let region = MmapRegion::from_file(FileOffset::new(file.try_clone()?, 0), length)
            .map_err(io::Error::other)?;
        Ok(Self { file, region })
    }

    /// The file, for the client to map.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The size in bytes.
    pub fn size(&self) -> u64 {
        self.region.size() as u64
    }

    fn offset(&self, addr: u64, len: usize) -> Result<usize, MemError> {
        offset_in(0, self.size(), addr, len as u64)
            .and_then(|offset| usize::try_from(offset).ok())
            .ok_or(MemError::unmapped(addr, len))
    }
}

impl Memory for Vram {
    fn read(&self, addr: u64, to: &mut [u8]) -> Result<(), MemError> {
        let fault = MemError::unmapped(addr, to.len());
        let offset = self.offset(addr, to.len())?;
        self.region.as_volatile_slice().read_slice(to, offset).map_err(|_| fault)
    }

    fn write(&self, addr: u64, from: &[u8]) -> Result<(), MemError> {
        let offset = self.offset(addr, from.len())?;
        let fail = |_| MemError::unmapped(addr, from.len());
        self.region.as_volatile_slice().write_slice(from, offset).map_err(fail)
    }

    fn load32(&self, addr: u64) -> Result<u32, MemError> {
        let offset = self.offset(addr, 4)?;
        let fail = |_| MemError::unaligned(addr, 4);
        self.region.as_volatile_slice().load(offset, Ordering::Acquire).map_err(fail)
    }

    fn load64(&self, addr: u64) -> Result<u64, MemError> {
        let offset = self.offset(addr, 8)?;
        let fail = |_| MemError::unaligned(addr, 8);
        self.region.as_volatile_slice().load(offset, Ordering::Acquire).map_err(fail)
    }

    fn store32(&self, addr: u64, value: u32) -> Result<(), MemError> {
        let offset = self.offset(addr, 4)?;
        let fail = |_| MemError::unaligned(addr, 4);
        self.region.as_volatile_slice().store(value, offset, Ordering::Release).map_err(fail)
    }

    fn store64(&self, addr: u64, value: u64) -> Result<(), MemError> {
        let offset = self.offset(addr, 8)?;
        let fail = |_| MemError::unaligned(addr, 8);
        self.region.as_volatile_slice().store(value, offset, Ordering::Release).map_err(fail)
    }

    fn contains(&self, addr: u64, len: u64) -> bool {
        offset_in(0, self.size(), addr, len).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_the_end() {
        let vram = Vram::new(0x2000).unwrap();
        vram.store64(0x1ff8, 0x0102_0304_0506_0708).unwrap();
        assert_eq!(vram.load32(0x1ffc).unwrap(), 0x0102_0304);
        assert!(vram.load32(0x2000).is_err());
        assert!(vram.store32(u64::MAX - 3, 0).is_err());
        assert!(vram.write(0x1fff, &[1, 2]).is_err());
        assert_eq!(vram.load32(2), Err(MemError::unaligned(2, 4)));
    }
}
