// SPDX-License-Identifier: GPL-2.0

//! The GPU: what all blocks and engines share.

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use amdgpu_regs::{ih, nbio};

use crate::block::Block;
use crate::counters::Counters;
use crate::discovery;
use crate::engine::Waker;
use crate::hub::{Hub, SharedInvalidator};
use crate::ih::{FaultKey, Ih, Iv, Raise};
use crate::mem::{MemError, Memory};
use crate::registers::{RegisterFile, DIRECT};
use crate::report::Reports;
use crate::sabotage::Sabotage;

/// The size in bytes of a page of the GPU.
pub const PAGE: u64 = 4096;
/// No block, in the table of blocks by register.
const NOBODY: u8 = u8::MAX;
/// Bits of a fault's second dword (`AMDGPU_GMC9_FAULT_SOURCE_DATA_*` in `amdgpu_gmc.h`).
const FAULT_RETRY: u32 = 0x80;
const FAULT_WRITE: u32 = 0x20;
/// The dies that faults and interrupts come from.
pub const NODE_AID: u8 = 0;
/// The first compute die.
pub const NODE_XCD0: u8 = 1;

/// The message (MSI) to the guest.
#[derive(Default)]
pub struct Irq(Mutex<Option<File>>);

impl Irq {
    /// Sets the event that QEMU turns into a message, or takes it away.
    pub fn set(&self, event: Option<File>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = event;
    }

    /// Sends a message; says whether somebody listens.
    pub fn send(&self) -> bool {
        let event = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // An eventfd takes 8 bytes, added to its counter.
        event.as_ref().is_some_and(|mut file| file.write_all(&1u64.to_ne_bytes()).is_ok())
    }
}

/// A page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Whose translation it was.
    pub hub: Hub,
    /// The address space.
    pub vmid: u8,
    /// The address.
    pub addr: u64,
    /// Was it a write?
    pub write: bool,
    /// Does who caused it wait for a replay?
    pub retry: bool,
}

/// The GPU.
pub struct Gpu {
    /// The guest's RAM by DMA address.
    pub system: Arc<dyn Memory>,
    /// The GPU's memory.
    pub vram: Arc<dyn Memory>,
    vram_size: u64,
    /// Registers without effects.
    pub regs: RegisterFile,
    /// The interrupt handler.
    pub ih: Ih,
    /// The message to the guest.
    pub irq: Irq,
    /// What went wrong.
    pub report: Reports,
    /// What was done.
    pub counters: Counters,
    /// Mistakes made with data on purpose.
    pub sabotage: Sabotage,
    blocks: Vec<Box<dyn Block>>,
    /// The block of each register in the BAR.
    owners: Vec<u8>,
    invalidator: OnceLock<SharedInvalidator>,
    wakers: RwLock<Vec<(&'static str, Waker)>>,
}

impl Gpu {
    /// A GPU of these memories and blocks, reset.
    pub fn new(
        system: Arc<dyn Memory>,
        vram: Arc<dyn Memory>,
        vram_size: u64,
        blocks: Vec<Box<dyn Block>>,
    ) -> Self {
        let owner = |reg: u32| {
            let found = blocks.iter().position(|block| block.owns(reg));
            found.and_then(|n| u8::try_from(n).ok()).unwrap_or(NOBODY)
        };
        let owners = (0..DIRECT).map(owner).collect();
        let gpu = Self {
            system,
            vram,
            vram_size,
            regs: RegisterFile::new(),
            ih: Ih::new(),
            irq: Irq::default(),
            report: Reports::new(),
            counters: Counters::default(),
            sabotage: Sabotage::default(),
            blocks,
            owners,
            invalidator: OnceLock::new(),
            wakers: RwLock::default(),
        };
        gpu.reset();
        gpu
    }

    /// A small GPU without engines: 1 MiB of guest memory at 1 MiB, 32 MiB of VRAM.
    #[cfg(test)]
    pub fn for_tests() -> Arc<Self> {
        use crate::mem::{TestMemory, Vram};
        let system = Arc::new(TestMemory::new(1 << 20, 1 << 20));
        let vram = Vram::new(32 << 20).unwrap();
        Arc::new(Self::new(system, Arc::new(vram), 32 << 20, crate::blocks()))
    }

