// SPDX-License-Identifier: GPL-2.0

//! SDMA packets, as `vega10_sdma_pkt_open.h` defines them and `sdma_v4_4_2.c` writes them.

use amdgpu_regs::sdma_pkt as pkt;

use crate::bus::join;

/// Dwords that [`decode`] looks at most: the longest packet without its data.
pub const HEAD: usize = 10;

/// Byte counts of copies and fills on SDMA 4.4 have 30 bits (`copy_max_bytes` and
/// `fill_max_bytes` of `sdma_v4_4_2_buffer_funcs`); the header knows the 22 bits of older ones.
const BYTES_MASK: u32 = (1 << 30) - 1;

/// `POLL_REGMEM` looks at a register, or at memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// A register, by dword offset.
    Register(u32),
    /// Memory.
    Memory(u64),
    /// An HDP flush is requested and waited for. Nothing here is posted, so it is done.
    HdpFlush,
}

/// A packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// Does nothing.
    Nop,
    /// Copies bytes.
    Copy { from: u64, to: u64, bytes: u64 },
    /// Writes the dwords that follow the head.
    Write { to: u64, dwords: u32 },
    /// Writes a dword again and again.
    Fill { to: u64, value: u32, bytes: u64 },
    /// Writes page table entries: `mask | value`, the value growing.
    PtePde { to: u64, mask: u64, value: u64, step: u64, count: u32 },
    /// Runs an indirect buffer.
    Indirect { base: u64, dwords: u32, vmid: u8 },
    /// Writes a dword after all before it is done.
    Fence { to: u64, value: u32 },
    /// Sends an interrupt.
    Trap { context: u32 },
    /// Waits for a value.
    Poll { what: Poll, function: u32, value: u32, mask: u32 },
    /// Skips `skip` dwords unless the value is there.
    CondExe { at: u64, value: u32, skip: u32 },
    /// Writes the clock.
    Timestamp { to: u64 },
    /// Writes a register.
    SrbmWrite { reg: u32, value: u32, byte_enable: u32 },
}

/// A packet and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The packet.
    pub packet: Packet,
    /// Dwords before its data.
    pub head: u32,
    /// Dwords in all.
    pub dwords: u32,
}

/// What cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The head has more dwords than there are.
    Short,
    /// Not a packet that the emulator knows; its header.
    Unknown(u32),
}

struct Dwords<'a>(&'a [u32]);

impl Dwords<'_> {
    fn get(&self, index: usize) -> Result<u32, Error> {
        self.0.get(index).copied().ok_or(Error::Short)
    }

    fn address(&self, index: usize) -> Result<u64, Error> {
        Ok(join(self.get(index)?, self.get(index + 1)?))
    }
}

fn field(dword: u32, mask: u32, shift: u32) -> u32 {
    dword >> shift & mask
}

