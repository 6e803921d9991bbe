// SPDX-License-Identifier: GPL-2.0

//! The values of registers, without any effect of an access.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock};

/// The size in bytes of the register BAR (BAR 5, `amdgpu_device_init` in `amdgpu_device.c`).
pub const BAR_SIZE: u64 = 512 << 10;
/// How many registers the BAR shows; the others are reached by an index register.
pub const DIRECT: u32 = (BAR_SIZE / 4) as u32;
/// How many registers beyond the BAR are kept at most: far more than there are names for.
const FAR_LIMIT: usize = 1 << 18;

/// All registers, by dword offset. A register that was never written is 0.
pub struct RegisterFile {
    direct: Vec<AtomicU32>,
    far: RwLock<HashMap<u32, u32>>,
}

impl Default for RegisterFile {
    fn default() -> Self {
        Self::new()
    }
}

impl RegisterFile {
    /// All registers 0.
    pub fn new() -> Self {
        let direct = (0..DIRECT).map(|_| AtomicU32::new(0)).collect();
        Self { direct, far: RwLock::default() }
    }

    fn direct(&self, reg: u32) -> Option<&AtomicU32> {
        self.direct.get(usize::try_from(reg).ok()?)
    }

    /// A register's value.
    pub fn read(&self, reg: u32) -> u32 {
        match self.direct(reg) {
            Some(value) => value.load(Ordering::Acquire),
            None => {
                let far = self.far.read().unwrap_or_else(PoisonError::into_inner);
                far.get(&reg).copied().unwrap_or(0)
            }
        }
    }

    /// Sets a register. One that is neither in the BAR nor among the first of the others that are
    /// written is dropped, so that a guest cannot make this grow without end.
    pub fn write(&self, reg: u32, value: u32) {
        if let Some(register) = self.direct(reg) {
            register.store(value, Ordering::Release);
            return;
        }
        let mut far = self.far.write().unwrap_or_else(PoisonError::into_inner);
        if far.len() < FAR_LIMIT || far.contains_key(&reg) {
            far.insert(reg, value);
        }
    }

    /// A pair of registers as one number.
    pub fn read64(&self, low: u32, high: u32) -> u64 {
        u64::from(self.read(low)) | u64::from(self.read(high)) << 32
    }

    /// Sets all registers to 0.
    pub fn clear(&self) {
        for register in &self.direct {
            register.store(0, Ordering::Release);
        }
        self.far.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_near_and_far() {
        let file = RegisterFile::new();
        for reg in [0, DIRECT - 1, DIRECT, u32::MAX] {
            assert_eq!(file.read(reg), 0);
            file.write(reg, !reg);
            assert_eq!(file.read(reg), !reg);
        }
        file.clear();
        assert_eq!(file.read(u32::MAX - 1), 0);
    }

    #[test]
    fn a_guest_cannot_fill_the_memory() {
        let file = RegisterFile::new();
        for reg in 0..FAR_LIMIT as u32 + 10 {
            file.write(DIRECT + reg, 1);
        }
        assert_eq!(file.read(DIRECT + FAR_LIMIT as u32), 0);
        file.write(DIRECT, 2);
        assert_eq!(file.read(DIRECT), 2);
    }
}