    /// The size of the VRAM in bytes.
    pub fn vram_size(&self) -> u64 {
        self.vram_size
    }

    /// Resets all blocks, and writes the discovery table to the VRAM anew.
    pub fn reset(&self) {
        self.regs.clear();
        for block in &self.blocks {
            block.reset(self);
        }
        if let Some(at) = self.vram_size.checked_sub(discovery::FROM_END) {
            if let Err(error) = self.vram.write(at, &discovery::binary()) {
                self.report.error(crate::report::Kind::Internal, "discovery", error);
            }
        }
        self.wake_all();
    }

    fn owner(&self, reg: u32) -> Option<&dyn Block> {
        let block = match usize::try_from(reg).ok().and_then(|reg| self.owners.get(reg)) {
            Some(&NOBODY) => None,
            Some(number) => self.blocks.get(usize::from(*number)),
            None => self.blocks.iter().find(|block| block.owns(reg)),
        };
        block.map(Box::as_ref)
    }

    /// Reads a register as the CPU does.
    pub fn reg_read(&self, reg: u32) -> u32 {
        match self.owner(reg) {
            Some(block) => block.read(self, reg),
            None => self.regs.read(reg),
        }
    }

    /// Writes a register as the CPU does.
    pub fn reg_write(&self, reg: u32, value: u32) {
        match self.owner(reg) {
            Some(block) => block.write(self, reg, value),
            None => self.regs.write(reg, value),
        }
    }

    /// Is the register one of the windows through which registers are reached?
    fn is_window(reg: u32) -> bool {
        matches!(reg, nbio::BIF_BX_PF0_MM_DATA | nbio::BIF_BX0_PCIE_DATA2)
    }

    /// Reads a register through a window: a window is not reached through another one.
    pub(crate) fn reg_read_far(&self, reg: u32) -> u32 {
        if Self::is_window(reg) {
            0
        } else {
            self.reg_read(reg)
        }
    }

    /// Writes a register through a window.
    pub(crate) fn reg_write_far(&self, reg: u32, value: u32) {
        if !Self::is_window(reg) {
            self.reg_write(reg, value);
        }
    }

    /// A doorbell is written.
    pub fn doorbell(&self, byte: u64, value: u64, size: usize) {
        self.counters.doorbells.add(1);
        for block in &self.blocks {
            block.doorbell(self, byte, value, size);
        }
    }

    /// Says who caches translations; only the first one counts.
    pub fn set_invalidator(&self, invalidator: SharedInvalidator) {
        let _ = self.invalidator.set(invalidator);
    }

    pub(crate) fn invalidator(&self) -> Option<&SharedInvalidator> {
        self.invalidator.get()
    }

    pub(crate) fn add_waker(&self, name: &'static str, waker: Waker) {
        self.wakers.write().unwrap_or_else(PoisonError::into_inner).push((name, waker));
    }

    /// Makes all engines look for work again.
    pub fn wake_all(&self) {
        for (_, waker) in self.wakers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            waker.wake();
        }
    }

    /// Holds an engine or lets it go on; says whether there is one of this name.
    pub fn stall(&self, name: &str, stalled: bool) -> bool {
        let wakers = self.wakers.read().unwrap_or_else(PoisonError::into_inner);
        let found = wakers.iter().find(|(engine, _)| *engine == name);
        if let Some((_, waker)) = found {
            waker.stall(stalled);
        }
        found.is_some()
    }

