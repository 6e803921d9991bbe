// SPDX-License-Identifier: GPL-2.0

//! A queue of the micro engine compute (MEC): reads packets from its ring and executes them.

use std::time::{Duration, Instant};

use amdgpu_regs::{gc, ih, mqd};

use super::dispatch::{Dispatch, ShaderRegs, State};
use super::pm4::{self, Header, Packet, Place, Release, Source};
use crate::bus::{self, join, Bus, POLL};
use crate::gpu::NODE_XCD0;
use crate::gpuvm::{Fault, Hub, Requester, Writer};
use crate::ih::Iv;
use crate::report::Kind;

/// The engine's name in reports.
pub const NAME: &str = "cp";
/// Packets that a slice executes at most.
const SLICE_PACKETS: u32 = 128;
/// Indirect buffers within indirect buffers.
const MAX_IBS: usize = 2;
/// Shader registers that a queue keeps: `COMPUTE_DISPATCH_INITIATOR` and what follows it.
pub const SH_REGS: usize = 0x80;
/// The shader registers that an MQD holds, from its second dword on.
pub const SH_REGS_IN_MQD: usize = mqd::compute::COMPUTE_USER_DATA_15;
/// HQD registers, from `CP_MQD_BASE_ADDR` on; an MQD has them in the same order.
pub const HQD_REGS: usize = (gc::CP_HQD_AQL_DISPATCH_ID_HI - gc::CP_MQD_BASE_ADDR + 1) as usize;
/// The unit of `CP_HQD_PQ_BASE`.
const PQ_BASE_SHIFT: u32 = 8;

/// A hardware queue slot, as `GRBM_GFX_CNTL` selects it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    /// The micro engine, 1 or 2; 0 if the scheduler holds the queue and there is no slot.
    pub me: u8,
    /// Its pipe.
    pub pipe: u8,
    /// The pipe's queue.
    pub queue: u8,
}

impl Slot {
    /// As interrupts name it (`gfx_v9_4_3_eop_irq()`).
    pub fn ring_id(self) -> u8 {
        self.queue << 4 | self.me << 2 | self.pipe
    }
}

/// The registers of a hardware queue descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hqd(pub [u32; HQD_REGS]);

impl Hqd {
    fn index(reg: u32) -> Option<usize> {
        reg.checked_sub(gc::CP_MQD_BASE_ADDR).map(|n| n as usize).filter(|n| *n < HQD_REGS)
    }

    /// Is this a register of an HQD?
    pub fn has(reg: u32) -> bool {
        Self::index(reg).is_some()
    }

    /// A register's value.
    pub fn get(&self, reg: u32) -> u32 {
        Self::index(reg).and_then(|n| self.0.get(n)).copied().unwrap_or(0)
    }

    /// Sets a register.
    pub fn set(&mut self, reg: u32, value: u32) {
        if let Some(register) = Self::index(reg).and_then(|n| self.0.get_mut(n)) {
            *register = value;
        }
    }

    fn pair(&self, low: u32, high: u32) -> u64 {
        join(self.get(low), self.get(high))
    }

    /// Where the queue's MQD is.
    pub fn mqd(&self) -> u64 {
        self.pair(gc::CP_MQD_BASE_ADDR, gc::CP_MQD_BASE_ADDR_HI) & !3
    }

    /// Is the queue active?
    pub fn active(&self) -> bool {
        gc::CP_HQD_ACTIVE__ACTIVE.get(self.get(gc::CP_HQD_ACTIVE)) != 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ib {
    base: u64,
    dwords: u32,
    at: u32,
    vmid: u8,
}

/// What a queue is in the middle of: all that must be saved when it is taken off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    ibs: Vec<Ib>,
    dispatch: Option<Dispatch>,
    /// The register write of a `WAIT_REG_MEM` is done.
    written: bool,
}

/// A queue that is mapped.
#[derive(Clone, Debug)]
pub struct Queue {
    /// Its slot.
    pub slot: Slot,
    /// Its registers when it was mapped.
    pub hqd: Hqd,
    /// Its address space.
    pub vmid: u8,
    /// Its doorbell, by dword.
    pub doorbell: u32,
    base: u64,
    /// Its size in dwords, a power of two.
    size: u64,
    /// In dwords, within the ring.
    pub rptr: u64,
    /// In dwords, since the ring began.
    pub wptr: u64,
    /// Where the write pointer is read from when the queue is mapped, until that was possible.
    pub read_wptr: Option<u64>,
    /// The read pointer in memory is not the queue's.
    report: bool,
    /// The shader registers from `COMPUTE_DISPATCH_INITIATOR` on.
    pub sh: Vec<u32>,
    /// What it is in the middle of.
    pub progress: Progress,
    /// It looks again then.
    again: Option<Instant>,
    /// It does not go on.
    stopped: bool,
}

/// How a slice ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slice {
    /// Nothing to do.
    Idle,
    /// More to do.
    More,
    /// More to do after some time.
    Wait(Duration),
    /// The engine must execute this packet, which has so many dwords, and then advance.
    Schedule(Packet, u32),
}

