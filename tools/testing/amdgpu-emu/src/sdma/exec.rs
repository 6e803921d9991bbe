// SPDX-License-Identifier: GPL-2.0

//! Executes the packets of one ring, in slices: a ring gets a budget, and takes up a packet again
//! where a fault, a poll or the end of the budget left it.

use std::fmt;
use std::time::Duration;

use amdgpu_regs::ih;

use super::packet::{self, Decoded, Packet, Poll};
use crate::bus::{self, Bus, POLL};
use crate::gpuvm::{Fault, Hub, Requester, Writer};
use crate::ih::Iv;
use crate::report::Kind;

/// Bytes that a slice moves at most.
const SLICE_BYTES: u64 = 1 << 20;
/// Packets that a slice executes at most.
const SLICE_PACKETS: u32 = 256;
/// Bytes that are moved at a time.
const CHUNK: u64 = 4096;
/// All four bytes of a register are written.
const ALL_BYTES: u32 = 0xf;

/// What the registers of a ring say when a slice begins.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    /// The engine's name.
    pub engine: &'static str,
    /// Which of the engine's rings.
    pub index: u32,
    /// What an interrupt calls it.
    pub irq_ring: u8,
    /// The client that its interrupts come from.
    pub irq_client: u8,
    /// Its address space.
    pub vmid: u8,
    /// Its first address.
    pub base: u64,
    /// Its size in bytes, a power of two, or 0.
    pub size: u64,
    /// Up to where it is filled, in bytes since it began.
    pub wptr: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ib {
    base: u64,
    dwords: u32,
    at: u32,
    vmid: u8,
}

/// How far a ring's execution has come within the packet at its read pointer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    ib: Option<Ib>,
    /// Bytes (or entries) of the packet that are done.
    done: u64,
}

/// How a slice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slice {
    /// The ring is empty.
    Empty,
    /// There is more to do.
    More,
    /// There is more to do later: a fault must be handled, or a value must change.
    Wait(Duration),
    /// It must not go on: an error that was reported, or a fault without a retry.
    Stop,
}

enum Stop {
    Fault(Fault),
    Unknown(String),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(fault) => fault.fmt(f),
            Self::Unknown(text) => f.write_str(text),
        }
    }
}

enum Done {
    /// The whole packet; go on after it, and skip this many dwords.
    Packet { skip: u32 },
    /// An indirect buffer begins.
    Enter(Ib),
    /// Not all of it.
    Part,
    /// Nothing; the value is not there yet.
    Poll,
}

/// The dwords that come after the read position: of the ring, or of the indirect buffer.
struct Source<'a> {
    ring: &'a Ring,
    ib: Option<Ib>,
    rptr: u64,
}

impl Source<'_> {
    fn by(&self) -> Requester {
        let writer = Writer { engine: self.ring.engine, queue: self.ring.index, rptr: self.rptr };
        let vmid = self.ib.map_or(self.ring.vmid, |ib| ib.vmid);
        Requester { hub: Hub::Mm, vmid, no_retry: false, writer }
    }

    fn available(&self) -> u64 {
        match self.ib {
            Some(ib) => u64::from(ib.dwords.saturating_sub(ib.at)),
            None => self.ring.wptr.wrapping_sub(self.rptr) / 4,
        }
    }

    /// Reads bytes from `offset` dwords after the read position; a ring wraps.
    fn read<B: Bus + ?Sized>(&self, bus: &B, offset: u64, to: &mut [u8]) -> Result<(), Fault> {
        let by = self.by();
        if let Some(ib) = self.ib {
            let at = (u64::from(ib.at).wrapping_add(offset)).wrapping_mul(4);
            return bus.read(&by, ib.base.wrapping_add(at), to);
        }
        let mask = self.ring.size.wrapping_sub(1);
        let mut at = self.rptr.wrapping_add(offset.wrapping_mul(4)) & mask;
        let mut rest = to;
        while !rest.is_empty() {
            let room = usize::try_from(self.ring.size.saturating_sub(at)).unwrap_or(usize::MAX);
            let (part, later) = rest.split_at_mut(room.min(rest.len()));
            bus.read(&by, self.ring.base.wrapping_add(at), part)?;
            rest = later;
            at = 0;
        }
        Ok(())
    }
}

