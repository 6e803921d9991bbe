// SPDX-License-Identifier: GPL-2.0

//! SDMA: copies memory, writes page tables and fences; rings of the kernel and of users.
//!
//! An engine has a ring GFX and a ring PAGE for the kernel and the rings RLC0 to RLC7 for users'
//! queues. Each has the same registers. [`SdmaBlock`] answers the driver's accesses at once,
//! [`SdmaEngine`] executes, on its own thread, what the rings contain.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use amdgpu_regs::{ih, sdma};

use crate::block::Block;
use crate::bus::{join, Bus, POLL};
use crate::engine::{Engine, Step, Waker};
use crate::gpu::Gpu;
use crate::gpuvm::{Hub, Mmu, Requester, Writer};
use crate::machine::GpuBus;
use crate::registers::RegisterFile;

mod exec;
mod packet;

pub(crate) use exec::{slice, Progress, Ring, Slice};

/// Rings of an engine: GFX, PAGE, RLC0 to RLC7.
const RINGS: usize = 10;
/// The first ring of a user.
const RLC0: usize = 2;
/// From a ring's registers to those of the next.
const STRIDE: u32 = sdma::SDMA_PAGE_RB_CNTL - sdma::SDMA_GFX_RB_CNTL;
/// What an interrupt calls the kernel's rings (`sdma_v4_4_2_process_trap_irq()`); it ignores others.
const IRQ_RING_GFX: u8 = 0;
const IRQ_RING_PAGE: u8 = 1;
/// The unit of `RB_BASE`: 256 bytes.
const BASE_SHIFT: u32 = 8;

/// A user's queue as the scheduler connects it: the contents of its MQD.
#[derive(Clone, Copy, Debug)]
pub struct Queue {
    /// `RB_CNTL` without `RB_ENABLE`, its VMID set.
    pub rb_cntl: u32,
    /// `RB_BASE`, 64 bits.
    pub base: u64,
    /// Where it goes on, in bytes.
    pub rptr: u64,
    /// Up to where it is filled, in bytes.
    pub wptr: u64,
    /// Where its read pointer is reported to.
    pub rptr_addr: u64,
    /// `DOORBELL_OFFSET`.
    pub doorbell_offset: u32,
}

#[derive(Default)]
struct RingState {
    enabled: bool,
    /// An error or a fault without retry ended it; a new enable lets it begin anew.
    stopped: bool,
    /// The engine executes a slice of it right now.
    running: bool,
    /// Changes with every enable and disable, so that a slice's end knows whether it still counts.
    generation: u64,
    /// A doorbell that came while the ring was not enabled (`DOORBELL.CAPTURED`).
    captured: Option<u64>,
    progress: Progress,
    /// It waits for a fault's handling or for a value, and looks again then.
    again: Option<Instant>,
    /// The read pointer in memory is not the ring's.
    report: bool,
}

type Rings = [RingState; RINGS];

struct Shared {
    name: &'static str,
    rings: Mutex<Rings>,
    waker: Waker,
}

impl Shared {
    fn rings(&self) -> MutexGuard<'_, Rings> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The registers of one ring.
#[derive(Clone, Copy)]
struct Regs {
    offset: u32,
}

impl Regs {
    fn of(ring: usize) -> Self {
        Self { offset: STRIDE * ring as u32 }
    }

    /// The ring's register that corresponds to one of ring GFX.
    fn at(self, gfx: u32) -> u32 {
        gfx + self.offset
    }

    fn read(self, file: &RegisterFile, gfx: u32) -> u32 {
        file.read(self.at(gfx))
    }

    fn pair(self, file: &RegisterFile, low: u32, high: u32) -> u64 {
        join(self.read(file, low), self.read(file, high))
    }

    fn set_pair(self, file: &RegisterFile, low: u32, high: u32, value: u64) {
        file.write(self.at(low), value as u32);
        file.write(self.at(high), (value >> 32) as u32);
    }

    fn rptr(self, file: &RegisterFile) -> u64 {
        self.pair(file, sdma::SDMA_GFX_RB_RPTR, sdma::SDMA_GFX_RB_RPTR_HI)
    }

    fn wptr(self, file: &RegisterFile) -> u64 {
        self.pair(file, sdma::SDMA_GFX_RB_WPTR, sdma::SDMA_GFX_RB_WPTR_HI)
    }

