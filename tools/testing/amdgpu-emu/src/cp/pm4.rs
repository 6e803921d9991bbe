// SPDX-License-Identifier: GPL-2.0

//! PM4 packets, as `soc15d.h`, `kfd_pm4_headers_ai.h` and `kfd_pm4_headers_aldebaran.h` define
//! them, of the compute micro engine (MEC).

use amdgpu_regs::pm4;

use crate::bus::join;

/// The type field of a header (`CP_PACKET_GET_TYPE`).
const TYPE_SHIFT: u32 = 30;
/// The count field of a header (`CP_PACKET_GET_COUNT`): dwords after the header, less one.
const COUNT_SHIFT: u32 = 16;
const COUNT_MASK: u32 = 0x3fff;
/// The opcode field of a header (`CP_PACKET3_GET_OPCODE`).
const OPCODE_SHIFT: u32 = 8;
const OPCODE_MASK: u32 = 0xff;

/// A packet's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// One dword that does nothing.
    Filler,
    /// A packet of type 3: its opcode, and how many dwords follow.
    Type3 { opcode: u32, body: u32 },
    /// No packet that a MEC knows.
    Unknown,
}

/// Splits a header.
pub fn header(dword: u32) -> Header {
    let count = dword >> COUNT_SHIFT & COUNT_MASK;
    let opcode = dword >> OPCODE_SHIFT & OPCODE_MASK;
    match dword >> TYPE_SHIFT {
        pm4::PACKET_TYPE2 => Header::Filler,
        // The longest NOP is the shortest: a header alone (gfx_v9_4_3_ring_funcs_compute.nop).
        pm4::PACKET_TYPE3 if opcode == pm4::PACKET3_NOP && count == COUNT_MASK => Header::Filler,
        pm4::PACKET_TYPE3 => Header::Type3 { opcode, body: count + 1 },
        _ => Header::Unknown,
    }
}

/// What a value is compared with: a register's or a dword of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A register, by dword offset.
    Register(u32),
    /// Memory.
    Memory(u64),
}

/// What `COPY_DATA` copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A register or memory.
    At(Place),
    /// The packet's own data.
    Immediate(u64),
    /// The clock.
    Clock,
}

/// What `RELEASE_MEM` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Nothing.
    Nothing,
    /// A dword.
    Low(u32),
    /// A quadword.
    Both(u64),
    /// The clock.
    Clock,
}

/// What `UNMAP_QUEUES` does with the queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Saves their waves.
    Preempt,
    /// Kills their waves.
    Reset,
    /// Preempts them, but leaves them mapped, and writes a fence.
    PreemptNoUnmap { to: u64, value: u32 },
}

/// Which queues `UNMAP_QUEUES` is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those with these doorbells.
    Doorbells(Vec<u32>),
    /// Those of an address space.
    Pasid(u16),
    /// All of the run list.
    All,
    /// All of the run list that are not static.
    NonStatic,
}

/// The engine that a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A compute queue.
    Compute,
    /// The queue of the hardware scheduler.
    Hiq,
    /// An SDMA engine.
    Sdma(u32),
}

/// `MAP_QUEUES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapQueue {
    /// The slot (ME, pipe, queue), if the packet chooses it and not the scheduler.
    pub slot: Option<(u8, u8, u8)>,
    /// What executes it.
    pub target: Target,
    /// It is not preempted by "all non-static queues".
    pub is_static: bool,
    /// Its doorbell, by dword.
    pub doorbell: u32,
    /// Where its MQD is, for VMID 0.
    pub mqd: u64,
    /// Where its write pointer is, in the queue's own address space.
    pub wptr: u64,
}