enum Stop {
    Fault(Fault),
    Error(Kind, String),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

enum Flow {
    Done,
    Skip(u32),
    Enter { ib: Ib, chain: bool },
    Poll,
    Schedule(Packet),
}

impl Queue {
    /// A queue from its HQD registers, with its shader registers as in its MQD.
    pub fn new(slot: Slot, hqd: Hqd, sh: Vec<u32>) -> Self {
        let control = hqd.get(gc::CP_HQD_PQ_CONTROL);
        let size = 2u64.checked_shl(gc::CP_HQD_PQ_CONTROL__QUEUE_SIZE.get(control)).unwrap_or(0);
        let doorbell = hqd.get(gc::CP_HQD_PQ_DOORBELL_CONTROL);
        let mut sh = sh;
        sh.resize(SH_REGS, 0);
        Self {
            slot,
            vmid: (hqd.get(gc::CP_HQD_VMID) & 0xf) as u8,
            doorbell: gc::CP_HQD_PQ_DOORBELL_CONTROL__DOORBELL_OFFSET.get(doorbell),
            base: hqd.pair(gc::CP_HQD_PQ_BASE, gc::CP_HQD_PQ_BASE_HI) << PQ_BASE_SHIFT,
            size,
            rptr: u64::from(hqd.get(gc::CP_HQD_PQ_RPTR)) & size.wrapping_sub(1),
            wptr: hqd.pair(gc::CP_HQD_PQ_WPTR_LO, gc::CP_HQD_PQ_WPTR_HI),
            read_wptr: None,
            report: false,
            sh,
            progress: Progress::default(),
            again: None,
            stopped: false,
            hqd,
        }
    }

    /// The user is to be AQL packets, which the emulator does not know.
    pub fn is_aql(&self) -> bool {
        gc::CP_HQD_AQL_CONTROL__CONTROL0.get(self.hqd.get(gc::CP_HQD_AQL_CONTROL)) != 0
    }

    /// The doorbell was written.
    pub fn ring(&mut self, wptr: u64, size: usize) {
        self.wptr = if size < 8 { self.wptr >> 32 << 32 | wptr } else { wptr };
        // A doorbell is newer than what memory said when the queue was mapped.
        self.read_wptr = None;
    }

    /// Dwords between the read and the write pointer.
    fn pending(&self) -> u64 {
        self.wptr.wrapping_sub(self.rptr) & self.size.wrapping_sub(1)
    }

    fn by(&self, vmid: u8) -> Requester {
        let writer = Writer { engine: NAME, queue: self.doorbell, rptr: self.rptr };
        Requester { hub: Hub::Gfx, vmid, no_retry: false, writer }
    }

    /// Is a dispatch under way?
    pub fn busy(&self) -> bool {
        self.progress.dispatch.is_some()
    }

    /// The registers as they are now, for the MQD and for the slot.
    pub fn registers(&self) -> Hqd {
        let mut hqd = self.hqd;
        hqd.set(gc::CP_HQD_PQ_RPTR, self.rptr as u32);
        hqd.set(gc::CP_HQD_PQ_WPTR_LO, self.wptr as u32);
        hqd.set(gc::CP_HQD_PQ_WPTR_HI, (self.wptr >> 32) as u32);
        hqd
    }

    /// Reads dwords after the read position.
    fn fetch<B: Bus + ?Sized>(
        &self,
        bus: &B,
        offset: u64,
        dwords: usize,
    ) -> Result<Vec<u32>, Fault> {
        let mut bytes = vec![0; dwords * 4];
        if let Some(ib) = self.progress.ibs.last() {
            let at = ib.base.wrapping_add((u64::from(ib.at) + offset) * 4);
            bus.read(&self.by(ib.vmid), at, &mut bytes)?;
        } else {
            let by = self.by(self.vmid);
            let mut at = self.rptr.wrapping_add(offset) & self.size.wrapping_sub(1);
            let mut rest = bytes.as_mut_slice();
            while !rest.is_empty() {
                let room = usize::try_from((self.size - at) * 4).unwrap_or(usize::MAX);
                let (part, later) = rest.split_at_mut(room.min(rest.len()));
                bus.read(&by, self.base.wrapping_add(at * 4), part)?;
                rest = later;
                at = 0;
            }
        }
        let dwords =
            bytes.chunks_exact(4).map(|dword| dword.try_into().map_or(0, u32::from_le_bytes));
        Ok(dwords.collect())
    }

