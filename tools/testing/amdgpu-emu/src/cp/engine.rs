// SPDX-License-Identifier: GPL-2.0

//! Executes the queues that are mapped, and maps and unmaps them for the driver.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use amdgpu_regs::{gc, mqd, sdma};

use super::pm4::{Action, MapQueue, Packet, Target, Which};
use super::queue::{Hqd, Progress, Queue, Slice, Slot, HQD_REGS, NAME, SH_REGS_IN_MQD};
use super::scheduler::{self, Process};
use super::{Command, Shared};
use crate::bus::{self, join, Bus, POLL};
use crate::engine::{Engine, Step};
use crate::gpu::Gpu;
use crate::gpuvm::{Fault, Hub, Mmu, Requester, Writer};
use crate::machine::GpuBus;
use crate::report::Kind;
use crate::sdma::{self as sdma_block, SdmaBlock};

/// How long the kernel's queues may work before others have their turn.
const KERNEL_TURN: Duration = Duration::from_millis(1);
/// How long a user's queue may. While it does, the kernel's flushes wait.
const USER_TURN: Duration = Duration::from_micros(500);
/// How long a process of a run list that has more processes than there are VMIDs stays mapped.
const QUANTUM: Duration = Duration::from_millis(20);
/// How long the SDMA engine may need for a slice when a ring is taken off.
const SDMA_PATIENCE: Duration = Duration::from_secs(2);
/// Sets of waves that are kept for queues that do not come back.
const SAVED: usize = 4096;
/// `enum hqd_dequeue_request_type` in `amdgpu_amdkfd_gfx_v9.c`.
const DRAIN_PIPE: u32 = 1;
const RESET_WAVES: u32 = 2;
/// Dwords of an MQD.
const MQD_DWORDS: usize = mqd::compute::CP_MQD_BASE_ADDR_LO + HQD_REGS;
const SDMA_MQD_DWORDS: usize = mqd::sdma::SDMA_QUEUE_ID + 1;
/// Queues of users on an SDMA engine.
const SDMA_QUEUES: u32 = 8;
/// Where a queue's shader registers say which waves are to be restored: the emulator keeps them,
/// and there is a number in place of an address. A queue that the driver made anew has 0 there.
const RESTORE_LO: usize =
    (gc::COMPUTE_WAVE_RESTORE_ADDR_LO - gc::COMPUTE_DISPATCH_INITIATOR) as usize;
const RESTORE_HI: usize = RESTORE_LO + 1;

/// Who mapped a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// The driver, by registers or by the KIQ.
    Driver,
    /// The scheduler; the address space, and whether it may be preempted.
    Scheduler { pasid: u16, is_static: bool },
}

struct Mapped {
    queue: Queue,
    owner: Owner,
    /// It is to be taken off when its waves have ended.
    draining: bool,
}

struct MappedSdma {
    map: MapQueue,
    pasid: u16,
    vmid: u8,
    /// The engine's ring, once the queue is connected.
    ring: Option<u32>,
}

/// What executes the queues of CP.
pub struct CpEngine {
    shared: Arc<Shared>,
    mmu: Arc<Mmu>,
    sdma: SdmaBlock,
    queues: Vec<Mapped>,
    sdma_queues: Vec<MappedSdma>,
    /// Waves that were saved, by the number that their queue's MQD has.
    saved: BTreeMap<u64, Progress>,
    next_saved: u64,
    turn: usize,
    /// The VMIDs that the scheduler may use.
    vmids: u16,
    processes: Vec<Process>,
    rotated: Instant,
}

fn by(hub: Hub, vmid: u8, queue: u32) -> Requester {
    Requester { hub, vmid, no_retry: false, writer: Writer { engine: NAME, queue, rptr: 0 } }
}