/// `MAP_PROCESS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapProcess {
    /// Its address space.
    pub pasid: u16,
    /// Its page tables.
    pub root: u64,
    /// `SH_MEM_CONFIG`.
    pub sh_mem_config: u32,
    /// `SH_MEM_BASES`.
    pub sh_mem_bases: u32,
}

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// Does nothing here: caches are coherent, and everything is done in order.
    Nothing,
    /// Sets registers from this one on.
    SetRegs { first: u32, values: Vec<u32> },
    /// Sets the queue's own shader registers; by offset from the first of them.
    SetShRegs { first: u32, values: Vec<u32> },
    /// Writes dwords to memory or registers; each to the next one, or all to the same.
    WriteData { to: Place, same: bool, values: Vec<u32> },
    /// Waits for a value, after it wrote `reference` to a register if `write` says so.
    WaitRegMem { what: Place, write: Option<u32>, function: u32, reference: u32, mask: u32 },
    /// Runs an indirect buffer, or goes on there if `chain`.
    IndirectBuffer { base: u64, dwords: u32, chain: bool, vmid: u8 },
    /// Copies one or two dwords.
    CopyData { from: Source, to: Place, both: bool },
    /// Writes a fence when all before it is done.
    ReleaseMem { to: u64, what: Release, interrupt: bool, context: u32 },
    /// Starts a grid of workgroups.
    Dispatch { groups: [u32; 3], initiator: u32 },
    /// Skips what follows unless this is a selected XCC.
    PredExec { dwords: u32, xccs: u32 },
    /// Says what the scheduler may use.
    SetResources { vmids: u16, hiq: bool },
    /// Begins a process of a run list.
    MapProcess(MapProcess),
    /// Maps a queue.
    MapQueue(MapQueue),
    /// Unmaps queues.
    UnmapQueues { action: Action, which: Which },
    /// Writes a fence when all scheduling before it is done.
    QueryStatus { to: u64, value: u64 },
    /// Runs a run list.
    RunList { base: u64, dwords: u32, chain: bool },
    /// Forgets translations.
    InvalidateTlbs { pasid: u16, both_hubs: bool },
}

/// Why a packet cannot be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Its body is too short.
    Short,
    /// The opcode, or this use of it, is unknown.
    Unknown,
}

struct Body<'a>(&'a [u32]);

impl Body<'_> {
    fn get(&self, index: usize) -> Result<u32, Error> {
        self.0.get(index).copied().ok_or(Error::Short)
    }

    fn address(&self, index: usize) -> Result<u64, Error> {
        Ok(join(self.get(index)?, self.get(index + 1)?))
    }

    fn from(&self, index: usize) -> Result<Vec<u32>, Error> {
        self.0.get(index..).map(<[u32]>::to_vec).ok_or(Error::Short)
    }

    /// Bits `low` to `low + count - 1` of a dword.
    fn bits(&self, index: usize, low: u32, count: u32) -> Result<u32, Error> {
        Ok(self.get(index)? >> low & ((1 << count) - 1))
    }
}

/// `WRITE_DATA_DST_SEL`, `COPY_DATA` selectors and `WAIT_REG_MEM_MEM_SPACE`.
mod select {
    pub const REGISTER: u32 = 0;
    pub const MEMORY_SYNC: u32 = 1;
    pub const TC_L2: u32 = 2;
    pub const MEMORY: u32 = 5;
    pub const IMMEDIATE: u32 = 5;
    pub const CLOCK: u32 = 9;
}

fn place(register: bool, low: u32, address: u64) -> Place {
    if register {
        Place::Register(low)
    } else {
        Place::Memory(address & !3)
    }
}