    fn doorbell_enabled(self, file: &RegisterFile) -> bool {
        sdma::SDMA_RLC0_DOORBELL__ENABLE.get(self.read(file, sdma::SDMA_GFX_DOORBELL)) != 0
    }
}

/// The ring that a register is of, and the same register of ring GFX.
fn ring_of(reg: u32) -> Option<(usize, u32)> {
    let offset = reg.checked_sub(sdma::SDMA_GFX_RB_CNTL)?;
    let ring = usize::try_from(offset / STRIDE).ok().filter(|ring| *ring < RINGS)?;
    Some((ring, sdma::SDMA_GFX_RB_CNTL + offset % STRIDE))
}

/// The registers and doorbells of an SDMA engine.
#[derive(Clone)]
pub struct SdmaBlock(Arc<Shared>);

/// The engine of a [`SdmaBlock`].
pub struct SdmaEngine {
    shared: Arc<Shared>,
    mmu: Arc<Mmu>,
    next: usize,
}

/// The one SDMA engine of the GPU: its registers, and what executes its rings.
pub fn new(mmu: Arc<Mmu>) -> (SdmaBlock, SdmaEngine, Waker) {
    let waker = Waker::new();
    let rings = Mutex::default();
    let shared = Arc::new(Shared { name: "sdma0", rings, waker: waker.clone() });
    (SdmaBlock(Arc::clone(&shared)), SdmaEngine { shared, mmu, next: 0 }, waker)
}

impl SdmaBlock {
    /// Begins or ends the execution of a ring, as `RB_CNTL.RB_ENABLE` says.
    fn set_enabled(&self, gpu: &Gpu, ring: usize, enable: bool) {
        let mut rings = self.0.rings();
        let Some(state) = rings.get_mut(ring) else { return };
        if state.enabled == enable {
            return;
        }
        state.enabled = enable;
        state.generation += 1;
        state.stopped = false;
        state.again = None;
        state.progress = Progress::default();
        let captured = state.captured.take();
        if let Some(wptr) = captured.filter(|_| enable) {
            let regs = Regs::of(ring);
            // What the driver read from memory may be newer.
            let wptr = wptr.max(regs.wptr(&gpu.regs));
            regs.set_pair(&gpu.regs, sdma::SDMA_GFX_RB_WPTR, sdma::SDMA_GFX_RB_WPTR_HI, wptr);
        }
        drop(rings);
        self.0.waker.wake();
    }

    /// Does the engine work on the ring? A ring that waits for a fault's handling can be switched
    /// away, so it counts as idle.
    fn busy(&self, ring: usize) -> bool {
        self.0.rings().get(ring).is_some_and(|state| state.running)
    }

    /// The read pointer of a user's ring, while the engine does not work on it.
    pub fn rptr(&self, gpu: &Gpu, queue: u32) -> Option<u64> {
        let ring = RLC0.checked_add(usize::try_from(queue).ok()?)?;
        (ring < RINGS && !self.busy(ring)).then(|| Regs::of(ring).rptr(&gpu.regs))
    }

    /// Connects a user's queue to RLC `queue`, as the scheduler firmware does.
    pub fn connect(&self, gpu: &Gpu, queue: u32, with: &Queue) {
        let Some(ring) = usize::try_from(queue).ok().and_then(|n| RLC0.checked_add(n)) else {
            return;
        };
        if ring >= RINGS {
            return;
        }
        let regs = Regs::of(ring);
        let file = &gpu.regs;
        file.write(regs.at(sdma::SDMA_GFX_DOORBELL_OFFSET), with.doorbell_offset);
        file.write(regs.at(sdma::SDMA_GFX_DOORBELL), sdma::SDMA_RLC0_DOORBELL__ENABLE.set(0, 1));
        regs.set_pair(file, sdma::SDMA_GFX_RB_RPTR, sdma::SDMA_GFX_RB_RPTR_HI, with.rptr);
        regs.set_pair(file, sdma::SDMA_GFX_RB_WPTR, sdma::SDMA_GFX_RB_WPTR_HI, with.wptr);
        regs.set_pair(file, sdma::SDMA_GFX_RB_BASE, sdma::SDMA_GFX_RB_BASE_HI, with.base);
        regs.set_pair(
            file,
            sdma::SDMA_GFX_RB_RPTR_ADDR_LO,
            sdma::SDMA_GFX_RB_RPTR_ADDR_HI,
            with.rptr_addr,
        );
        file.write(
            regs.at(sdma::SDMA_GFX_RB_CNTL),
            sdma::SDMA_RLC0_RB_CNTL__RB_ENABLE.set(with.rb_cntl, 1),
        );
        self.set_enabled(gpu, ring, true);
    }