/// Executes packets from `rptr` on, which moves on by what is done.
pub fn slice<B: Bus + ?Sized>(
    bus: &B,
    ring: &Ring,
    progress: &mut Progress,
    rptr: &mut u64,
) -> Slice {
    let mut budget = SLICE_BYTES;
    if !ring.size.is_power_of_two() || ring.size < 4 {
        bus.error(Kind::Driver, ring.engine, format!("ring {}: size {:#x}", ring.index, ring.size));
        return Slice::Stop;
    }
    for _ in 0..SLICE_PACKETS {
        let source = Source { ring, ib: progress.ib, rptr: *rptr };
        if source.ib.is_some() && source.available() == 0 {
            progress.ib = None;
            continue;
        }
        if source.available() == 0 {
            return Slice::Empty;
        }
        if source.ib.is_none() && source.available() > ring.size / 4 {
            let text = format!(
                "ring {}: wptr {:#x} is more than the ring's size after rptr {:#x}",
                ring.index, ring.wptr, rptr
            );
            bus.error(Kind::Driver, ring.engine, text);
            return Slice::Stop;
        }
        if budget == 0 {
            return Slice::More;
        }
        match step(bus, &source, progress, &mut budget) {
            Ok((done, dwords)) => {
                let dwords = match done {
                    Done::Packet { skip } => dwords.saturating_add(skip),
                    Done::Enter(_) => dwords,
                    Done::Part => return Slice::More,
                    Done::Poll => return Slice::Wait(POLL),
                };
                bus.packet();
                progress.done = 0;
                match &mut progress.ib {
                    Some(ib) => ib.at = ib.at.saturating_add(dwords),
                    None => *rptr = rptr.wrapping_add(u64::from(dwords) * 4),
                }
                if let Done::Enter(ib) = done {
                    progress.ib = Some(ib);
                }
            }
            Err(Stop::Fault(fault)) => {
                bus.fault(&fault);
                if fault.retry {
                    return Slice::Wait(POLL);
                }
                if fault.vmid == 0 {
                    let text = format!("ring {} stops at rptr {rptr:#x}: {fault}", ring.index);
                    bus.error(Kind::Driver, ring.engine, text);
                }
                return Slice::Stop;
            }
            Err(stop) => {
                let text = format!("ring {} stops at rptr {rptr:#x}: {stop}", ring.index);
                bus.error(Kind::UnknownPacket, ring.engine, text);
                return Slice::Stop;
            }
        }
    }
    Slice::More
}

fn step<B: Bus + ?Sized>(
    bus: &B,
    source: &Source<'_>,
    progress: &mut Progress,
    budget: &mut u64,
) -> Result<(Done, u32), Stop> {
    let available = source.available();
    let mut bytes = [0; packet::HEAD * 4];
    let len = available.min(packet::HEAD as u64) as usize * 4;
    let bytes = bytes.get_mut(..len).unwrap_or_default();
    source.read(bus, 0, bytes)?;
    let dwords: Vec<u32> =
        bytes.chunks_exact(4).map(|dword| dword.try_into().map_or(0, u32::from_le_bytes)).collect();
    let decoded = packet::decode(&dwords).map_err(|error| match error {
        packet::Error::Short => Stop::Unknown(format!("packet {:#x?} is cut off", dwords.first())),
        packet::Error::Unknown(header) => Stop::Unknown(format!("unknown packet {header:#010x}")),
    })?;
    if u64::from(decoded.dwords) > available {
        return Err(Stop::Unknown(format!("{:?} is longer than what is there", decoded.packet)));
    }
    let done = execute(bus, source, &decoded, &mut progress.done, budget)?;
    Ok((done, decoded.dwords))
}

/// Moves `bytes` in chunks that end at page bounds of `at`, within the budget.
fn chunked<F>(
    at: u64,
    bytes: u64,
    done: &mut u64,
    budget: &mut u64,
    mut chunk: F,
) -> Result<Done, Stop>
where
    F: FnMut(u64, usize) -> Result<(), Fault>,
{
    while *done < bytes {
        if *budget == 0 {
            return Ok(Done::Part);
        }
        let rest = CHUNK - (at.wrapping_add(*done) & (CHUNK - 1));
        let len = rest.min(bytes - *done);
        chunk(*done, len as usize)?;
        *done += len;
        *budget = budget.saturating_sub(len);
    }
    Ok(Done::Packet { skip: 0 })
}