/// Decodes the body of a packet of type 3.
///
/// # Errors
///
/// If it is too short, or the packet is unknown.
pub fn decode(opcode: u32, body: &[u32]) -> Result<Packet, Error> {
    let body = Body(body);
    let registers = |start: u32| -> Result<Packet, Error> {
        let first = start.wrapping_add(body.bits(0, 0, 16)?);
        Ok(Packet::SetRegs { first, values: body.from(1)? })
    };
    Ok(match opcode {
        pm4::PACKET3_NOP
        | pm4::PACKET3_ACQUIRE_MEM
        | pm4::PACKET3_EVENT_WRITE
        | pm4::PACKET3_CLEAR_STATE
        | pm4::PACKET3_CONTEXT_CONTROL
        | pm4::PACKET3_FRAME_CONTROL
        | pm4::PACKET3_RUN_CLEANER_SHADER
        | pm4::PACKET3_RUN_CLEANER_SHADER_9_0 => Packet::Nothing,
        pm4::PACKET3_SET_UCONFIG_REG => registers(pm4::PACKET3_SET_UCONFIG_REG_START)?,
        pm4::PACKET3_SET_CONFIG_REG => registers(pm4::PACKET3_SET_CONFIG_REG_START)?,
        pm4::PACKET3_SET_SH_REG => {
            Packet::SetShRegs { first: body.bits(0, 0, 16)?, values: body.from(1)? }
        }
        pm4::PACKET3_WRITE_DATA => {
            let to = match body.bits(0, 8, 4)? {
                select::REGISTER => Place::Register(body.bits(1, 0, 18)?),
                select::MEMORY_SYNC | select::TC_L2 | select::MEMORY => {
                    Place::Memory(body.address(1)? & !3)
                }
                _ => return Err(Error::Unknown),
            };
            Packet::WriteData { to, same: body.bits(0, 16, 1)? != 0, values: body.from(3)? }
        }
        pm4::PACKET3_WAIT_REG_MEM => {
            let register = body.bits(0, 4, 2)? == select::REGISTER;
            let write = match body.bits(0, 6, 2)? {
                0 | 3 => None,
                1 if register => Some(body.bits(1, 0, 18)?),
                _ => return Err(Error::Unknown),
            };
            let polled = if write.is_some() { body.bits(2, 0, 18)? } else { body.bits(1, 0, 18)? };
            body.get(5)?;
            Packet::WaitRegMem {
                what: place(register, polled, body.address(1)?),
                write,
                function: body.bits(0, 0, 3)?,
                reference: body.get(3)?,
                mask: body.get(4)?,
            }
        }
        pm4::PACKET3_INDIRECT_BUFFER => Packet::IndirectBuffer {
            base: body.address(0)? & !3,
            dwords: body.bits(2, 0, 20)?,
            chain: body.bits(2, 20, 1)? != 0,
            vmid: body.bits(2, 24, 4)? as u8,
        },
        pm4::PACKET3_COPY_DATA => {
            let from = match body.bits(0, 0, 4)? {
                select::REGISTER => Source::At(Place::Register(body.bits(1, 0, 18)?)),
                select::MEMORY_SYNC | select::TC_L2 => {
                    Source::At(Place::Memory(body.address(1)? & !3))
                }
                select::IMMEDIATE => Source::Immediate(body.address(1)?),
                select::CLOCK => Source::Clock,
                _ => return Err(Error::Unknown),
            };
            let to = match body.bits(0, 8, 4)? {
                select::REGISTER => Place::Register(body.bits(3, 0, 18)?),
                select::MEMORY_SYNC | select::TC_L2 | select::MEMORY => {
                    Place::Memory(body.address(3)? & !3)
                }
                _ => return Err(Error::Unknown),
            };
            Packet::CopyData { from, to, both: body.bits(0, 16, 1)? != 0 }
        }
        pm4::PACKET3_RELEASE_MEM => {
            let what = match body.bits(1, 29, 3)? {
                0 => Release::Nothing,
                1 => Release::Low(body.get(4)?),
                2 => Release::Both(body.address(4)?),
                3 => Release::Clock,
                _ => return Err(Error::Unknown),
            };
            // mec_release_mem_int_sel_enum: 1 and 2 send an interrupt, 3 only waits for the write.
            let interrupt = match body.bits(1, 24, 3)? {
                0 | 3 => false,
                1 | 2 | 4 => true,
                _ => return Err(Error::Unknown),
            };
            Packet::ReleaseMem { to: body.address(2)? & !3, what, interrupt, context: body.get(6)? }
        }
        pm4::PACKET3_DISPATCH_DIRECT => Packet::Dispatch {
            groups: [body.get(0)?, body.get(1)?, body.get(2)?],
            initiator: body.get(3)?,
        },
        pm4::PACKET3_PRED_EXEC => {
            Packet::PredExec { dwords: body.bits(0, 0, 14)?, xccs: body.bits(0, 24, 8)? }
        }
        pm4::PACKET3_SET_RESOURCES => {
            body.get(6)?;
            Packet::SetResources {
                vmids: body.bits(0, 0, 16)? as u16,
                hiq: body.bits(0, 29, 3)? == 1,
            }
        }
        pm4::IT_MAP_PROCESS => {
            // Both layouts (v9 and aldebaran) agree up to ordinal 14.
            body.get(12)?;
            Packet::MapProcess(MapProcess {
                pasid: body.bits(0, 0, 16)? as u16,
                root: body.address(1)?,
                sh_mem_bases: body.get(3)?,
                sh_mem_config: body.get(4)?,
            })
        }
        pm4::PACKET3_MAP_QUEUES => map_queue(&body)?,
        pm4::PACKET3_UNMAP_QUEUES => unmap_queues(&body)?,
        pm4::PACKET3_QUERY_STATUS => {
            Packet::QueryStatus { to: body.address(2)? & !3, value: body.address(4)? }
        }
        pm4::IT_RUN_LIST => Packet::RunList {
            base: body.address(0)? & !3,
            dwords: body.bits(2, 0, 20)?,
            chain: body.bits(2, 20, 1)? != 0,
        },
        pm4::PACKET3_INVALIDATE_TLBS => Packet::InvalidateTlbs {
            pasid: body.bits(0, 5, 16)? as u16,
            both_hubs: body.bits(0, 4, 1)? != 0,
        },
        _ => return Err(Error::Unknown),
    })
}

