// SPDX-License-Identifier: GPL-2.0

//! The PCI configuration space.
//!
//! QEMU emulates most of what the guest does with it (BARs, MSI); what is here is what QEMU reads to
//! know how, and storage for the writes that it passes on. Names are those of the kernel's
//! `include/uapi/linux/pci_regs.h`.

use crate::registers;

/// The size of the configuration space of a PCI Express device.
pub const SIZE: usize = 4096;
/// The size in bytes of the doorbell BAR.
pub const DOORBELL_SIZE: u64 = 2 << 20;

/// AMD.
const VENDOR: u16 = 0x1002;
/// An MI300X. The driver goes by the class and the discovery table, not by this.
const DEVICE: u16 = 0x74a1;
/// A processing accelerator (`PCI_CLASS_ACCELERATOR_PROCESSING`), for which the driver asks the
/// discovery table (`CHIP_IP_DISCOVERY`).
const CLASS: u32 = 0x12_0000;

const PCI_COMMAND: usize = 0x04;
const PCI_STATUS: usize = 0x06;
const PCI_CLASS_REVISION: usize = 0x08;
const PCI_BASE_ADDRESS_0: usize = 0x10;
const PCI_SUBSYSTEM_VENDOR_ID: usize = 0x2c;
const PCI_CAPABILITY_LIST: usize = 0x34;
/// There is a list of capabilities.
const PCI_STATUS_CAP_LIST: u16 = 0x10;
const PCI_BASE_ADDRESS_MEM_TYPE_64: u32 = 0x04;
const PCI_BASE_ADDRESS_MEM_PREFETCH: u32 = 0x08;
/// I/O, memory and bus master enable, and INTx disable.
const COMMAND_WRITABLE: u16 = 0x0407;