    fn available(&self) -> u64 {
        match self.progress.ibs.last() {
            Some(ib) => u64::from(ib.dwords.saturating_sub(ib.at)),
            None => self.pending(),
        }
    }

    /// Goes on after a packet.
    pub fn advance(&mut self, dwords: u32) {
        self.progress.written = false;
        match self.progress.ibs.last_mut() {
            Some(ib) => ib.at = ib.at.saturating_add(dwords),
            None => {
                self.rptr = self.rptr.wrapping_add(u64::from(dwords)) & self.size.wrapping_sub(1);
                self.report = true;
            }
        }
    }

    /// Executes what is there, until `until` at most. `sh_mem_config` is that of its VMID.
    pub fn slice<B: Bus + ?Sized>(&mut self, bus: &B, sh_mem_config: u32, until: Instant) -> Slice {
        if self.stopped || !self.size.is_power_of_two() {
            return Slice::Idle;
        }
        let now = Instant::now();
        if let Some(again) = self.again {
            if again > now {
                return Slice::Wait(again.duration_since(now));
            }
        }
        self.again = None;
        let ended = self.packets(bus, sh_mem_config, until);
        let ended = match ended {
            Ok(slice) => slice,
            Err(Stop::Fault(fault)) => {
                bus.fault(&fault);
                if !fault.retry {
                    self.stopped = true;
                    if fault.vmid == 0 {
                        self.error(bus, Kind::Driver, &format!("stops: {fault}"));
                    }
                }
                Slice::Wait(POLL)
            }
            Err(Stop::Error(kind, text)) => {
                self.error(bus, kind, &text);
                self.stopped = true;
                Slice::Idle
            }
        };
        let reported = !self.report || self.write_rptr(bus);
        self.report = !reported;
        let ended = if reported || self.stopped { ended } else { Slice::Wait(POLL) };
        if let Slice::Wait(time) = ended {
            self.again = now.checked_add(time);
        }
        ended
    }

    fn error<B: Bus + ?Sized>(&self, bus: &B, kind: Kind, text: &str) {
        let text = format!(
            "queue with doorbell {:#x} of vmid {} at rptr {:#x}: {text}",
            self.doorbell, self.vmid, self.rptr
        );
        bus.error(kind, NAME, text);
    }

    /// Writes the read pointer to memory; says whether it is there, or never will be.
    fn write_rptr<B: Bus + ?Sized>(&self, bus: &B) -> bool {
        let control = self.hqd.get(gc::CP_HQD_PQ_CONTROL);
        let to = self.hqd.pair(gc::CP_HQD_PQ_RPTR_REPORT_ADDR, gc::CP_HQD_PQ_RPTR_REPORT_ADDR_HI);
        if to == 0 || gc::CP_HQD_PQ_CONTROL__NO_UPDATE_RPTR.get(control) != 0 {
            return true;
        }
        match bus.write(&self.by(self.vmid), to & !3, &(self.rptr as u32).to_le_bytes()) {
            Ok(()) => true,
            Err(fault) => {
                bus.fault(&fault);
                !fault.retry
            }
        }
    }