fn map_queue(body: &Body<'_>) -> Result<Packet, Error> {
    // PACKET3_MAP_QUEUES_* of the KIQ, struct pm4_mes_map_queues of the HIQ.
    let by_scheduler = body.bits(0, 4, 2)? != 0;
    let slot =
        (body.bits(0, 18, 1)? as u8 + 1, body.bits(0, 16, 2)? as u8, body.bits(0, 13, 3)? as u8);
    let engine = body.bits(0, 26, 3)?;
    let extended = body.bits(0, 2, 2)?;
    let target = match (by_scheduler, extended, engine) {
        (_, 0, 0) => Target::Compute,
        (false, 0, 1) => Target::Hiq,
        (true, 0, 2 | 3) => Target::Sdma(engine - 2),
        (true, 1, _) => Target::Sdma(engine),
        (true, 2, _) => Target::Sdma(engine + 8),
        _ => return Err(Error::Unknown),
    };
    // queue_type: 2 and 3 are the static ones.
    let is_static = by_scheduler && body.bits(0, 21, 3)? >= 2;
    Ok(Packet::MapQueue(MapQueue {
        slot: (!by_scheduler).then_some(slot),
        target,
        is_static,
        doorbell: body.bits(1, 2, 26)?,
        mqd: body.address(2)?,
        wptr: body.address(4)?,
    }))
}