/// Where the capabilities are.
const EXPRESS: usize = 0x40;
const MSI: usize = 0x80;
const PCI_CAP_ID_EXP: u8 = 0x10;
const PCI_CAP_ID_MSI: u8 = 0x05;
/// Version 2 of the capability; type 0 is an endpoint.
const PCI_EXP_FLAGS: (usize, u16) = (0x02, 0x0002);
/// 256 bytes of payload, extended tags, role-based errors.
const PCI_EXP_DEVCAP: (usize, u32) = (0x04, 0x8021);
/// 32 GT/s, 16 lanes; the same as the link's state.
const PCI_EXP_LNKCAP: (usize, u32) = (0x0c, 0x0105);
const PCI_EXP_LNKSTA: (usize, u16) = (0x12, 0x0105);
/// All speeds up to 32 GT/s.
const PCI_EXP_LNKCAP2: (usize, u32) = (0x2c, 0x3e);
const PCI_EXP_LNKCTL2: (usize, u16) = (0x30, 0x05);
/// Where the list of extended capabilities begins; the driver looks for one of its vendor's to see
/// whether it can be reached at all (`amdgpu_device_resize_fb_bar()`).
const VENDOR_SPECIFIC: usize = 0x100;
const PCI_EXT_CAP_ID_VNDR: u32 = 0x0b;
/// Version 1 of the capability, and no next one.
const EXT_CAP_VERSION: u32 = 1 << 16;
/// Number and revision 1, 16 bytes long.
const VENDOR_SPECIFIC_HEADER: u32 = 0x0101_0001;
/// 64-bit message addresses, one message.
const PCI_MSI_FLAGS_64BIT: u16 = 0x80;
/// What of the MSI capability is written: the enable bit, the address, the data.
const MSI_WRITABLE: [u8; 12] =
    [0x01, 0, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
/// What of the Express capability is written: the device and link control registers.
const EXPRESS_CONTROLS: [usize; 4] = [0x08, 0x10, 0x28, 0x30];

/// The configuration space.
pub struct Config {
    bytes: Vec<u8>,
    writable: Vec<u8>,
}

impl Config {
    /// As after a reset, for a GPU with this much VRAM (a power of two).
    pub fn new(vram: u64) -> Self {
        let mut config = Self { bytes: vec![0; SIZE], writable: vec![0; SIZE] };
        config.put16(0, VENDOR);
        config.put16(2, DEVICE);
        config.allow(PCI_COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        config.put16(PCI_STATUS, PCI_STATUS_CAP_LIST);
        config.put32(PCI_CLASS_REVISION, CLASS << 8);
        config.bar64(0, vram);
        config.bar64(2, DOORBELL_SIZE);
        config.bar32(5, registers::BAR_SIZE);
        config.put16(PCI_SUBSYSTEM_VENDOR_ID, VENDOR);
        config.put16(PCI_SUBSYSTEM_VENDOR_ID + 2, DEVICE);
        config.put8(PCI_CAPABILITY_LIST, EXPRESS as u8);
        config.put8(EXPRESS, PCI_CAP_ID_EXP);
        config.put8(EXPRESS + 1, MSI as u8);
        for (at, value) in [PCI_EXP_FLAGS, PCI_EXP_LNKSTA, PCI_EXP_LNKCTL2] {
            config.put16(EXPRESS + at, value);
        }
        for (at, value) in [PCI_EXP_DEVCAP, PCI_EXP_LNKCAP, PCI_EXP_LNKCAP2] {
            config.put32(EXPRESS + at, value);
        }
        for at in EXPRESS_CONTROLS {
            config.allow(EXPRESS + at, &[0xff, 0xff]);
        }
        config.put32(VENDOR_SPECIFIC, PCI_EXT_CAP_ID_VNDR | EXT_CAP_VERSION);
        config.put32(VENDOR_SPECIFIC + 4, VENDOR_SPECIFIC_HEADER);
        config.put8(MSI, PCI_CAP_ID_MSI);
        config.put16(MSI + 2, PCI_MSI_FLAGS_64BIT);
        config.allow(MSI + 2, &MSI_WRITABLE);
        config
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }

    fn put8(&mut self, at: usize, value: u8) {
        self.put(at, &[value]);
    }

    fn put16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    fn put32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        for (to, from) in self.writable.iter_mut().skip(at).zip(mask) {
            *to = *from;
        }
    }

    /// A 64-bit prefetchable BAR: only address bits above its size can be written.
    fn bar64(&mut self, number: usize, size: u64) {
        let at = PCI_BASE_ADDRESS_0 + 4 * number;
        self.put32(at, PCI_BASE_ADDRESS_MEM_TYPE_64 | PCI_BASE_ADDRESS_MEM_PREFETCH);
        self.allow(at, &size.wrapping_neg().to_le_bytes());
    }

    /// A 32-bit BAR.
    fn bar32(&mut self, number: usize, size: u64) {
        let mask = size.wrapping_neg() as u32;
        self.allow(PCI_BASE_ADDRESS_0 + 4 * number, &mask.to_le_bytes());
    }

    /// Reads; what is outside reads as zeros.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(at) = usize::try_from(offset) else { return };
        for (to, from) in data.iter_mut().zip(self.bytes.iter().skip(at)) {
            *to = *from;
        }
    }

    /// Writes the bits that can be written.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(at) = usize::try_from(offset) else { return };
        let bytes = self.bytes.iter_mut().zip(&self.writable).skip(at);
        for ((to, mask), from) in bytes.zip(data) {
            *to = (*to & !mask) | (from & mask);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read32(config: &Config, at: usize) -> u32 {
        let mut bytes = [0; 4];
        config.read(at as u64, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn bars_tell_their_sizes() {
        let mut config = Config::new(1 << 30);
        for at in (PCI_BASE_ADDRESS_0..PCI_BASE_ADDRESS_0 + 24).step_by(4) {
            config.write(at as u64, &[0xff; 4]);
        }
        let bar = |n: usize| read32(&config, PCI_BASE_ADDRESS_0 + 4 * n);
        assert_eq!(bar(0), 0xc000_000c);
        assert_eq!(bar(1), 0xffff_ffff);
        assert_eq!(bar(2), 0xffe0_000c);
        assert_eq!(bar(4), 0);
        assert_eq!(bar(5), 0xfff8_0000);
    }

    #[test]
    fn capabilities_are_a_list_that_ends() {
        let config = Config::new(1 << 30);
        let mut found = Vec::new();
        let mut at = read32(&config, PCI_CAPABILITY_LIST) & 0xff;
        while at != 0 {
            let header = read32(&config, at as usize);
            found.push((header & 0xff) as u8);
            at = header >> 8 & 0xff;
        }
        assert_eq!(found, [PCI_CAP_ID_EXP, PCI_CAP_ID_MSI]);
    }

    #[test]
    fn accesses_outside_do_nothing() {
        let mut config = Config::new(1 << 30);
        config.write(SIZE as u64 - 1, &[1; 8]);
        config.write(u64::MAX, &[1; 8]);
        assert_eq!(read32(&config, SIZE - 2), 0);
        config.write(0, &[0; 4]);
        assert_eq!(read32(&config, 0), 0x74a1_1002);
    }
}