    /// Takes a user's queue off RLC `queue`. Its read pointer is final when [`Self::rptr`] tells it.
    pub fn disconnect(&self, gpu: &Gpu, queue: u32) {
        let Some(ring) = usize::try_from(queue).ok().and_then(|n| RLC0.checked_add(n)) else {
            return;
        };
        if ring >= RINGS {
            return;
        }
        let regs = Regs::of(ring);
        let cntl = regs.read(&gpu.regs, sdma::SDMA_GFX_RB_CNTL);
        gpu.regs.write(
            regs.at(sdma::SDMA_GFX_RB_CNTL),
            sdma::SDMA_RLC0_RB_CNTL__RB_ENABLE.set(cntl, 0),
        );
        gpu.regs.write(regs.at(sdma::SDMA_GFX_DOORBELL), 0);
        self.set_enabled(gpu, ring, false);
    }
}

impl Block for SdmaBlock {
    fn name(&self) -> &'static str {
        self.0.name
    }

    fn owns(&self, reg: u32) -> bool {
        matches!(reg, sdma::SDMA_F32_CNTL | sdma::SDMA_STATUS_REG) || ring_of(reg).is_some()
    }

    fn read(&self, gpu: &Gpu, reg: u32) -> u32 {
        let value = gpu.regs.read(reg);
        if reg == sdma::SDMA_STATUS_REG {
            let idle = !self.0.rings().iter().any(|state| state.running);
            return sdma::SDMA_STATUS_REG__IDLE.set(value, u32::from(idle));
        }
        match ring_of(reg) {
            Some((ring, sdma::SDMA_GFX_CONTEXT_STATUS)) => {
                sdma::SDMA_GFX_CONTEXT_STATUS__IDLE.set(value, u32::from(!self.busy(ring)))
            }
            _ => value,
        }
    }

    fn write(&self, gpu: &Gpu, reg: u32, value: u32) {
        gpu.regs.write(reg, value);
        match ring_of(reg) {
            Some((ring, sdma::SDMA_GFX_RB_CNTL)) => {
                self.set_enabled(gpu, ring, sdma::SDMA_GFX_RB_CNTL__RB_ENABLE.get(value) != 0);
            }
            Some((ring, sdma::SDMA_GFX_DOORBELL)) => {
                if sdma::SDMA_RLC0_DOORBELL__ENABLE.get(value) == 0 {
                    if let Some(state) = self.0.rings().get_mut(ring) {
                        state.captured = None;
                    }
                }
                self.0.waker.wake();
            }
            Some((_, sdma::SDMA_GFX_RB_WPTR | sdma::SDMA_GFX_RB_WPTR_HI)) => self.0.waker.wake(),
            Some(_) => {}
            None => self.0.waker.wake(),
        }
    }

    fn doorbell(&self, gpu: &Gpu, byte: u64, value: u64, size: usize) {
        for ring in 0..RINGS {
            let regs = Regs::of(ring);
            let offset = regs.read(&gpu.regs, sdma::SDMA_GFX_DOORBELL_OFFSET);
            let offset = sdma::SDMA_RLC0_DOORBELL_OFFSET__OFFSET.get(offset);
            if u64::from(offset) * 4 != byte || !regs.doorbell_enabled(&gpu.regs) {
                continue;
            }
            let value = if size < 8 { regs.wptr(&gpu.regs) >> 32 << 32 | value } else { value };
            let mut rings = self.0.rings();
            let Some(state) = rings.get_mut(ring) else { continue };
            if state.enabled {
                regs.set_pair(&gpu.regs, sdma::SDMA_GFX_RB_WPTR, sdma::SDMA_GFX_RB_WPTR_HI, value);
            } else {
                state.captured = Some(value);
            }
            drop(rings);
            self.0.waker.wake();
        }
    }

    fn reset(&self, _gpu: &Gpu) {
        let mut rings = self.0.rings();
        for state in rings.iter_mut() {
            let generation = state.generation + 1;
            *state = RingState { generation, running: state.running, ..RingState::default() };
        }
    }
}

/// A slice that begins.
struct Job {
    index: usize,
    generation: u64,
    ring: Ring,
    rptr: u64,
    progress: Progress,
    /// The read pointer must be written to memory.
    report: bool,
}