    fn packets<B: Bus + ?Sized>(
        &mut self,
        bus: &B,
        sh_mem_config: u32,
        until: Instant,
    ) -> Result<Slice, Stop> {
        if let Some(from) = self.read_wptr {
            self.wptr = bus::read64(bus, &self.by(self.vmid), from & !7)?;
            self.read_wptr = None;
        }
        for _ in 0..SLICE_PACKETS {
            if let Some(dispatch) = &mut self.progress.dispatch {
                let no_retry = gc::SH_MEM_CONFIG__RETRY_DISABLE.get(sh_mem_config) != 0;
                let writer = Writer { engine: NAME, queue: self.doorbell, rptr: self.rptr };
                let by = Requester { hub: Hub::Gfx, vmid: self.vmid, no_retry, writer };
                match dispatch.run(bus, &by, until) {
                    State::Done => self.progress.dispatch = None,
                    State::More => return Ok(Slice::More),
                    State::Wait(time) => return Ok(Slice::Wait(time)),
                    State::Stop => {
                        self.stopped = true;
                        return Ok(Slice::Idle);
                    }
                }
            }
            let available = self.available();
            if available == 0 {
                if self.progress.ibs.pop().is_some() {
                    continue;
                }
                return Ok(Slice::Idle);
            }
            if self.is_aql() {
                return Err(Stop::Error(Kind::Unimplemented, "an AQL queue".to_string()));
            }
            if Instant::now() >= until {
                return Ok(Slice::More);
            }
            let dword = self.fetch(bus, 0, 1)?.first().copied().unwrap_or(0);
            let (opcode, body) = match pm4::header(dword) {
                Header::Filler => {
                    self.advance(1);
                    continue;
                }
                Header::Type3 { opcode, body } => (opcode, body),
                Header::Unknown => {
                    let text = format!("unknown packet header {dword:#010x}");
                    return Err(Stop::Error(Kind::UnknownPacket, text));
                }
            };
            let dwords = body + 1;
            if u64::from(dwords) > available {
                let text = format!("packet {dword:#010x} is longer than what is there");
                return Err(Stop::Error(Kind::UnknownPacket, text));
            }
            let nop = opcode == amdgpu_regs::pm4::PACKET3_NOP;
            let body = if nop { Vec::new() } else { self.fetch(bus, 1, body as usize)? };
            let packet = pm4::decode(opcode, &body).map_err(|error| {
                let text = format!("packet {dword:#010x} (opcode {opcode:#04x}): {error:?}");
                Stop::Error(Kind::UnknownPacket, text)
            })?;
            bus.note(NAME, &|| {
                format!("doorbell {:#x} vmid {}: {packet:x?}", self.doorbell, self.vmid)
            });
            match self.execute(bus, packet)? {
                Flow::Done => self.advance(dwords),
                Flow::Skip(skip) => {
                    if u64::from(dwords) + u64::from(skip) > available {
                        let text = "PRED_EXEC skips what is not there".to_string();
                        return Err(Stop::Error(Kind::UnknownPacket, text));
                    }
                    self.advance(dwords + skip);
                }
                Flow::Enter { ib, chain } => {
                    self.advance(dwords);
                    if chain {
                        self.progress.ibs.pop();
                    }
                    if self.progress.ibs.len() >= MAX_IBS {
                        let text = "indirect buffers within indirect buffers".to_string();
                        return Err(Stop::Error(Kind::UnknownPacket, text));
                    }
                    self.progress.ibs.push(ib);
                }
                Flow::Poll => return Ok(Slice::Wait(POLL)),
                Flow::Schedule(packet) => return Ok(Slice::Schedule(packet, dwords)),
            }
            bus.packet();
        }
        Ok(Slice::More)
    }

    fn current_vmid(&self) -> u8 {
        self.progress.ibs.last().map_or(self.vmid, |ib| ib.vmid)
    }

    fn privileged(&self, what: &str) -> Result<(), Stop> {
        if self.vmid == 0 && self.current_vmid() == 0 {
            return Ok(());
        }
        Err(Stop::Error(Kind::Driver, format!("{what} by a user's queue")))
    }

    fn load<B: Bus + ?Sized>(&self, bus: &B, place: Place) -> Result<u32, Stop> {
        match place {
            Place::Register(reg) => {
                self.privileged("a register read")?;
                Ok(bus.reg_read(reg))
            }
            Place::Memory(at) => Ok(bus::read32(bus, &self.by(self.current_vmid()), at)?),
        }
    }