/// Reads an MQD, which is the kernel's memory.
fn read_mqd<B: Bus + ?Sized>(bus: &B, at: u64, dwords: usize) -> Result<Vec<u32>, Fault> {
    let mut bytes = vec![0; dwords * 4];
    bus.read(&by(Hub::Gfx, 0, 0), at, &mut bytes)?;
    Ok(bytes.chunks_exact(4).map(|dword| dword.try_into().map_or(0, u32::from_le_bytes)).collect())
}

fn write_mqd<B: Bus + ?Sized>(bus: &B, at: u64, dword: usize, values: &[u32]) -> Result<(), Fault> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    bus.write(&by(Hub::Gfx, 0, 0), at.wrapping_add(dword as u64 * 4), &bytes)
}

impl CpEngine {
    pub(super) fn new(shared: Arc<Shared>, mmu: Arc<Mmu>, sdma: SdmaBlock) -> Self {
        Self {
            shared,
            mmu,
            sdma,
            queues: Vec::new(),
            sdma_queues: Vec::new(),
            saved: BTreeMap::new(),
            next_saved: 1,
            turn: 0,
            vmids: 0,
            processes: Vec::new(),
            rotated: Instant::now(),
        }
    }

    fn sh_mem_config(&self, vmid: u8) -> u32 {
        self.shared.state().sh_mem_config.get(usize::from(vmid)).copied().unwrap_or(0)
    }

    /// Makes a queue run; `sh` are its shader registers as they were saved.
    fn map(&mut self, mut queue: Queue, owner: Owner) {
        let low = queue.sh.get(RESTORE_LO).copied().unwrap_or(0);
        let high = queue.sh.get(RESTORE_HI).copied().unwrap_or(0);
        if let Some(progress) = self.saved.remove(&join(low, high)) {
            queue.progress = progress;
        }
        if let Some(restore) = queue.sh.get_mut(RESTORE_LO..=RESTORE_HI) {
            restore.fill(0);
        }
        if owner == Owner::Driver {
            self.queues.retain(|old| old.owner != Owner::Driver || old.queue.slot != queue.slot);
        }
        self.queues.push(Mapped { queue, owner, draining: false });
    }

    /// Ends the execution of a queue, and writes to its MQD where it stands.
    fn take_off<B: Bus + ?Sized>(&mut self, bus: &B, mapped: Mapped, save: bool) {
        let mut queue = mapped.queue;
        let mut number = 0;
        if save && queue.progress != Progress::default() {
            number = self.next_saved;
            self.next_saved += 1;
            self.saved.insert(number, std::mem::take(&mut queue.progress));
            while self.saved.len() > SAVED {
                self.saved.pop_first();
            }
        }
        if let Some(restore) = queue.sh.get_mut(RESTORE_LO..=RESTORE_HI) {
            restore.copy_from_slice(&[number as u32, (number >> 32) as u32]);
        }
        let hqd = queue.registers();
        if mapped.owner == Owner::Driver {
            if let Some(bank) = self.shared.state().hqd(queue.slot) {
                *bank = hqd;
                bank.set(gc::CP_HQD_ACTIVE, 0);
                bank.set(gc::CP_HQD_DEQUEUE_REQUEST, 0);
            }
        }
        let at = hqd.mqd();
        if at == 0 {
            return;
        }
        let sh = queue.sh.get(..SH_REGS_IN_MQD).unwrap_or_default();
        let wptr = [hqd.get(gc::CP_HQD_PQ_WPTR_LO), hqd.get(gc::CP_HQD_PQ_WPTR_HI)];
        let written = write_mqd(bus, at, mqd::compute::COMPUTE_DISPATCH_INITIATOR, sh)
            .and_then(|()| {
                write_mqd(bus, at, mqd::compute::CP_HQD_PQ_RPTR, &[hqd.get(gc::CP_HQD_PQ_RPTR)])
            })
            .and_then(|()| write_mqd(bus, at, mqd::compute::CP_HQD_PQ_WPTR_LO, &wptr));
        if let Err(fault) = written {
            bus.error(Kind::Driver, NAME, format!("MQD at {at:#x}: {fault}"));
        }
    }

