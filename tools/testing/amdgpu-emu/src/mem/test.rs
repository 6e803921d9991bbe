// SPDX-License-Identifier: GPL-2.0

//! Memory for unit tests and fuzzing: plain bytes behind a lock.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{offset_in, MemError, Memory};

/// A piece of memory that begins at any address.
pub struct TestMemory {
    base: u64,
    bytes: Mutex<Vec<u8>>,
}

impl TestMemory {
    /// `len` zero bytes from `base` on.
    pub fn new(base: u64, len: usize) -> Self {
        Self { base, bytes: Mutex::new(vec![0; len]) }
    }

    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn range(
        &self,
        size: usize,
        addr: u64,
        len: usize,
    ) -> Result<std::ops::Range<usize>, MemError> {
        offset_in(self.base, size as u64, addr, len as u64)
            .and_then(|offset| usize::try_from(offset).ok())
            .map(|offset| offset..offset + len)
            .ok_or(MemError::unmapped(addr, len))
    }

    fn array<const N: usize>(&self, addr: u64) -> Result<[u8; N], MemError> {
        if !addr.is_multiple_of(N as u64) {
            return Err(MemError::unaligned(addr, N));
        }
        let mut bytes = [0; N];
        self.read(addr, &mut bytes)?;
        Ok(bytes)
    }
}

impl Memory for TestMemory {
    fn read(&self, addr: u64, to: &mut [u8]) -> Result<(), MemError> {
        let bytes = self.bytes();
        let range = self.range(bytes.len(), addr, to.len())?;
        to.copy_from_slice(bytes.get(range).ok_or(MemError::unmapped(addr, to.len()))?);
        Ok(())
    }

    fn write(&self, addr: u64, from: &[u8]) -> Result<(), MemError> {
        let mut bytes = self.bytes();
        let range = self.range(bytes.len(), addr, from.len())?;
        let to = bytes.get_mut(range).ok_or(MemError::unmapped(addr, from.len()))?;
        to.copy_from_slice(from);
        Ok(())
    }

    fn load32(&self, addr: u64) -> Result<u32, MemError> {
        self.array(addr).map(u32::from_le_bytes)
    }

    fn load64(&self, addr: u64) -> Result<u64, MemError> {
        self.array(addr).map(u64::from_le_bytes)
    }

    fn store32(&self, addr: u64, value: u32) -> Result<(), MemError> {
        self.array::<4>(addr)?;
        self.write(addr, &value.to_le_bytes())
    }

    fn store64(&self, addr: u64, value: u64) -> Result<(), MemError> {
        self.array::<8>(addr)?;
        self.write(addr, &value.to_le_bytes())
    }

    fn contains(&self, addr: u64, len: u64) -> bool {
        offset_in(self.base, self.bytes().len() as u64, addr, len).is_some()
    }
}
