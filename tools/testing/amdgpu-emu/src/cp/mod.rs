// SPDX-License-Identifier: GPL-2.0

//! CP: the compute micro engine with its hardware queues, and the firmware's scheduler.
//!
//! [`CpBlock`] answers register accesses and doorbells at once. [`CpEngine`] executes the queues:
//! KIQ and HIQ first, then the kernel's, then users' in turn, each for a slice.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use amdgpu_regs::{gc, ih};

use crate::block::Block;
use crate::engine::Waker;
use crate::gpu::{Gpu, NODE_XCD0};
use crate::gpuvm::Mmu;
use crate::ih::Iv;
use crate::sdma::SdmaBlock;

mod dispatch;
mod engine;
mod pm4;
mod queue;
mod scheduler;

pub use engine::CpEngine;
use queue::{Hqd, Slot, HQD_REGS, NAME};

/// Micro engines, pipes and queues that `GRBM_GFX_CNTL` can select.
const MES: usize = 4;
const PIPES: usize = 4;
const QUEUES: usize = 8;
/// VMIDs.
const VMIDS: usize = 16;
/// `CPC_INT_STATUS.GENERIC2_INT_STATUS`, by which the KIQ sends an interrupt
/// (`gfx_v9_4_3_ring_emit_fence_kiq()`).
const INT_GENERIC2: u32 = 1 << 29;
/// Commands that wait for the engine at most; a guest that rings faster only rings again.
const COMMANDS: usize = 1 << 16;

/// What the engine has to do for an access of the driver's.
#[derive(Clone, Copy, Debug)]
enum Command {
    /// `CP_HQD_ACTIVE` was set.
    Activate(Slot),
    /// `CP_HQD_DEQUEUE_REQUEST` was written with this, or `CP_HQD_ACTIVE` cleared.
    Dequeue(Slot, u32),
    /// A doorbell was written.
    Doorbell { dword: u32, value: u64, size: usize },
    /// The device was reset.
    Reset,
}

struct State {
    hqds: Vec<Hqd>,
    sh_mem_config: [u32; VMIDS],
    sh_mem_bases: [u32; VMIDS],
    commands: VecDeque<Command>,
}

impl State {
    fn hqd(&mut self, slot: Slot) -> Option<&mut Hqd> {
        let index = usize::from(slot.me) * PIPES + usize::from(slot.pipe);
        self.hqds.get_mut(index * QUEUES + usize::from(slot.queue))
    }

    fn command(&mut self, command: Command) {
        if self.commands.len() < COMMANDS {
            self.commands.push_back(command);
        }
    }
}

struct Shared {
    state: Mutex<State>,
    waker: Waker,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The registers and doorbells of CP.
pub struct CpBlock(Arc<Shared>);

/// CP: its registers, and what executes its queues.
pub fn new(mmu: Arc<Mmu>, sdma: SdmaBlock) -> (CpBlock, CpEngine, Waker) {
    let waker = Waker::new();
    let state = State {
        hqds: vec![Hqd([0; HQD_REGS]); MES * PIPES * QUEUES],
        sh_mem_config: [0; VMIDS],
        sh_mem_bases: [0; VMIDS],
        commands: VecDeque::new(),
    };
    let shared = Arc::new(Shared { state: Mutex::new(state), waker: waker.clone() });
    (CpBlock(Arc::clone(&shared)), CpEngine::new(shared, mmu, sdma), waker)
}

/// The slot and VMID that `GRBM_GFX_CNTL` selects.
fn selected(gpu: &Gpu) -> (Slot, usize) {
    let value = gpu.regs.read(gc::GRBM_GFX_CNTL);
    let slot = Slot {
        me: gc::GRBM_GFX_CNTL__MEID.get(value) as u8,
        pipe: gc::GRBM_GFX_CNTL__PIPEID.get(value) as u8,
        queue: gc::GRBM_GFX_CNTL__QUEUEID.get(value) as u8,
    };
    (slot, gc::GRBM_GFX_CNTL__VMID.get(value) as usize)
}

impl Block for CpBlock {
    fn name(&self) -> &'static str {
        NAME
    }

    fn owns(&self, reg: u32) -> bool {
        Hqd::has(reg) || matches!(reg, gc::SH_MEM_CONFIG | gc::SH_MEM_BASES | gc::CPC_INT_STATUS)
    }

    fn read(&self, gpu: &Gpu, reg: u32) -> u32 {
        let (slot, vmid) = selected(gpu);
        let mut state = self.0.state();
        match reg {
            gc::SH_MEM_CONFIG => state.sh_mem_config.get(vmid).copied().unwrap_or(0),
            gc::SH_MEM_BASES => state.sh_mem_bases.get(vmid).copied().unwrap_or(0),
            gc::CPC_INT_STATUS => gpu.regs.read(reg),
            _ => state.hqd(slot).map_or(0, |hqd| hqd.get(reg)),
        }
    }

    fn write(&self, gpu: &Gpu, reg: u32, value: u32) {
        let (slot, vmid) = selected(gpu);
        let mut state = self.0.state();
        match reg {
            gc::SH_MEM_CONFIG => {
                if let Some(config) = state.sh_mem_config.get_mut(vmid) {
                    *config = value;
                }
            }
            gc::SH_MEM_BASES => {
                if let Some(bases) = state.sh_mem_bases.get_mut(vmid) {
                    *bases = value;
                }
            }
            gc::CPC_INT_STATUS => {
                drop(state);
                if value & INT_GENERIC2 != 0 {
                    gpu.ih.post(
                        gpu,
                        Iv {
                            client: ih::SOC15_IH_CLIENTID_GRBM_CP as u8,
                            source: ih::GFX_9_0__SRCID__CP_IB2_INTERRUPT_PKT as u8,
                            node: NODE_XCD0,
                            ..Iv::default()
                        },
                    );
                }
            }
            _ => {
                let Some(hqd) = state.hqd(slot) else { return };
                let was_active = hqd.active();
                hqd.set(reg, value);
                let command = match reg {
                    gc::CP_HQD_ACTIVE if hqd.active() && !was_active => Command::Activate(slot),
                    gc::CP_HQD_ACTIVE if was_active && !hqd.active() => Command::Dequeue(slot, 0),
                    gc::CP_HQD_DEQUEUE_REQUEST if value != 0 && was_active => {
                        Command::Dequeue(slot, value)
                    }
                    _ => return,
                };
                state.command(command);
                drop(state);
                self.0.waker.wake();
            }
        }
    }

    fn doorbell(&self, _gpu: &Gpu, byte: u64, value: u64, size: usize) {
        let Ok(dword) = u32::try_from(byte / 4) else { return };
        self.0.state().command(Command::Doorbell { dword, value, size });
        self.0.waker.wake();
    }

    fn reset(&self, _gpu: &Gpu) {
        let mut state = self.0.state();
        state.hqds.fill(Hqd([0; HQD_REGS]));
        state.sh_mem_config = [0; VMIDS];
        state.sh_mem_bases = [0; VMIDS];
        state.commands.clear();
        state.command(Command::Reset);
    }
}

#[cfg(test)]
mod tests;