fn execute<B: Bus + ?Sized>(
    bus: &B,
    source: &Source<'_>,
    decoded: &Decoded,
    done: &mut u64,
    budget: &mut u64,
) -> Result<Done, Stop> {
    let by = source.by();
    let finished = Ok(Done::Packet { skip: 0 });
    let mut buffer = [0; CHUNK as usize];
    match decoded.packet {
        Packet::Nop => finished,
        Packet::Copy { from, to, bytes } => chunked(to, bytes, done, budget, |at, len| {
            let part = buffer.get_mut(..len).unwrap_or_default();
            bus.read(&by, from.wrapping_add(at), part)?;
            bus.store(&by, to.wrapping_add(at), part)
        }),
        Packet::Write { to, dwords } => {
            chunked(to, u64::from(dwords) * 4, done, budget, |at, len| {
                let part = buffer.get_mut(..len).unwrap_or_default();
                source.read(bus, u64::from(decoded.head) + at / 4, part)?;
                bus.store(&by, to.wrapping_add(at), part)
            })
        }
        Packet::Fill { to, value, bytes } => chunked(to, bytes, done, budget, |at, len| {
            let part = buffer.get_mut(..len).unwrap_or_default();
            // The first byte of a chunk need not be a dword's first.
            for (byte, n) in part.iter_mut().zip(at..) {
                *byte = (value >> (8 * (n % 4))) as u8;
            }
            bus.store(&by, to.wrapping_add(at), part)
        }),
        Packet::PtePde { to, mask, value, step, count } => {
            let entry = |n: u64| (value.wrapping_add(step.wrapping_mul(n)) | mask).to_le_bytes();
            chunked(to, u64::from(count) * 8, done, budget, |at, len| {
                let part = buffer.get_mut(..len).unwrap_or_default();
                for (byte, n) in part.iter_mut().zip(at..) {
                    *byte = entry(n / 8)[(n % 8) as usize];
                }
                bus.write(&by, to.wrapping_add(at), part)
            })
        }
        Packet::Indirect { base, dwords, vmid } => {
            if source.ib.is_some() {
                return Err(Stop::Unknown("INDIRECT within an indirect buffer".to_string()));
            }
            // Only the kernel's rings may choose an address space.
            let vmid = if source.ring.vmid == 0 { vmid } else { source.ring.vmid };
            Ok(Done::Enter(Ib { base, dwords, at: 0, vmid }))
        }
        Packet::Fence { to, value } => {
            bus.write(&by, to & !3, &value.to_le_bytes())?;
            finished
        }
        Packet::Trap { context } => {
            bus.interrupt(Iv {
                client: source.ring.irq_client,
                source: ih::SDMA0_4_0__SRCID__SDMA_TRAP as u8,
                ring: source.ring.irq_ring,
                vmid: by.vmid,
                vmid_mmhub: true,
                pasid: bus.pasid(by.vmid),
                node: 0,
                data: [context, 0, 0, 0],
            });
            finished
        }
        Packet::Poll { what, function, value, mask } => {
            let now = match what {
                Poll::HdpFlush => return finished,
                Poll::Register(reg) if by.vmid == 0 => bus.reg_read(reg),
                Poll::Register(_) => {
                    return Err(Stop::Unknown("a user's register poll".to_string()))
                }
                Poll::Memory(at) => bus::read32(bus, &by, at & !3)?,
            };
            match bus::compare(function, now & mask, value) {
                Some(true) => finished,
                Some(false) => Ok(Done::Poll),
                None => Err(Stop::Unknown(format!("POLL_REGMEM function {function}"))),
            }
        }
        Packet::CondExe { at, value, skip } => {
            let now = bus::read32(bus, &by, at & !3)?;
            let skip = if now == value { 0 } else { skip };
            let rest = source.available().saturating_sub(u64::from(decoded.dwords));
            if u64::from(skip) > rest {
                return Err(Stop::Unknown("COND_EXE skips what is not there".to_string()));
            }
            Ok(Done::Packet { skip })
        }
        Packet::Timestamp { to } => {
            bus.write(&by, to, &bus.clock().to_le_bytes())?;
            finished
        }
        Packet::SrbmWrite { reg, value, byte_enable } => {
            if by.vmid != 0 || source.ring.vmid != 0 {
                return Err(Stop::Unknown("a user's register write".to_string()));
            }
            if byte_enable != ALL_BYTES {
                return Err(Stop::Unknown(format!("SRBM_WRITE of bytes {byte_enable:#x}")));
            }
            bus.reg_write(reg, value);
            finished
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::fake::FakeBus;

    const BASE: u64 = 0x10_0000;

    fn ring(vmid: u8, dwords: usize) -> Ring {
        Ring {
            engine: "sdma0",
            index: 0,
            irq_ring: 0,
            irq_client: 8,
            vmid,
            base: BASE,
            size: 0x1000,
            wptr: dwords as u64 * 4,
        }
    }

    /// Runs slices until something other than `More` comes.
    fn run(bus: &FakeBus, ring: &Ring, progress: &mut Progress, rptr: &mut u64) -> Slice {
        for _ in 0..1000 {
            match slice(bus, ring, progress, rptr) {
                Slice::More => {}
                other => return other,
            }
        }
        panic!("no end");
    }

    fn start(vmid: u8, packets: &[u32]) -> (FakeBus, Ring, Progress, u64) {
        let bus = FakeBus::default();
        bus.put(vmid, BASE, packets);
        (bus, ring(vmid, packets.len()), Progress::default(), 0)
    }

    #[test]
    fn write_fence_and_trap() {
        let packets = [
            2,
            0x5000,
            0,
            1,
            0xaaaa,
            0xbbbb,
            5,
            0x6000,
            0,
            77,
            6,
            0x123,
            0,
            13 | 1 << 8,
            0x6008,
            0,
        ];
        let (bus, ring, mut progress, mut rptr) = start(3, &packets);
        bus.state().pasids.insert(3, 0x8001);
        assert_eq!(run(&bus, &ring, &mut progress, &mut rptr), Slice::Empty);
        assert_eq!(rptr, ring.wptr);
        assert_eq!(bus.get(3, 0x5000, 2), [0xaaaa, 0xbbbb]);
        assert_eq!(bus.get(3, 0x6000, 1), [77]);
        assert_eq!(bus.get(3, 0x6008, 2), [0x5678_9abc, 0x1234]);
        let state = bus.state();
        let iv = state.ivs[0];
        assert_eq!(
            (iv.client, iv.source, iv.vmid, iv.pasid, iv.data[0]),
            (8, 224, 3, 0x8001, 0x123)
        );
    }

    #[test]
    fn a_ring_wraps_within_a_packet() {
        let bus = FakeBus::default();
        bus.put(0, BASE + 0xff8, &[2, 0x5000]);
        bus.put(0, BASE, &[0, 0, 42]);
        let ring = Ring { wptr: 0x100c, ..ring(0, 0) };
        let (mut progress, mut rptr) = (Progress::default(), 0xff8);
        assert_eq!(run(&bus, &ring, &mut progress, &mut rptr), Slice::Empty);
        assert_eq!(bus.get(0, 0x5000, 1), [42]);
    }

    #[test]
    fn a_copy_goes_on_where_it_faulted() {
        let (from, to, bytes) = (0x10_0000_0100u64, 0x20_0000_0800u64, 0x6000u32);
        let packet = [1, bytes - 1, 0, from as u32, 0x10, to as u32, 0x20];
        let (bus, ring, mut progress, mut rptr) = start(4, &packet);
        let data: Vec<u32> = (0..bytes / 4).map(|n| n ^ 0x5a5a).collect();
        bus.put(4, from, &data);
        bus.state().missing.insert((4, 0x20_0000_3000), true);
        assert_eq!(run(&bus, &ring, &mut progress, &mut rptr), Slice::Wait(POLL));
        assert_eq!((rptr, progress.done), (0, 0x2800));
        let fault = bus.state().faults[0];
        assert_eq!((fault.addr, fault.retry, fault.vmid), (0x20_0000_3000, true, 4));
        // What was copied is not copied again.
        bus.put(4, from, &[0xdead]);
        bus.state().missing.clear();
        assert_eq!(run(&bus, &ring, &mut progress, &mut rptr), Slice::Empty);
        assert_eq!(bus.get(4, to, u64::from(bytes) / 4), data);
    }

    #[test]
    fn a_fault_without_a_retry_stops_the_ring() {
        let (bus, ring, mut progress, mut rptr) = start(4, &[5, 0x5000, 0, 1]);
        bus.state().missing.insert((4, 0x5000), false);
        assert_eq!(run(&bus, &ring, &mut progress, &mut rptr), Slice::Stop);
        assert!(bus.state().errors.is_empty(), "a user's fault is not the emulator's error");
        assert_eq!(bus.state().faults.len(), 1);
    }

    #[test]
    fn fills_of_any_length() {
        let (bus, ring, mut progress, mut rptr) =
            start(1, &[11 | 2 << 30, 0x5ffe, 0, 0x4433_2211, 9]);
        assert_eq!(run(&bus, &ring, &mut progress, &mut rptr), Slice::Empty);
        assert_eq!(bus.get(1, 0x5ffc, 4), [0x2211_0000, 0x2211_4433, 0x2211_4433, 0]);
        // More than a slice.
        let (bus, ring, mut progress, mut rptr) = start(1, &[11, 0, 1, 0x77, (3 << 20) - 1]);
        assert_eq!(slice(&bus, &ring, &mut progress, &mut rptr), Slice::More);
        assert_eq!(rptr, 0);
        assert_eq!(run(&bus, &ring, &mut progress, &mut rptr), Slice::Empty);
        assert_eq!(bus.get(1, 0x1_0000_0000 + (3 << 20) - 4, 2), [0x77, 0]);
    }

    #[test]
    fn page_table_entries() {
        let packet = [12, 0x5000, 0, 0x71, 0x8000_0000, 0x10_0000, 2, 0x1000, 0, 2];
        let (bus, ring, mut progress, mut rptr) = start(0, &packet);
        assert_eq!(run(&bus, &ring, &mut progress, &mut rptr), Slice::Empty);
        assert_eq!(
            bus.get(0, 0x5000, 8),
            [0x10_0071, 0x8000_0002, 0x10_1071, 0x8000_0002, 0x10_2071, 0x8000_0002, 0, 0]
        );
    }

    #[test]
    fn indirect_buffers_have_their_own_vmid() {
        let (bus, ring, mut progress, mut rptr) =
            start(0, &[4 | 6 << 16, 0x9000, 0, 8, 0, 0, 5, 0x5000, 0, 1]);
        bus.put(6, 0x9000, &[5, 0x5000, 0, 9, 3 << 16, 0, 0, 0]);
        assert_eq!(run(&bus, &ring, &mut progress, &mut rptr), Slice::Empty);
        assert_eq!((bus.get(6, 0x5000, 1), bus.get(0, 0x5000, 1)), (vec![9], vec![1]));
        // A user's ring stays in its own.
        let (bus, ring, mut progress, mut rptr) = start(2, &[4 | 6 << 16, 0x9000, 0, 4, 0, 0]);
        bus.put(2, 0x9000, &[5, 0x5000, 0, 9]);
        assert_eq!(run(&bus, &ring, &mut progress, &mut rptr), Slice::Empty);
        assert_eq!(bus.get(2, 0x5000, 1), [9]);
    }

    #[test]
    fn polls_wait() {
        let packets = [8 | 1 << 31 | 3 << 28, 0x5000, 0, 7, 0xff, 0, 5, 0x6000, 0, 1];
        let (bus, ring, mut progress, mut rptr) = start(0, &packets);
        assert_eq!(run(&bus, &ring, &mut progress, &mut rptr), Slice::Wait(POLL));
        assert_eq!((rptr, bus.get(0, 0x6000, 1)), (0, vec![0]));
        bus.put(0, 0x5000, &[0x107]);
        assert_eq!(run(&bus, &ring, &mut progress, &mut rptr), Slice::Empty);
        assert_eq!(bus.get(0, 0x6000, 1), [1]);
    }

    #[test]
    fn conditional_execution() {
        let packets = [9, 0x5000, 0, 1, 4, 5, 0x6000, 0, 1, 5, 0x6004, 0, 2];
        let (bus, ring, mut progress, mut rptr) = start(0, &packets);
        assert_eq!(run(&bus, &ring, &mut progress, &mut rptr), Slice::Empty);
        assert_eq!(bus.get(0, 0x6000, 2), [0, 2]);
    }

    #[test]
    fn users_do_not_reach_registers() {
        for packet in [vec![14 | 0xf << 28, 0x100, 5], vec![8 | 3 << 28, 0x100, 0, 0, 0, 0]] {
            let (bus, ring, mut progress, mut rptr) = start(5, &packet);
            assert_eq!(run(&bus, &ring, &mut progress, &mut rptr), Slice::Stop);
            assert!(bus.state().writes.is_empty());
            assert_eq!(bus.state().errors.len(), 1);
        }
        let (bus, ring, mut progress, mut rptr) = start(0, &[14 | 0xf << 28, 0x100, 5]);
        assert_eq!(run(&bus, &ring, &mut progress, &mut rptr), Slice::Empty);
        assert_eq!(bus.state().writes, [(0x100, 5)]);
    }

    #[test]
    fn garbage_stops_the_ring_with_its_name() {
        for packet in [vec![0x99], vec![1, 0, 0], vec![2, 0, 0, 0xffff, 0], vec![9, 0, 0, 1, 100]] {
            let (bus, ring, mut progress, mut rptr) = start(1, &packet);
            assert_eq!(run(&bus, &ring, &mut progress, &mut rptr), Slice::Stop, "{packet:?}");
            assert_eq!(bus.state().errors.len(), 1, "{packet:?}");
        }
        let bus = FakeBus::default();
        for ring in [
            Ring { size: 0, ..ring(0, 4) },
            Ring { size: 12, ..ring(0, 4) },
            Ring { wptr: u64::MAX, ..ring(0, 0) },
        ] {
            let stop = slice(&bus, &ring, &mut Progress::default(), &mut 0);
            assert_eq!(stop, Slice::Stop);
        }
    }
}