fn unmap_queues(body: &Body<'_>) -> Result<Packet, Error> {
    body.get(4)?;
    let action = match body.bits(0, 0, 2)? {
        0 => Action::Preempt,
        1 => Action::Reset,
        3 => Action::PreemptNoUnmap { to: body.address(2)? & !3, value: body.get(4)? },
        _ => return Err(Error::Unknown),
    };
    let which = match body.bits(0, 4, 2)? {
        0 => {
            let count = match action {
                Action::PreemptNoUnmap { .. } => 1,
                _ => body.bits(0, 29, 3)?.clamp(1, 4) as usize,
            };
            let doorbells: Result<_, _> = (1..=count).map(|n| body.bits(n, 2, 26)).collect();
            Which::Doorbells(doorbells?)
        }
        1 => Which::Pasid(body.bits(1, 0, 16)? as u16),
        2 => Which::All,
        _ => Which::NonStatic,
    };
    Ok(Packet::UnmapQueues { action, which })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `PACKET3()` of `soc15d.h`.
    fn packet3(opcode: u32, count: u32) -> u32 {
        3 << 30 | opcode << 8 | count << 16
    }

    #[test]
    fn headers() {
        assert_eq!(
            header(packet3(pm4::PACKET3_WRITE_DATA, 3)),
            Header::Type3 { opcode: pm4::PACKET3_WRITE_DATA, body: 4 }
        );
        assert_eq!(header(packet3(pm4::PACKET3_NOP, 0x3fff)), Header::Filler);
        assert_eq!(
            header(packet3(pm4::PACKET3_NOP, 0x3ffe)),
            Header::Type3 { opcode: pm4::PACKET3_NOP, body: 0x3fff }
        );
        assert_eq!(header(pm4::CP_PACKET2), Header::Filler);
        assert_eq!(header(0), Header::Unknown);
        // PACKET3_COMPUTE() sets a bit that does not matter.
        assert_eq!(
            header(packet3(pm4::PACKET3_DISPATCH_DIRECT, 3) | 1 << 1),
            Header::Type3 { opcode: pm4::PACKET3_DISPATCH_DIRECT, body: 4 }
        );
    }

    /// As `gfx_v9_4_3_kiq_map_queues()` and `gfx_v9_4_3_kiq_unmap_queues()` write them.
    #[test]
    fn queues_of_the_kiq() {
        let body = [5 << 13 | 2 << 16 | 1 << 29, 0x44 << 2, 0x1000, 0x80, 0x2000, 1];
        let Ok(Packet::MapQueue(map)) = decode(pm4::PACKET3_MAP_QUEUES, &body) else { panic!() };
        assert_eq!(map.slot, Some((1, 2, 5)));
        assert_eq!((map.target, map.doorbell), (Target::Compute, 0x44));
        assert_eq!((map.mqd, map.wptr), (0x80_0000_1000, 0x1_0000_2000));
        let hiq = decode(pm4::PACKET3_MAP_QUEUES, &[1 << 26 | 1 << 18, 0, 0, 0, 0, 0]);
        let Ok(Packet::MapQueue(hiq)) = hiq else { panic!() };
        assert_eq!((hiq.slot, hiq.target), (Some((2, 0, 0)), Target::Hiq));

        let which = Which::Doorbells(vec![0x44]);
        assert_eq!(
            decode(pm4::PACKET3_UNMAP_QUEUES, &[1 | 1 << 29, 0x44 << 2, 0, 0, 0]),
            Ok(Packet::UnmapQueues { action: Action::Reset, which: which.clone() })
        );
        let action = Action::PreemptNoUnmap { to: 0x1_0000_3000, value: 9 };
        assert_eq!(
            decode(pm4::PACKET3_UNMAP_QUEUES, &[3 | 1 << 29, 0x44 << 2, 0x3000, 1, 9]),
            Ok(Packet::UnmapQueues { action, which })
        );
    }

    /// As `kfd_packet_manager_v9.c` writes them.
    #[test]
    fn queues_of_a_run_list() {
        let map =
            |dword: u32| match decode(pm4::PACKET3_MAP_QUEUES, &[dword | 1 << 4, 0, 0, 0, 0, 0]) {
                Ok(Packet::MapQueue(map)) => (map.slot, map.target, map.is_static),
                other => panic!("{other:?}"),
            };
        assert_eq!(map(0), (None, Target::Compute, false));
        assert_eq!(map(2 << 21), (None, Target::Compute, true));
        assert_eq!(map(3 << 26), (None, Target::Sdma(1), false));
        assert_eq!(map(1 << 2 | 5 << 26), (None, Target::Sdma(5), false));
        assert_eq!(map(2 << 2 | 1 << 26), (None, Target::Sdma(9), false));
        for (select, which) in [(1, Which::Pasid(0x8001)), (2, Which::All), (3, Which::NonStatic)] {
            assert_eq!(
                decode(pm4::PACKET3_UNMAP_QUEUES, &[select << 4, 0x8001, 0, 0, 0]),
                Ok(Packet::UnmapQueues { action: Action::Preempt, which })
            );
        }
        let mut body = [0; 20];
        body[..5].copy_from_slice(&[0x8001 | 10 << 25, 0x5001, 1, 0x20_0010, 0x1000]);
        let process = MapProcess {
            pasid: 0x8001,
            root: 0x1_0000_5001,
            sh_mem_config: 0x1000,
            sh_mem_bases: 0x20_0010,
        };
        assert_eq!(decode(pm4::IT_MAP_PROCESS, &body), Ok(Packet::MapProcess(process)));
        assert_eq!(
            decode(pm4::IT_RUN_LIST, &[0x4000, 2, 64 | 1 << 20 | 1 << 23]),
            Ok(Packet::RunList { base: 0x2_0000_4000, dwords: 64, chain: true })
        );
        assert_eq!(
            decode(pm4::PACKET3_SET_RESOURCES, &[0xff00 | 1 << 29, 0, 0, 0, 0, 0, 0]),
            Ok(Packet::SetResources { vmids: 0xff00, hiq: true })
        );
    }

    #[test]
    fn waits() {
        let wait =
            |control: u32| decode(pm4::PACKET3_WAIT_REG_MEM, &[control, 0x100, 0x200, 1, 3, 4]);
        let what = |control| match wait(control) {
            Ok(Packet::WaitRegMem { what, write, function, .. }) => (what, write, function),
            other => panic!("{other:?}"),
        };
        assert_eq!(what(3), (Place::Register(0x100), None, 3));
        assert_eq!(what(3 | 1 << 6), (Place::Register(0x200), Some(0x100), 3));
        assert_eq!(what(5 | 1 << 4), (Place::Memory(0x200_0000_0100), None, 5));
        assert_eq!(wait(1 << 4 | 1 << 6), Err(Error::Unknown));
    }

    #[test]
    fn what_is_too_short_is_an_error() {
        for opcode in 0..=0xff {
            for len in 0..24 {
                // No length makes it panic, and a header alone is never enough for a packet
                // that does something.
                let result = decode(opcode, &vec![0; len]);
                if len == 0 && result.is_ok() {
                    assert_eq!(result, Ok(Packet::Nothing), "{opcode:#x}");
                }
            }
        }
        assert_eq!(decode(0xff, &[0; 8]), Err(Error::Unknown));
    }
}