impl SdmaEngine {
    /// Chooses the next ring that can go on, or says when one can.
    fn choose(&mut self, gpu: &Gpu) -> Result<Job, Step> {
        let file = &gpu.regs;
        if sdma::SDMA_F32_CNTL__HALT.get(file.read(sdma::SDMA_F32_CNTL)) != 0 {
            return Err(Step::Idle);
        }
        let now = Instant::now();
        let mut waiting = false;
        let mut rings = self.shared.rings();
        for n in 0..RINGS {
            let index = (self.next + n) % RINGS;
            let Some(state) = rings.get_mut(index) else { continue };
            let regs = Regs::of(index);
            // A user's ring belongs to nobody while its doorbell is off: the driver enables it
            // once more after it was taken off, only to read its registers.
            let connected = index < RLC0 || regs.doorbell_enabled(file);
            let (rptr, wptr) = (regs.rptr(file), regs.wptr(file));
            let pending = rptr != wptr || state.progress != Progress::default() || state.report;
            if !state.enabled || state.stopped || !connected || !pending {
                continue;
            }
            if state.again.is_some_and(|again| again > now) {
                waiting = true;
                continue;
            }
            state.running = true;
            state.again = None;
            self.next = index + 1;
            let cntl = regs.read(file, sdma::SDMA_GFX_RB_CNTL);
            let size = sdma::SDMA_GFX_RB_CNTL__RB_SIZE.get(cntl);
            let base = regs.pair(file, sdma::SDMA_GFX_RB_BASE, sdma::SDMA_GFX_RB_BASE_HI);
            let ring = Ring {
                engine: self.shared.name,
                index: index as u32,
                irq_ring: if index == 0 { IRQ_RING_GFX } else { IRQ_RING_PAGE.max(index as u8) },
                irq_client: ih::SOC15_IH_CLIENTID_SDMA0 as u8,
                vmid: sdma::SDMA_GFX_RB_CNTL__RB_VMID.get(cntl) as u8,
                base: base << BASE_SHIFT,
                size: 4u64.checked_shl(size).unwrap_or(0),
                wptr,
            };
            let progress = std::mem::take(&mut state.progress);
            let generation = state.generation;
            return Ok(Job { index, generation, ring, rptr, progress, report: state.report });
        }
        Err(if waiting { Step::Wait(POLL) } else { Step::Idle })
    }

    /// Writes the read pointer to where the ring wants it; says whether that is done.
    fn report<B: Bus + ?Sized>(&self, gpu: &Gpu, bus: &B, job: &Job) -> bool {
        let regs = Regs::of(job.index);
        let cntl = regs.read(&gpu.regs, sdma::SDMA_GFX_RB_CNTL);
        if sdma::SDMA_GFX_RB_CNTL__RPTR_WRITEBACK_ENABLE.get(cntl) == 0 {
            return true;
        }
        let to =
            regs.pair(&gpu.regs, sdma::SDMA_GFX_RB_RPTR_ADDR_LO, sdma::SDMA_GFX_RB_RPTR_ADDR_HI);
        let writer = Writer { engine: job.ring.engine, queue: job.ring.index, rptr: job.rptr };
        let by = Requester { hub: Hub::Mm, vmid: job.ring.vmid, no_retry: false, writer };
        match bus.write(&by, to & !3, &job.rptr.to_le_bytes()) {
            Ok(()) => true,
            Err(fault) => {
                bus.fault(&fault);
                !fault.retry
            }
        }
    }
}

impl Engine for SdmaEngine {
    fn name(&self) -> &'static str {
        self.shared.name
    }

    fn step(&mut self, gpu: &Gpu) -> Step {
        let mut job = match self.choose(gpu) {
            Ok(job) => job,
            Err(step) => return step,
        };
        let bus = GpuBus { gpu, mmu: &self.mmu };
        let before = job.rptr;
        let ended = slice(&bus, &job.ring, &mut job.progress, &mut job.rptr);
        let moved = job.rptr != before || job.report;
        let reported = !moved || self.report(gpu, &bus, &job);
        let mut rings = self.shared.rings();
        let Some(state) = rings.get_mut(job.index) else { return Step::Idle };
        state.running = false;
        // A ring that was disabled meanwhile keeps its read pointer for the driver to read; one
        // that was enabled anew has another.
        if state.generation == job.generation || !state.enabled {
            Regs::of(job.index).set_pair(
                &gpu.regs,
                sdma::SDMA_GFX_RB_RPTR,
                sdma::SDMA_GFX_RB_RPTR_HI,
                job.rptr,
            );
        }
        if state.generation == job.generation {
            state.progress = job.progress;
            state.report = !reported;
            match ended {
                Slice::Empty | Slice::More => {}
                Slice::Wait(time) => state.again = Instant::now().checked_add(time),
                Slice::Stop => state.stopped = true,
            }
            if !reported {
                state.again = Instant::now().checked_add(POLL);
            }
        }
        Step::Busy
    }
}

#[cfg(test)]
mod tests;