    /// Takes off all queues that `matches` says.
    fn take_off_all<B, F>(&mut self, bus: &B, save: bool, matches: F)
    where
        B: Bus + ?Sized,
        F: Fn(&Mapped) -> bool,
    {
        let (off, on) = std::mem::take(&mut self.queues).into_iter().partition(|m| matches(m));
        self.queues = on;
        let off: Vec<Mapped> = off;
        for mapped in off {
            self.take_off(bus, mapped, save);
        }
    }

    fn take_off_sdma<B, F>(&mut self, gpu: &Gpu, bus: &B, matches: F)
    where
        B: Bus + ?Sized,
        F: Fn(&MappedSdma) -> bool,
    {
        let (off, on): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.sdma_queues).into_iter().partition(|m| matches(m));
        self.sdma_queues = on;
        for mapped in &off {
            if let Some(ring) = mapped.ring {
                self.sdma.disconnect(gpu, ring);
            }
        }
        for mapped in off {
            let Some(ring) = mapped.ring else { continue };
            let begun = Instant::now();
            let rptr = loop {
                if let Some(rptr) = self.sdma.rptr(gpu, ring) {
                    break rptr;
                }
                if begun.elapsed() > SDMA_PATIENCE {
                    bus.error(Kind::Internal, NAME, format!("SDMA ring {ring} does not stop"));
                    return;
                }
                thread::sleep(Duration::from_micros(50));
            };
            let rptr = [rptr as u32, (rptr >> 32) as u32];
            let written = write_mqd(bus, mapped.map.mqd, mqd::sdma::SDMAX_RLCX_RB_RPTR, &rptr);
            if let Err(fault) = written {
                bus.error(
                    Kind::Driver,
                    NAME,
                    format!("SDMA MQD at {:#x}: {fault}", mapped.map.mqd),
                );
            }
        }
    }

    fn commands<B: Bus + ?Sized>(&mut self, gpu: &Gpu, bus: &B) {
        loop {
            let command = self.shared.state().commands.pop_front();
            match command {
                None => return,
                Some(Command::Activate(slot)) => self.activate(bus, slot),
                Some(Command::Dequeue(slot, how)) => self.dequeue(bus, slot, how),
                Some(Command::Doorbell { dword, value, size }) => {
                    for mapped in &mut self.queues {
                        if mapped.queue.doorbell == dword {
                            mapped.queue.ring(value, size);
                        }
                    }
                }
                Some(Command::Reset) => {
                    self.queues.clear();
                    self.saved.clear();
                    self.processes.clear();
                    for ring in self.sdma_queues.drain(..).filter_map(|mapped| mapped.ring) {
                        self.sdma.disconnect(gpu, ring);
                    }
                }
            }
        }
    }

    /// The driver has filled a slot's registers and set `CP_HQD_ACTIVE`.
    fn activate<B: Bus + ?Sized>(&mut self, bus: &B, slot: Slot) {
        let Some(hqd) = self.shared.state().hqd(slot).map(|hqd| *hqd) else { return };
        let sh = match hqd.mqd() {
            0 => Vec::new(),
            at => match read_mqd(bus, at, SH_REGS_IN_MQD + 1) {
                Ok(mqd) => mqd.get(1..).unwrap_or_default().to_vec(),
                Err(fault) => {
                    bus.error(Kind::Driver, NAME, format!("MQD at {at:#x}: {fault}"));
                    return;
                }
            },
        };
        let mut queue = Queue::new(slot, hqd, sh);
        let poll =
            join(hqd.get(gc::CP_HQD_PQ_WPTR_POLL_ADDR), hqd.get(gc::CP_HQD_PQ_WPTR_POLL_ADDR_HI));
        // kgd_gfx_v9_hqd_load() lets the queue read the write pointer once.
        if queue.vmid != 0 && poll != 0 {
            queue.wptr = queue.rptr;
            queue.read_wptr = Some(poll);
        }
        self.map(queue, Owner::Driver);
    }

    fn dequeue<B: Bus + ?Sized>(&mut self, bus: &B, slot: Slot, how: u32) {
        let found = self
            .queues
            .iter()
            .position(|mapped| mapped.owner == Owner::Driver && mapped.queue.slot == slot);
        match found {
            Some(index) => {
                let drains = how == DRAIN_PIPE;
                if let Some(mapped) =
                    self.queues.get_mut(index).filter(|m| drains && m.queue.busy())
                {
                    mapped.draining = true;
                    return;
                }
                let mapped = self.queues.remove(index);
                self.take_off(bus, mapped, how != RESET_WAVES);
            }
            None => {
                if let Some(bank) = self.shared.state().hqd(slot) {
                    bank.set(gc::CP_HQD_ACTIVE, 0);
                    bank.set(gc::CP_HQD_DEQUEUE_REQUEST, 0);
                }
            }
        }
    }

    /// `MAP_QUEUES` of a compute queue or of the HIQ.
    fn map_compute<B: Bus + ?Sized>(
        &mut self,
        bus: &B,
        map: &MapQueue,
        process: Option<(u8, u16)>,
    ) -> Result<(), Fault> {
        let image = read_mqd(bus, map.mqd, MQD_DWORDS)?;
        let mut hqd = Hqd([0; HQD_REGS]);
        let registers = image.get(mqd::compute::CP_MQD_BASE_ADDR_LO..).unwrap_or_default();
        for (to, from) in hqd.0.iter_mut().zip(registers) {
            *to = *from;
        }
        if let Some((vmid, _)) = process {
            hqd.set(gc::CP_HQD_VMID, u32::from(vmid));
        }
        hqd.set(gc::CP_MQD_BASE_ADDR, map.mqd as u32);
        hqd.set(gc::CP_MQD_BASE_ADDR_HI, (map.mqd >> 32) as u32);
        hqd.set(gc::CP_HQD_ACTIVE, 1);
        let control = gc::CP_HQD_PQ_DOORBELL_CONTROL__DOORBELL_EN
            .set(hqd.get(gc::CP_HQD_PQ_DOORBELL_CONTROL), 1);
        hqd.set(
            gc::CP_HQD_PQ_DOORBELL_CONTROL,
            gc::CP_HQD_PQ_DOORBELL_CONTROL__DOORBELL_OFFSET.set(control, map.doorbell),
        );
        let (me, pipe, number) = map.slot.unwrap_or_default();
        let slot = Slot { me, pipe, queue: number };
        let sh = image.get(1..=SH_REGS_IN_MQD).unwrap_or_default().to_vec();
        let mut queue = Queue::new(slot, hqd, sh);
        queue.wptr = queue.rptr;
        queue.read_wptr = Some(map.wptr).filter(|at| *at != 0);
        let owner = match process {
            Some((_, pasid)) => Owner::Scheduler { pasid, is_static: map.is_static },
            None => {
                if let Some(bank) = self.shared.state().hqd(slot) {
                    *bank = hqd;
                }
                Owner::Driver
            }
        };
        self.map(queue, owner);
        Ok(())
    }

    /// Connects SDMA queues whose write pointer can be read by now; says whether one cannot.
    fn connect_sdma<B: Bus + ?Sized>(&mut self, gpu: &Gpu, bus: &B) -> bool {
        let mut waits = false;
        let mut used: u32 =
            self.sdma_queues.iter().filter_map(|m| m.ring).fold(0, |mask, r| mask | 1 << r);
        for mapped in self.sdma_queues.iter_mut().filter(|mapped| mapped.ring.is_none()) {
            let read = || -> Result<_, Fault> {
                let image = read_mqd(bus, mapped.map.mqd, SDMA_MQD_DWORDS)?;
                let user = by(Hub::Mm, mapped.vmid, mapped.map.doorbell);
                Ok((image, bus::read64(bus, &user, mapped.map.wptr & !7)?))
            };
            let (image, wptr) = match read() {
                Ok(both) => both,
                Err(fault) => {
                    bus.fault(&fault);
                    waits |= fault.retry;
                    continue;
                }
            };
            let dword = |index: usize| image.get(index).copied().unwrap_or(0);
            let wanted = dword(mqd::sdma::SDMA_QUEUE_ID);
            let free = |ring: &u32| used & 1 << ring == 0;
            let ring = Some(wanted).filter(|ring| *ring < SDMA_QUEUES && free(ring));
            let Some(ring) = ring.or_else(|| (0..SDMA_QUEUES).find(free)) else {
                bus.error(Kind::Unimplemented, NAME, "more SDMA queues than rings".to_string());
                continue;
            };
            used |= 1 << ring;
            let cntl = dword(mqd::sdma::SDMAX_RLCX_RB_CNTL);
            self.sdma.connect(
                gpu,
                ring,
                &sdma_block::Queue {
                    rb_cntl: sdma::SDMA_RLC0_RB_CNTL__RB_VMID.set(cntl, u32::from(mapped.vmid)),
                    base: join(
                        dword(mqd::sdma::SDMAX_RLCX_RB_BASE),
                        dword(mqd::sdma::SDMAX_RLCX_RB_BASE_HI),
                    ),
                    rptr: join(
                        dword(mqd::sdma::SDMAX_RLCX_RB_RPTR),
                        dword(mqd::sdma::SDMAX_RLCX_RB_RPTR_HI),
                    ),
                    wptr,
                    rptr_addr: join(
                        dword(mqd::sdma::SDMAX_RLCX_RB_RPTR_ADDR_LO),
                        dword(mqd::sdma::SDMAX_RLCX_RB_RPTR_ADDR_HI),
                    ),
                    doorbell_offset: dword(mqd::sdma::SDMAX_RLCX_DOORBELL_OFFSET),
                },
            );
            mapped.ring = Some(ring);
        }
        waits
    }

    /// Gives VMIDs to processes that have none, as far as there are some, and maps their queues.
    fn map_processes<B: Bus + ?Sized>(&mut self, gpu: &Gpu, bus: &B) {
        while let Some(index) = self.processes.iter().position(|process| process.vmid.is_none()) {
            let Some(vmid) = scheduler::free_vmid(self.vmids, &self.processes) else { break };
            let Some(process) = self.processes.get_mut(index) else { break };
            process.vmid = Some(vmid);
            let map = process.map;
            let queues = process.queues.clone();
            {
                let mut state = self.shared.state();
                let index = usize::from(vmid);
                if let Some(config) = state.sh_mem_config.get_mut(index) {
                    *config = map.sh_mem_config;
                }
                if let Some(bases) = state.sh_mem_bases.get_mut(index) {
                    *bases = map.sh_mem_bases;
                }
            }
            bus.map_process(vmid, map.root, map.pasid);
            for queue in &queues {
                match queue.target {
                    Target::Sdma(0) => {
                        let pasid = map.pasid;
                        self.sdma_queues.push(MappedSdma { map: *queue, pasid, vmid, ring: None });
                    }
                    Target::Sdma(engine) => {
                        bus.error(
                            Kind::Unimplemented,
                            NAME,
                            format!("a queue of SDMA engine {engine}"),
                        );
                    }
                    Target::Compute | Target::Hiq => {
                        if let Err(fault) = self.map_compute(bus, queue, Some((vmid, map.pasid))) {
                            bus.error(
                                Kind::Driver,
                                NAME,
                                format!("MQD at {:#x}: {fault}", queue.mqd),
                            );
                        }
                    }
                }
            }
        }
        self.connect_sdma(gpu, bus);
    }

    /// Takes the queues of a process off; its VMID is free then.
    fn unmap_process<B: Bus + ?Sized>(&mut self, gpu: &Gpu, bus: &B, pasid: u16, save: bool) {
        self.take_off_all(
            bus,
            save,
            |mapped| matches!(mapped.owner, Owner::Scheduler { pasid: of, .. } if of == pasid),
        );
        self.take_off_sdma(gpu, bus, |mapped| mapped.pasid == pasid);
        for process in self.processes.iter_mut().filter(|process| process.map.pasid == pasid) {
            if let Some(vmid) = process.vmid.take() {
                bus.map_process(vmid, 0, 0);
            }
        }
    }

    /// Lets the processes of a list that is too long take turns.
    fn rotate<B: Bus + ?Sized>(&mut self, gpu: &Gpu, bus: &B) -> bool {
        let waiting = self.processes.iter().any(|p| p.vmid.is_none() && !p.queues.is_empty());
        if !waiting || self.vmids == 0 {
            return false;
        }
        if self.rotated.elapsed() >= QUANTUM {
            self.rotated = Instant::now();
            let first = self.processes.iter().position(|process| process.vmid.is_some());
            if let Some(index) = first {
                let mut process = self.processes.remove(index);
                let (pasid, vmid) = (process.map.pasid, process.vmid.take());
                self.unmap_process(gpu, bus, pasid, true);
                if let Some(vmid) = vmid {
                    bus.map_process(vmid, 0, 0);
                }
                self.processes.push(process);
                self.map_processes(gpu, bus);
            }
        }
        true
    }

    fn unmap<B: Bus + ?Sized>(
        &mut self,
        gpu: &Gpu,
        bus: &B,
        action: &Action,
        which: &Which,
    ) -> Result<(), Fault> {
        let save = *action != Action::Reset;
        if let Action::PreemptNoUnmap { to, value } = action {
            return bus.write(&by(Hub::Gfx, 0, 0), *to, &value.to_le_bytes());
        }
        match which {
            Which::Doorbells(doorbells) => {
                self.take_off_all(bus, save, |mapped| doorbells.contains(&mapped.queue.doorbell));
                self.take_off_sdma(gpu, bus, |mapped| doorbells.contains(&mapped.map.doorbell));
            }
            Which::Pasid(pasid) => {
                self.unmap_process(gpu, bus, *pasid, save);
                self.processes.retain(|process| process.map.pasid != *pasid);
            }
            Which::All | Which::NonStatic => {
                let all = *which == Which::All;
                self.take_off_all(bus, save, |mapped| {
                    matches!(mapped.owner, Owner::Scheduler { is_static, .. } if all || !is_static)
                });
                self.take_off_sdma(gpu, bus, |_| true);
                let remains = |pasid: u16| {
                    self.queues.iter().any(|mapped| {
                        matches!(mapped.owner, Owner::Scheduler { pasid: of, .. } if of == pasid)
                    })
                };
                let (on, off): (Vec<_>, Vec<_>) = std::mem::take(&mut self.processes)
                    .into_iter()
                    .partition(|process| remains(process.map.pasid));
                self.processes = on;
                for vmid in off.iter().filter_map(|process| process.vmid) {
                    bus.map_process(vmid, 0, 0);
                }
            }
        }
        Ok(())
    }

    /// Executes a packet of the KIQ or HIQ.
    fn schedule<B: Bus + ?Sized>(
        &mut self,
        gpu: &Gpu,
        bus: &B,
        packet: Packet,
    ) -> Result<(), String> {
        let failed = |fault: Fault| fault.to_string();
        match packet {
            Packet::SetResources { vmids, hiq } => {
                if hiq {
                    self.vmids = vmids;
                }
            }
            Packet::MapQueue(map) if map.slot.is_some() => {
                self.map_compute(bus, &map, None).map_err(failed)?;
            }
            Packet::UnmapQueues { action, which } => {
                self.unmap(gpu, bus, &action, &which).map_err(failed)?;
            }
            Packet::QueryStatus { to, value } => {
                bus.write(&by(Hub::Gfx, 0, 0), to, &value.to_le_bytes()).map_err(failed)?;
            }
            Packet::RunList { base, dwords, .. } => {
                let mut bytes = vec![0; dwords as usize * 4];
                bus.read(&by(Hub::Gfx, 0, 0), base, &mut bytes).map_err(failed)?;
                let list: Vec<u32> = bytes
                    .chunks_exact(4)
                    .map(|dword| dword.try_into().map_or(0, u32::from_le_bytes))
                    .collect();
                let processes = scheduler::parse(&list)?;
                // The driver unmaps all before; what remains is replaced.
                for pasid in self.processes.iter().map(|p| p.map.pasid).collect::<Vec<_>>() {
                    self.unmap_process(gpu, bus, pasid, true);
                }
                self.processes = processes;
                self.rotated = Instant::now();
                self.map_processes(gpu, bus);
            }
            Packet::InvalidateTlbs { pasid, both_hubs } => {
                bus.invalidate(bus.vmids(pasid), both_hubs);
            }
            other => return Err(format!("{other:?} outside of a run list")),
        }
        Ok(())
    }

    /// Lets one queue work; says what it wants.
    fn serve<B: Bus + ?Sized>(
        &mut self,
        gpu: &Gpu,
        bus: &B,
        index: usize,
        turn: Duration,
    ) -> Slice {
        let Some(mapped) = self.queues.get(index) else { return Slice::Idle };
        let config = self.sh_mem_config(mapped.queue.vmid);
        let Some(mapped) = self.queues.get_mut(index) else { return Slice::Idle };
        let until = Instant::now() + turn;
        let slice = mapped.queue.slice(bus, config, until);
        if mapped.draining && !mapped.queue.busy() {
            let mapped = self.queues.remove(index);
            self.take_off(bus, mapped, true);
            return Slice::More;
        }
        let Slice::Schedule(packet, dwords) = slice else { return slice };
        // The packet may change which queues there are; the queue is found again by its doorbell.
        let (slot, doorbell) = (mapped.queue.slot, mapped.queue.doorbell);
        bus.packet();
        if let Err(what) = self.schedule(gpu, bus, packet) {
            bus.error(
                Kind::UnknownPacket,
                NAME,
                format!("queue with doorbell {doorbell:#x}: {what}"),
            );
        }
        let queue = self.queues.iter_mut().map(|mapped| &mut mapped.queue);
        for queue in queue.filter(|queue| queue.slot == slot && queue.doorbell == doorbell) {
            queue.advance(dwords);
        }
        Slice::More
    }
}