    /// The names of all engines.
    pub fn engines(&self) -> Vec<&'static str> {
        let wakers = self.wakers.read().unwrap_or_else(PoisonError::into_inner);
        wakers.iter().map(|(name, _)| *name).collect()
    }

    /// Ends all engines.
    pub fn stop(&self) {
        for (_, waker) in self.wakers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            waker.stop();
        }
    }

    /// Tells the driver about a page fault. For a retry fault that waits already nothing is sent.
    /// Whoever raised a retry fault translates again when it is woken, or after a millisecond if
    /// the answer is [`Raise::Later`].
    pub fn fault(&self, fault: Fault) -> Raise {
        let page = fault.addr & !(PAGE - 1);
        let raised = if fault.retry {
            let mmhub = fault.hub == Hub::Mm;
            self.ih.cam.raise(FaultKey { mmhub, vmid: fault.vmid, page })
        } else {
            Raise::Fresh(0)
        };
        let Raise::Fresh(number) = raised else { return raised };
        let mut flags = (fault.addr >> 44) as u32 & 0xf;
        flags |= if fault.retry { FAULT_RETRY } else { 0 };
        flags |= if fault.write { FAULT_WRITE } else { 0 };
        let (client, node) = match fault.hub {
            Hub::Mm => (ih::SOC15_IH_CLIENTID_VMC, NODE_AID),
            Hub::Gfx => (ih::SOC15_IH_CLIENTID_UTCL2, NODE_XCD0),
        };
        if fault.retry {
            self.counters.retry_faults.add(1);
        } else {
            self.counters.noretry_faults.add(1);
            self.set_fault_status(fault.hub, fault.vmid, fault.addr, fault.write);
        }
        let iv = Iv {
            client: client as u8,
            source: 0,
            ring: 0,
            vmid: fault.vmid,
            vmid_mmhub: fault.hub == Hub::Mm,
            pasid: self.pasid(fault.hub, fault.vmid),
            node,
            data: [(fault.addr >> 12) as u32, flags, u32::from(number), 0],
        };
        self.ih.post(self, iv);
        raised
    }

    /// Reads the guest's RAM as the GPU's bus master does, counted.
    ///
    /// # Errors
    ///
    /// If not all of it is memory of the guest.
    pub fn dma_read(&self, addr: u64, to: &mut [u8]) -> Result<(), MemError> {
        self.counters.dma_read.add(to.len() as u64);
        self.system.read(addr, to)
    }

    /// Writes the guest's RAM as the GPU's bus master does, counted.
    ///
    /// # Errors
    ///
    /// If not all of it is memory of the guest.
    pub fn dma_write(&self, addr: u64, from: &[u8]) -> Result<(), MemError> {
        self.counters.dma_write.add(from.len() as u64);
        self.system.write(addr, from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amdgpu_regs::osssys;

    #[test]
    fn the_discovery_table_is_where_the_driver_looks() {
        let gpu = Gpu::for_tests();
        let megabytes = u64::from(gpu.reg_read(nbio::RCC_DEV0_EPF0_RCC_CONFIG_MEMSIZE));
        assert_eq!(gpu.vram.load32((megabytes << 20) - (64 << 10)), Ok(0x2821_1407));
    }

    #[test]
    fn faults_are_vectors_as_the_driver_reads_them() {
        let gpu = Gpu::for_tests();
        let cntl = osssys::IH_RB_CNTL__RB_ENABLE.set(0, 1);
        let cntl = osssys::IH_RB_CNTL__RB_SIZE.set(cntl, 8);
        gpu.reg_write(osssys::IH_RB_CNTL, osssys::IH_RB_CNTL__MC_SPACE.set(cntl, 1));
        gpu.reg_write(osssys::IH_RB_BASE, 0x10_0000 >> 8);
        gpu.set_pasid(8, 0x8005);
        let addr = 0x7f12_3456_7abc;
        let fault = Fault { hub: Hub::Mm, vmid: 8, addr, write: true, retry: true };
        assert!(matches!(gpu.fault(fault), Raise::Fresh(_)));
        assert!(matches!(gpu.fault(fault), Raise::Pending(_)));
        let word = |n: u64| gpu.system.load32(0x10_0000 + 4 * n).unwrap();
        assert_eq!(word(0) & 0xff, 0x12, "client");
        assert_eq!(word(3), 0x8005, "PASID and node");
        let found = u64::from(word(4)) << 12 | u64::from(word(5) & 0xf) << 44;
        assert_eq!(found, addr & !0xfff);
        assert_eq!(word(5) & 0xa0, 0xa0, "retry and write");
        assert_eq!(gpu.counters.vectors.get(), 1);
    }
}
