// SPDX-License-Identifier: GPL-2.0

//! The parts of the GPU that work on their own, put together.

use std::sync::Arc;

use crate::block::Block;
use crate::bus::Bus;
use crate::cp;
use crate::engine::{self, Engine, Waker};
use crate::gpu::{self, Gpu};
use crate::gpuvm::{Access, Fault, Hub, Mmu, Requester};
use crate::hub::Invalidate;
use crate::ih::Iv;
use crate::report::Kind;
use crate::sabotage::Mode;
use crate::sdma;

/// VMIDs of a hub.
const VMIDS: u8 = 16;

/// The GPU as its engines see it.
pub(crate) struct GpuBus<'a> {
    pub(crate) gpu: &'a Gpu,
    pub(crate) mmu: &'a Mmu,
}

impl Bus for GpuBus<'_> {
    fn read(&self, by: &Requester, va: u64, to: &mut [u8]) -> Result<(), Fault> {
        self.mmu.read(self.gpu, by, va, to)
    }

    fn fetch(&self, by: &Requester, va: u64, to: &mut [u8]) -> Result<(), Fault> {
        self.mmu.fetch(self.gpu, by, va, to)
    }

    fn write(&self, by: &Requester, va: u64, from: &[u8]) -> Result<(), Fault> {
        self.mmu.write(self.gpu, by, va, from)
    }

    fn store(&self, by: &Requester, va: u64, from: &[u8]) -> Result<(), Fault> {
        match self.gpu.sabotage.mode() {
            Mode::Drop if by.vmid != 0 => {
                // It still faults as it would.
                let mut kept = vec![0; from.len()];
                self.read(by, va, &mut kept)?;
                self.write(by, va, &kept)
            }
            Mode::Corrupt if by.vmid != 0 => {
                let wrong: Vec<u8> = from.iter().map(|byte| byte.wrapping_add(1)).collect();
                self.write(by, va, &wrong)
            }
            _ => self.write(by, va, from),
        }
    }

    fn reg_read(&self, reg: u32) -> u32 {
        self.gpu.reg_read(reg)
    }

    fn reg_write(&self, reg: u32, value: u32) {
        self.gpu.reg_write(reg, value);
    }

    fn interrupt(&self, iv: Iv) {
        self.gpu.ih.post(self.gpu, iv);
    }

    fn fault(&self, fault: &Fault) {
        self.gpu.report.note("gpuvm", fault);
        // Whether it is new or known: the queue looks again after a while, or when it is woken.
        let _ = self.gpu.fault(gpu::Fault {
            hub: fault.hub,
            vmid: fault.vmid,
            addr: fault.addr,
            write: fault.access == Access::Write,
            retry: fault.retry,
        });
    }

    fn pasid(&self, vmid: u8) -> u16 {
        self.gpu.pasid(Hub::Gfx, vmid)
    }

    fn vmids(&self, pasid: u16) -> u16 {
        if pasid == 0 {
            return 0;
        }
        (0..VMIDS).filter(|vmid| self.pasid(*vmid) == pasid).fold(0, |mask, vmid| mask | 1 << vmid)
    }

    fn invalidate(&self, vmids: u16, both_hubs: bool) {
        self.gpu.invalidate(Hub::Gfx, &Invalidate::all(vmids));
        if both_hubs {
            self.gpu.invalidate(Hub::Mm, &Invalidate::all(vmids));
        }
    }

    fn map_process(&self, vmid: u8, root: u64, pasid: u16) {
        for hub in [Hub::Gfx, Hub::Mm] {
            self.gpu.set_root(hub, vmid, root);
        }
        self.gpu.set_pasid(vmid, pasid);
        self.invalidate(1u16.checked_shl(u32::from(vmid)).unwrap_or(0), true);
    }

    fn clock(&self) -> u64 {
        self.gpu.ih.clock()
    }

    fn packet(&self) {
        self.gpu.counters.packets.add(1);
    }

    fn wave(&self) {
        self.gpu.counters.waves.add(1);
    }

    fn error(&self, kind: Kind, engine: &str, text: String) {
        self.gpu.report.error(kind, engine, text);
    }

    fn note(&self, engine: &str, text: &dyn Fn() -> String) {
        if self.gpu.report.verbose() {
            self.gpu.report.note(engine, text());
        }
    }
}

/// All engines, before they are started.
pub struct Machine {
    /// Both hubs' translations.
    pub mmu: Arc<Mmu>,
    /// The registers and doorbells of the engines, for [`Gpu::new`].
    pub blocks: Vec<Box<dyn Block>>,
    engines: Vec<(Box<dyn Engine>, Waker)>,
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// All engines of a GPU.
    pub fn new() -> Self {
        let mmu = Arc::new(Mmu::new());
        let (sdma, sdma_engine, sdma_waker) = sdma::new(Arc::clone(&mmu));
        let (cp, cp_engine, cp_waker) = cp::new(Arc::clone(&mmu), sdma.clone());
        Self {
            mmu,
            blocks: vec![Box::new(sdma), Box::new(cp)],
            engines: vec![(Box::new(sdma_engine), sdma_waker), (Box::new(cp_engine), cp_waker)],
        }
    }

    /// The blocks, to be given to [`Gpu::new`].
    pub fn take_blocks(&mut self) -> Vec<Box<dyn Block>> {
        std::mem::take(&mut self.blocks)
    }

    /// Starts all engines.
    ///
    /// # Errors
    ///
    /// If the system has no more threads.
    pub fn start(self, gpu: &Arc<Gpu>) -> std::io::Result<()> {
        gpu.set_invalidator(self.mmu);
        for (engine, waker) in self.engines {
            engine::spawn(gpu, engine, waker)?;
        }
        Ok(())
    }
}