    fn execute<B: Bus + ?Sized>(&mut self, bus: &B, packet: Packet) -> Result<Flow, Stop> {
        let by = self.by(self.current_vmid());
        match packet {
            Packet::Nothing => {}
            Packet::SetRegs { first, values } => {
                self.privileged("a register write")?;
                for (reg, value) in (first..).zip(values) {
                    bus.reg_write(reg, value);
                }
            }
            Packet::SetShRegs { first, values } => {
                let start =
                    gc::COMPUTE_DISPATCH_INITIATOR - amdgpu_regs::pm4::PACKET3_SET_SH_REG_START;
                for (offset, value) in (first..).zip(values) {
                    let index = offset.checked_sub(start).map(|n| n as usize);
                    match index.and_then(|n| self.sh.get_mut(n)) {
                        Some(register) => *register = value,
                        None => {
                            let text = format!("SET_SH_REG of {offset:#x}, not a compute register");
                            return Err(Stop::Error(Kind::UnknownPacket, text));
                        }
                    }
                }
            }
            Packet::WriteData { to: Place::Register(reg), same, values } => {
                self.privileged("a register write")?;
                for (n, value) in (0..).zip(values) {
                    bus.reg_write(if same { reg } else { reg.wrapping_add(n) }, value);
                }
            }
            Packet::WriteData { to: Place::Memory(at), same, values } => {
                if same {
                    for value in values {
                        bus.write(&by, at, &value.to_le_bytes())?;
                    }
                } else {
                    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                    bus.write(&by, at, &bytes)?;
                }
            }
            Packet::WaitRegMem { what, write, function, reference, mask } => {
                if let Some(reg) = write.filter(|_| !self.progress.written) {
                    self.privileged("a register write")?;
                    bus.reg_write(reg, reference);
                    self.progress.written = true;
                }
                let value = self.load(bus, what)?;
                match bus::compare(function, value & mask, reference) {
                    Some(true) => {}
                    Some(false) => return Ok(Flow::Poll),
                    None => {
                        let text = format!("WAIT_REG_MEM function {function}");
                        return Err(Stop::Error(Kind::UnknownPacket, text));
                    }
                }
            }
            Packet::IndirectBuffer { base, dwords, chain, vmid } => {
                // Only the kernel's queues may choose an address space.
                let vmid = if self.vmid == 0 { vmid } else { self.vmid };
                return Ok(Flow::Enter { ib: Ib { base, dwords, at: 0, vmid }, chain });
            }
            Packet::CopyData { from, to, both } => {
                let value = match from {
                    Source::At(place) => {
                        let low = self.load(bus, place)?;
                        let high = match (both, place) {
                            (false, _) => 0,
                            (true, Place::Register(reg)) => {
                                self.load(bus, Place::Register(reg.wrapping_add(1)))?
                            }
                            (true, Place::Memory(at)) => {
                                self.load(bus, Place::Memory(at.wrapping_add(4)))?
                            }
                        };
                        join(low, high)
                    }
                    Source::Immediate(value) => value,
                    Source::Clock => bus.clock(),
                };
                match to {
                    Place::Register(reg) => {
                        self.privileged("a register write")?;
                        bus.reg_write(reg, value as u32);
                        if both {
                            bus.reg_write(reg.wrapping_add(1), (value >> 32) as u32);
                        }
                    }
                    Place::Memory(at) if both => bus.write(&by, at, &value.to_le_bytes())?,
                    Place::Memory(at) => bus.write(&by, at, &(value as u32).to_le_bytes())?,
                }
            }
            Packet::ReleaseMem { to, what, interrupt, context } => {
                match what {
                    Release::Nothing => {}
                    Release::Low(value) => bus.write(&by, to, &value.to_le_bytes())?,
                    Release::Both(value) => bus.write(&by, to, &value.to_le_bytes())?,
                    Release::Clock => bus.write(&by, to, &bus.clock().to_le_bytes())?,
                }
                if interrupt {
                    bus.interrupt(Iv {
                        client: ih::SOC15_IH_CLIENTID_GRBM_CP as u8,
                        source: ih::GFX_9_0__SRCID__CP_EOP_INTERRUPT as u8,
                        ring: self.slot.ring_id(),
                        vmid: self.vmid,
                        vmid_mmhub: false,
                        pasid: bus.pasid(self.vmid),
                        node: NODE_XCD0,
                        data: [context, 0, 0, 0],
                    });
                }
            }
            Packet::Dispatch { groups, initiator } => {
                let dispatch =
                    Dispatch::new(&ShaderRegs(&self.sh), groups, initiator).map_err(|what| {
                        Stop::Error(Kind::Unimplemented, format!("dispatch: {what}"))
                    })?;
                self.progress.dispatch = Some(dispatch);
            }
            Packet::PredExec { dwords, xccs } => {
                // There is one XCC, number 0.
                if xccs & 1 == 0 {
                    return Ok(Flow::Skip(dwords));
                }
            }
            packet @ (Packet::SetResources { .. }
            | Packet::MapProcess(_)
            | Packet::MapQueue(_)
            | Packet::UnmapQueues { .. }
            | Packet::QueryStatus { .. }
            | Packet::RunList { .. }
            | Packet::InvalidateTlbs { .. }) => {
                self.privileged("a packet of the scheduler")?;
                return Ok(Flow::Schedule(packet));
            }
        }
        Ok(Flow::Done)
    }
}