/// Decodes the packet that begins with `dwords`.
///
/// # Errors
///
/// If there are too few dwords, or the packet is unknown.
pub fn decode(dwords: &[u32]) -> Result<Decoded, Error> {
    let dwords = Dwords(dwords);
    let header = dwords.get(0)?;
    let op = field(header, pkt::SDMA_PKT_HEADER_OP_MASK, pkt::SDMA_PKT_HEADER_OP_SHIFT);
    let sub = field(header, pkt::SDMA_PKT_HEADER_SUB_OP_MASK, pkt::SDMA_PKT_HEADER_SUB_OP_SHIFT);
    let unknown = Err(Error::Unknown(header));
    let fixed = |packet, head| Ok(Decoded { packet, head, dwords: head });
    match (op, sub) {
        (pkt::SDMA_OP_NOP, _) => {
            let count = field(
                header,
                pkt::SDMA_PKT_NOP_HEADER_COUNT_MASK,
                pkt::SDMA_PKT_NOP_HEADER_COUNT_SHIFT,
            );
            Ok(Decoded { packet: Packet::Nop, head: 1, dwords: 1 + count })
        }
        (pkt::SDMA_OP_COPY, pkt::SDMA_SUBOP_COPY_LINEAR) => {
            let broadcast = field(
                header,
                pkt::SDMA_PKT_COPY_LINEAR_HEADER_BROADCAST_MASK,
                pkt::SDMA_PKT_COPY_LINEAR_HEADER_BROADCAST_SHIFT,
            );
            if broadcast != 0 {
                return unknown;
            }
            let bytes = u64::from(dwords.get(1)? & BYTES_MASK) + 1;
            fixed(Packet::Copy { from: dwords.address(3)?, to: dwords.address(5)?, bytes }, 7)
        }
        (pkt::SDMA_OP_WRITE, pkt::SDMA_SUBOP_WRITE_LINEAR) => {
            let count = field(
                dwords.get(3)?,
                pkt::SDMA_PKT_WRITE_UNTILED_DW_3_COUNT_MASK,
                pkt::SDMA_PKT_WRITE_UNTILED_DW_3_COUNT_SHIFT,
            ) + 1;
            let packet = Packet::Write { to: dwords.address(1)? & !3, dwords: count };
            Ok(Decoded { packet, head: 4, dwords: 4 + count })
        }
        (pkt::SDMA_OP_CONST_FILL, 0) => {
            let to = dwords.address(1)?;
            let bytes = u64::from(dwords.get(4)? & BYTES_MASK) + 1;
            fixed(Packet::Fill { to, value: dwords.get(3)?, bytes }, 5)
        }
        (pkt::SDMA_OP_PTEPDE, pkt::SDMA_SUBOP_PTEPDE_GEN) => {
            let count = field(
                dwords.get(9)?,
                pkt::SDMA_PKT_WRITE_INCR_COUNT_COUNT_MASK,
                pkt::SDMA_PKT_WRITE_INCR_COUNT_COUNT_SHIFT,
            ) + 1;
            let packet = Packet::PtePde {
                to: dwords.address(1)?,
                mask: dwords.address(3)?,
                value: dwords.address(5)?,
                step: dwords.address(7)?,
                count,
            };
            fixed(packet, 10)
        }
        (pkt::SDMA_OP_INDIRECT, 0) => {
            let vmid = field(
                header,
                pkt::SDMA_PKT_INDIRECT_HEADER_VMID_MASK,
                pkt::SDMA_PKT_INDIRECT_HEADER_VMID_SHIFT,
            ) as u8;
            let size = field(
                dwords.get(3)?,
                pkt::SDMA_PKT_INDIRECT_IB_SIZE_IB_SIZE_MASK,
                pkt::SDMA_PKT_INDIRECT_IB_SIZE_IB_SIZE_SHIFT,
            );
            dwords.get(5)?;
            fixed(Packet::Indirect { base: dwords.address(1)?, dwords: size, vmid }, 6)
        }
        (pkt::SDMA_OP_FENCE, 0) => {
            fixed(Packet::Fence { to: dwords.address(1)?, value: dwords.get(3)? }, 4)
        }
        (pkt::SDMA_OP_TRAP, 0) => {
            let context = dwords.get(1)? & pkt::SDMA_PKT_TRAP_INT_CONTEXT_INT_CONTEXT_MASK;
            fixed(Packet::Trap { context }, 2)
        }
        (pkt::SDMA_OP_POLL_REGMEM, 0) => {
            let memory = field(
                header,
                pkt::SDMA_PKT_POLL_REGMEM_HEADER_MEM_POLL_MASK,
                pkt::SDMA_PKT_POLL_REGMEM_HEADER_MEM_POLL_SHIFT,
            );
            let hdp = field(
                header,
                pkt::SDMA_PKT_POLL_REGMEM_HEADER_HDP_FLUSH_MASK,
                pkt::SDMA_PKT_POLL_REGMEM_HEADER_HDP_FLUSH_SHIFT,
            );
            let function = field(
                header,
                pkt::SDMA_PKT_POLL_REGMEM_HEADER_FUNC_MASK,
                pkt::SDMA_PKT_POLL_REGMEM_HEADER_FUNC_SHIFT,
            );
            let what = match (memory, hdp) {
                (0, 0) => Poll::Register(dwords.get(1)? >> 2),
                (0, _) => Poll::HdpFlush,
                _ => Poll::Memory(dwords.address(1)?),
            };
            dwords.get(5)?;
            fixed(Packet::Poll { what, function, value: dwords.get(3)?, mask: dwords.get(4)? }, 6)
        }
        (pkt::SDMA_OP_COND_EXE, 0) => {
            let skip = field(
                dwords.get(4)?,
                pkt::SDMA_PKT_COND_EXE_EXEC_COUNT_EXEC_COUNT_MASK,
                pkt::SDMA_PKT_COND_EXE_EXEC_COUNT_EXEC_COUNT_SHIFT,
            );
            fixed(Packet::CondExe { at: dwords.address(1)?, value: dwords.get(3)?, skip }, 5)
        }
        (
            pkt::SDMA_OP_TIMESTAMP,
            pkt::SDMA_SUBOP_TIMESTAMP_GET | pkt::SDMA_SUBOP_TIMESTAMP_GET_GLOBAL,
        ) => fixed(Packet::Timestamp { to: dwords.address(1)? & !7 }, 3),
        (pkt::SDMA_OP_SRBM_WRITE, 0) => {
            let reg = field(
                dwords.get(1)?,
                pkt::SDMA_PKT_SRBM_WRITE_ADDR_ADDR_MASK,
                pkt::SDMA_PKT_SRBM_WRITE_ADDR_ADDR_SHIFT,
            );
            let byte_enable = field(
                header,
                pkt::SDMA_PKT_SRBM_WRITE_HEADER_BYTE_EN_MASK,
                pkt::SDMA_PKT_SRBM_WRITE_HEADER_BYTE_EN_SHIFT,
            );
            fixed(Packet::SrbmWrite { reg, value: dwords.get(2)?, byte_enable }, 3)
        }
        _ => unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The driver's packets, written as `sdma_v4_4_2.c` writes them.
    #[test]
    fn packets_of_the_driver() {
        let copy = [1, 0x3fff_ffff, 0, 0x1000, 0x7f00, 0x2000, 0x80];
        let packet = Packet::Copy { from: 0x7f00_0000_1000, to: 0x80_0000_2000, bytes: 1 << 30 };
        assert_eq!(decode(&copy), Ok(Decoded { packet, head: 7, dwords: 7 }));

        let write = [2, 0x1000, 0, 3];
        let packet = Packet::Write { to: 0x1000, dwords: 4 };
        assert_eq!(decode(&write), Ok(Decoded { packet, head: 4, dwords: 8 }));

        let ptes = [12, 0x1000, 0, 0x71, 1, 0x5000, 2, 0x1000, 0, 511];
        let packet = Packet::PtePde {
            to: 0x1000,
            mask: 0x1_0000_0071,
            value: 0x2_0000_5000,
            step: 0x1000,
            count: 512,
        };
        assert_eq!(decode(&ptes), Ok(Decoded { packet, head: 10, dwords: 10 }));

        let ib = [4 | 3 << 16, 0x20, 1, 64, 0, 0];
        let packet = Packet::Indirect { base: 0x1_0000_0020, dwords: 64, vmid: 3 };
        assert_eq!(decode(&ib), Ok(Decoded { packet, head: 6, dwords: 6 }));

        let nops = [7 << 16];
        assert_eq!(decode(&nops), Ok(Decoded { packet: Packet::Nop, head: 1, dwords: 8 }));
    }

    #[test]
    fn polls() {
        let poll = |header: u32| match decode(&[8 | header, 0x40, 1, 5, 0xff, 0]).unwrap().packet {
            Packet::Poll { what, function, value: 5, mask: 0xff } => (what, function),
            other => panic!("{other:?}"),
        };
        assert_eq!(poll(3 << 28), (Poll::Register(0x10), 3));
        assert_eq!(poll(1 << 31 | 5 << 28), (Poll::Memory(0x1_0000_0040), 5));
        assert_eq!(poll(1 << 26 | 3 << 28), (Poll::HdpFlush, 3));
    }

    #[test]
    fn what_is_not_known_is_named() {
        assert_eq!(decode(&[0xff]), Err(Error::Unknown(0xff)));
        assert_eq!(decode(&[1 | 1 << 27, 0, 0, 0, 0, 0, 0]), Err(Error::Unknown(1 | 1 << 27)));
        assert_eq!(decode(&[1 | 4 << 8]), Err(Error::Unknown(1 | 4 << 8)));
        assert_eq!(decode(&[]), Err(Error::Short));
        for len in 1..7 {
            assert_eq!(decode(&[1, 0, 0, 0, 0, 0, 0][..len]), Err(Error::Short), "{len}");
        }
    }
}
