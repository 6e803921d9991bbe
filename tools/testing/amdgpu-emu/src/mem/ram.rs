// SPDX-License-Identifier: GPL-2.0

//! The guest's RAM, as QEMU shares it: pieces of files mapped at DMA addresses.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

use super::{offset_in, MemError, Memory};

/// A mapping at a DMA address.
struct Piece {
    region: MmapRegion<()>,
    writable: bool,
}

impl Piece {
    fn size(&self) -> u64 {
        self.region.size() as u64
    }
}

/// The guest's RAM by DMA address; filled by the client's DMA_MAP and DMA_UNMAP messages.
#[derive(Default)]
pub struct GuestRam {
    /// By first address; pieces never overlap.
    pieces: RwLock<BTreeMap<u64, Piece>>,
}

impl GuestRam {
    /// Guest memory without any piece.
    pub fn new() -> Self {
        Self::default()
    }

    fn pieces(&self) -> RwLockReadGuard<'_, BTreeMap<u64, Piece>> {
        self.pieces.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn pieces_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<u64, Piece>> {
        self.pieces.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps `size` bytes of a file from `offset` on at a DMA address.
    ///
    /// # Errors
    ///
    /// If the range is empty, wraps or overlaps another one, or the file cannot be mapped.
    pub fn map(
        &self,
        addr: u64,
        size: u64,
        file: File,
        offset: u64,
        writable: bool,
    ) -> io::Result<()> {
        let bad = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text.to_string());
        let end = addr.checked_add(size).ok_or_else(|| bad("the range wraps"))?;
        let length = usize::try_from(size).map_err(|_| bad("too large"))?;
        if length == 0 {
            return Err(bad("the range is empty"));
        }
        let mut pieces = self.pieces_mut();
        let below = pieces.range(..end).next_back();
        if below.is_some_and(|(base, piece)| base.saturating_add(piece.size()) > addr) {
            return Err(bad("the range overlaps another one"));
        }
        let region = MmapRegion::from_file(FileOffset::new(file, offset), length)
            .map_err(io::Error::other)?;
        pieces.insert(addr, Piece { region, writable });
        Ok(())
    }

    /// Takes away what is mapped inside a range; says how many bytes that were.
    pub fn unmap(&self, addr: u64, size: u64) -> u64 {
        let mut pieces = self.pieces_mut();
        let found: Vec<u64> = pieces
            .range(addr..)
            .take_while(|(base, piece)| offset_in(addr, size, **base, piece.size()).is_some())
            .map(|(base, _)| *base)
            .collect();
        found.iter().filter_map(|base| pieces.remove(base)).map(|piece| piece.size()).sum()
    }

    /// Calls `access` for each piece of memory in a range, with the piece's memory, the offset in
    /// it, and the part of the range.
    fn each<F>(&self, addr: u64, len: usize, write: bool, mut access: F) -> Result<(), MemError>
    where
        F: FnMut(&MmapRegion<()>, usize, std::ops::Range<usize>) -> Option<()>,
    {
        let fail = || MemError::unmapped(addr, len);
        let pieces = self.pieces();
        let mut done = 0;
        while done < len {
            let at = addr.checked_add(done as u64).ok_or_else(fail)?;
            let (base, piece) = pieces.range(..=at).next_back().ok_or_else(fail)?;
            let offset = offset_in(*base, piece.size(), at, 1).ok_or_else(fail)?;
            if write && !piece.writable {
                return Err(fail());
            }
            let offset = usize::try_from(offset).map_err(|_| fail())?;
            let part = (len - done).min(piece.region.size() - offset);
            access(&piece.region, offset, done..done + part).ok_or_else(fail)?;
            done += part;
        }
        Ok(())
    }
}

impl Memory for GuestRam {
    fn read(&self, addr: u64, to: &mut [u8]) -> Result<(), MemError> {
        self.each(addr, to.len(), false, |region, offset, part| {
            region.as_volatile_slice().read_slice(to.get_mut(part)?, offset).ok()
        })
    }

    fn write(&self, addr: u64, from: &[u8]) -> Result<(), MemError> {
        self.each(addr, from.len(), true, |region, offset, part| {
            region.as_volatile_slice().write_slice(from.get(part)?, offset).ok()
        })
    }

