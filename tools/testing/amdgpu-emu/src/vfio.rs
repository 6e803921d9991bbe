// SPDX-License-Identifier: GPL-2.0

//! The vfio-user server: a PCI device for QEMU's `vfio-user-pci`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vfio_bindings::bindings::vfio::{
    vfio_region_info, vfio_region_sparse_mmap_area, VFIO_IRQ_INFO_EVENTFD,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_BAR0_REGION_INDEX,
    VFIO_PCI_BAR2_REGION_INDEX, VFIO_PCI_BAR5_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};
use vfio_user::{
    DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion, SparseArea,
};

use crate::gpu::Gpu;
use crate::mem::{GuestRam, Vram};
use crate::pci::{self, Config};
use crate::registers;
use crate::report::Kind;

/// QEMU gives the device up when an answer takes longer than 5 s.
const LATE: Duration = Duration::from_secs(4);

/// What QEMU talks to.
pub struct Device {
    gpu: Arc<Gpu>,
    ram: Arc<GuestRam>,
    vram: Arc<Vram>,
    config: Config,
}

impl Device {
    /// A device in front of a GPU, whose memories these are.
    pub fn new(gpu: Arc<Gpu>, ram: Arc<GuestRam>, vram: Arc<Vram>) -> Self {
        let config = Config::new(vram.size());
        Self { gpu, ram, vram, config }
    }

    fn regions(&self) -> Vec<ServerRegion> {
        let access = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
        (0..VFIO_PCI_NUM_REGIONS)
            .map(|index| {
                let size = match index {
                    VFIO_PCI_BAR0_REGION_INDEX => self.vram.size(),
                    VFIO_PCI_BAR2_REGION_INDEX => pci::DOORBELL_SIZE,
                    VFIO_PCI_BAR5_REGION_INDEX => registers::BAR_SIZE,
                    VFIO_PCI_CONFIG_REGION_INDEX => pci::SIZE as u64,
                    _ => 0,
                };
                let mapped = index == VFIO_PCI_BAR0_REGION_INDEX;
                let flags = if mapped { access | VFIO_REGION_INFO_FLAG_MMAP } else { access };
                // The file is sent only together with a list of areas.
                let area = vfio_region_sparse_mmap_area { offset: 0, size };
                ServerRegion {
                    region_info: vfio_region_info {
                        argsz: size_of::<vfio_region_info>() as u32,
                        flags: if size == 0 { 0 } else { flags },
                        index,
                        size,
                        ..Default::default()
                    },
                    sparse_areas: if mapped { vec![SparseArea { area }] } else { Vec::new() },
                    mmap_fd: mapped.then(|| self.vram.file().as_raw_fd()),
                }
            })
            .collect()
    }

    fn irqs() -> Vec<IrqInfo> {
        (0..VFIO_PCI_NUM_IRQS)
            .map(|index| IrqInfo {
                index,
                flags: VFIO_IRQ_INFO_EVENTFD,
                count: u32::from(index == VFIO_PCI_MSI_IRQ_INDEX),
            })
            .collect()
    }

    /// Makes the socket.
    ///
    /// # Errors
    ///
    /// If there is a file of this name, or none can be made.
    pub fn listen(&self, socket: &Path) -> io::Result<Server> {
        Server::new(socket, true, Self::irqs(), self.regions()).map_err(io::Error::other)
    }

    /// Serves one client until it goes away.
    ///
    /// # Errors
    ///
    /// If the connection breaks.
    pub fn serve(&mut self, server: &Server) -> io::Result<()> {
        server.run(self).map_err(io::Error::other)
    }

    /// Reports a bad access; the guest gets all ones, as from a real bus.
    fn bad_access(&self, what: &str, region: u32, offset: u64, len: usize) {
        self.gpu.report.error(
            Kind::Driver,
            "pci",
            format_args!("{what} of {len} bytes at {offset:#x} of region {region}"),
        );
    }

    fn registers_read(&self, offset: u64, data: &mut [u8]) -> bool {
        let (Ok(reg), 0, 4) = (u32::try_from(offset / 4), offset % 4, data.len()) else {
            return false;
        };
        if u64::from(reg) * 4 >= registers::BAR_SIZE {
            return false;
        }
        let value = self.gpu.reg_read(reg);
        if self.gpu.report.verbose() {
            let name = amdgpu_regs::name(reg).unwrap_or("?");
            self.gpu.report.note("mmio", format_args!("{reg:#07x} -> {value:#010x} {name}"));
        }
        data.copy_from_slice(&value.to_le_bytes());
        true
    }

    fn registers_write(&self, offset: u64, data: &[u8]) -> bool {
        let (Ok(reg), 0, Ok(bytes)) = (u32::try_from(offset / 4), offset % 4, data.try_into())
        else {
            return false;
        };
        if u64::from(reg) * 4 >= registers::BAR_SIZE {
            return false;
        }
        let value = u32::from_le_bytes(bytes);
        if self.gpu.report.verbose() {
            let name = amdgpu_regs::name(reg).unwrap_or("?");
            self.gpu.report.note("mmio", format_args!("{reg:#07x} <- {value:#010x} {name}"));
        }
        self.gpu.reg_write(reg, value);
        true
    }