impl Engine for CpEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn step(&mut self, gpu: &Gpu) -> Step {
        let mmu = Arc::clone(&self.mmu);
        let bus = GpuBus { gpu, mmu: &mmu };
        self.commands(gpu, &bus);
        let mut more = false;
        let mut wait = self.rotate(gpu, &bus).then_some(QUANTUM);
        let mut note = |slice: Slice| match slice {
            Slice::Idle => {}
            Slice::More | Slice::Schedule(..) => more = true,
            Slice::Wait(time) => {
                wait = Some(wait.map_or(time, |shortest: Duration| shortest.min(time)))
            }
        };
        let mut index = 0;
        while let Some(mapped) = self.queues.get(index) {
            if mapped.queue.vmid == 0 {
                note(self.serve(gpu, &bus, index, KERNEL_TURN));
            }
            index += 1;
        }
        // One turn of one user's queue that has something to do.
        for _ in 0..self.queues.len() {
            self.turn = (self.turn + 1) % self.queues.len().max(1);
            let Some(mapped) = self.queues.get(self.turn) else { continue };
            if mapped.queue.vmid == 0 {
                continue;
            }
            let slice = self.serve(gpu, &bus, self.turn, USER_TURN);
            let worked = slice == Slice::More;
            note(slice);
            if worked {
                break;
            }
        }
        if self.connect_sdma(gpu, &bus) {
            note(Slice::Wait(POLL));
        }
        match (more, wait) {
            (true, _) => Step::Busy,
            (false, Some(time)) => Step::Wait(time),
            (false, None) => Step::Idle,
        }
    }
}