    fn load32(&self, addr: u64) -> Result<u32, MemError> {
        let mut value = Err(MemError::unaligned(addr, 4));
        self.each(addr, 4, false, |region, offset, _| {
            if let Ok(read) = region.as_volatile_slice().load(offset, Ordering::Acquire) {
                value = Ok(read);
            }
            Some(())
        })?;
        value
    }

    fn load64(&self, addr: u64) -> Result<u64, MemError> {
        let mut value = Err(MemError::unaligned(addr, 8));
        self.each(addr, 8, false, |region, offset, _| {
            if let Ok(read) = region.as_volatile_slice().load(offset, Ordering::Acquire) {
                value = Ok(read);
            }
            Some(())
        })?;
        value
    }

    fn store32(&self, addr: u64, value: u32) -> Result<(), MemError> {
        let mut stored = Err(MemError::unaligned(addr, 4));
        self.each(addr, 4, true, |region, offset, _| {
            stored = region
                .as_volatile_slice()
                .store(value, offset, Ordering::Release)
                .map_err(|_| MemError::unaligned(addr, 4));
            Some(())
        })?;
        stored
    }

    fn store64(&self, addr: u64, value: u64) -> Result<(), MemError> {
        let mut stored = Err(MemError::unaligned(addr, 8));
        self.each(addr, 8, true, |region, offset, _| {
            stored = region
                .as_volatile_slice()
                .store(value, offset, Ordering::Release)
                .map_err(|_| MemError::unaligned(addr, 8));
            Some(())
        })?;
        stored
    }

    fn contains(&self, addr: u64, len: u64) -> bool {
        let Ok(len) = usize::try_from(len) else { return false };
        self.each(addr, len, false, |_, _, _| Some(())).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::vram::memory_file;

    fn ram() -> GuestRam {
        let file = memory_file("test", 0x4000).unwrap();
        let ram = GuestRam::new();
        // Two neighbours whose order in the file is the other way round, as around QEMU's hole
        // below 4 GiB.
        ram.map(0x10000, 0x2000, file.try_clone().unwrap(), 0x2000, true).unwrap();
        ram.map(0x12000, 0x2000, file, 0, true).unwrap();
        ram
    }

    #[test]
    fn accesses_cross_pieces() {
        let ram = ram();
        ram.write(0x11ffe, &[1, 2, 3, 4]).unwrap();
        let mut bytes = [0; 4];
        ram.read(0x11ffe, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4]);
        assert_eq!(ram.load32(0x12000).unwrap(), 0x403);
    }

    #[test]
    fn nothing_outside_is_reached() {
        let ram = ram();
        assert!(ram.read(0xffff, &mut [0; 2]).is_err());
        assert!(ram.write(0x13fff, &[0; 2]).is_err());
        assert!(ram.write(u64::MAX, &[0; 2]).is_err());
        assert!(ram.load64(0x14000).is_err());
        assert_eq!(ram.load64(0x10004), Err(MemError::unaligned(0x10004, 8)));
        assert!(ram.contains(0x10000, 0x4000));
        assert!(!ram.contains(0x10000, 0x4001));
    }

    #[test]
    fn pieces_do_not_overlap_and_go_away() {
        let ram = ram();
        let file = memory_file("test", 0x1000).unwrap();
        assert!(ram.map(0x11000, 0x1000, file.try_clone().unwrap(), 0, true).is_err());
        assert!(ram.map(0xf800, 0x1000, file.try_clone().unwrap(), 0, true).is_err());
        assert!(ram.map(0, 0, file.try_clone().unwrap(), 0, true).is_err());
        assert!(ram.map(u64::MAX, 0x1000, file.try_clone().unwrap(), 0, true).is_err());
        assert_eq!(ram.unmap(0x10000, 0x2000), 0x2000);
        assert!(ram.read(0x11ffe, &mut [0; 4]).is_err());
        ram.map(0x11000, 0x1000, file, 0, false).unwrap();
        assert!(ram.read(0x11ffe, &mut [0; 4]).is_ok());
        assert!(ram.write(0x11ffe, &[0; 4]).is_err(), "a read-only piece was written");
    }
}