    fn doorbell(&self, offset: u64, data: &[u8]) -> bool {
        let value = match *data {
            [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            _ => return false,
        };
        if !offset.is_multiple_of(4) || offset >= pci::DOORBELL_SIZE {
            return false;
        }
        if self.gpu.report.verbose() {
            self.gpu.report.note("doorbell", format_args!("{offset:#x} <- {value:#x}"));
        }
        self.gpu.doorbell(offset, value, data.len());
        true
    }

    /// Reports an answer that took so long that QEMU may have given up, which ends the program.
    fn in_time(&self, begin: Instant, what: &str, region: u32, offset: u64) {
        let time = begin.elapsed();
        if time > LATE {
            self.gpu.report.fatal(
                "pci",
                format_args!("device lost: {what} at {offset:#x} of region {region} took {time:?}"),
            );
        }
    }
}

impl ServerBackend for Device {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let begin = Instant::now();
        let good = match region {
            VFIO_PCI_CONFIG_REGION_INDEX => {
                self.config.read(offset, data);
                true
            }
            VFIO_PCI_BAR5_REGION_INDEX => {
                self.gpu.counters.mmio_reads.add(1);
                self.registers_read(offset, data)
            }
            VFIO_PCI_BAR0_REGION_INDEX => {
                use crate::mem::Memory;
                self.vram.read(offset, data).is_ok()
            }
            // Doorbells cannot be read.
            VFIO_PCI_BAR2_REGION_INDEX => {
                data.fill(0);
                true
            }
            _ => false,
        };
        if !good {
            data.fill(u8::MAX);
            self.bad_access("a read", region, offset, data.len());
        }
        self.in_time(begin, "a read", region, offset);
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let begin = Instant::now();
        let good = match region {
            VFIO_PCI_CONFIG_REGION_INDEX => {
                self.config.write(offset, data);
                true
            }
            VFIO_PCI_BAR5_REGION_INDEX => {
                self.gpu.counters.mmio_writes.add(1);
                self.registers_write(offset, data)
            }
            VFIO_PCI_BAR0_REGION_INDEX => {
                use crate::mem::Memory;
                self.vram.write(offset, data).is_ok()
            }
            VFIO_PCI_BAR2_REGION_INDEX => self.doorbell(offset, data),
            _ => false,
        };
        if !good {
            self.bad_access("a write", region, offset, data.len());
        }
        self.in_time(begin, "a write", region, offset);
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> io::Result<()> {
        // Memory without a file cannot be reached: ROMs, and other devices' BARs.
        let Some(file) = fd else { return Ok(()) };
        let writable = flags.contains(DmaMapFlags::WRITE);
        let mapped = self.ram.map(address, size, file, offset, writable);
        if let Err(error) = &mapped {
            self.gpu.report.error(
                Kind::Internal,
                "dma",
                format_args!("{size:#x} bytes at {address:#x} cannot be mapped: {error}"),
            );
        }
        mapped
    }

    fn dma_unmap(&mut self, _flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        self.ram.unmap(address, size);
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.config = Config::new(self.vram.size());
        self.gpu.reset();
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        _start: u32,
        count: u32,
        mut fds: Vec<File>,
    ) -> io::Result<()> {
        if index == VFIO_PCI_MSI_IRQ_INDEX && flags & VFIO_IRQ_SET_ACTION_TRIGGER != 0 {
            let event = if flags & VFIO_IRQ_SET_DATA_EVENTFD != 0 { fds.pop() } else { None };
            if event.is_some() || count == 0 {
                self.gpu.irq.set(event);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device {
        let vram = Arc::new(Vram::new(32 << 20).unwrap());
        let ram = Arc::new(GuestRam::new());
        let gpu = Gpu::new(ram.clone(), vram.clone(), 32 << 20, crate::blocks());
        Device::new(Arc::new(gpu), ram, vram)
    }

    #[test]
    fn registers_are_dwords_inside_of_the_bar() {
        let mut device = device();
        let mut data = [0; 4];
        let bar = VFIO_PCI_BAR5_REGION_INDEX;
        device.region_write(bar, 0x100, &[1, 2, 3, 4]).unwrap();
        device.region_read(bar, 0x100, &mut data).unwrap();
        assert_eq!(data, [1, 2, 3, 4]);
        assert!(!device.gpu.report.failed());
        for offset in [0x102, registers::BAR_SIZE, u64::MAX - 3] {
            device.region_read(bar, offset, &mut data).unwrap();
            assert_eq!(data, [0xff; 4]);
            device.region_write(bar, offset, &data).unwrap();
        }
        device.region_read(bar, 0, &mut [0; 3]).unwrap();
        device.region_write(VFIO_PCI_BAR2_REGION_INDEX, 0, &[0; 2]).unwrap();
        device.region_read(99, 0, &mut data).unwrap();
        assert_eq!(device.gpu.report.list().len(), 9);
    }

    #[test]
    fn only_the_vram_is_mapped() {
        let device = device();
        for region in device.regions() {
            let mapped = region.region_info.index == VFIO_PCI_BAR0_REGION_INDEX;
            assert_eq!(region.mmap_fd.is_some(), mapped);
            assert_eq!(region.sparse_areas.len(), usize::from(mapped));
        }
    }

    #[test]
    fn memory_without_a_file_is_no_memory() {
        let mut device = device();
        device.dma_map(DmaMapFlags::all(), 0, 0x1000, 0x1000, None).unwrap();
        assert!(!crate::mem::Memory::contains(&*device.ram, 0x1000, 1));
    }
}
