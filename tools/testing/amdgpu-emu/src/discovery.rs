// SPDX-License-Identifier: GPL-2.0

//! The IP discovery table at the end of the VRAM, from which the driver learns what the GPU is.
//!
//! The layout is that of `include/discovery.h`; it is checked by `amdgpu_discovery_init()`.

use amdgpu_regs::discovery::{
    BINARY_SIGNATURE, DISCOVERY_TABLE_SIGNATURE, GC, GC_TABLE_ID, HARVEST_INFO,
    HARVEST_TABLE_SIGNATURE, IP_DISCOVERY, TOTAL_TABLES,
};

use crate::ip::{Ip, Shaders, BLOCKS, SHADERS};

/// Where the table is, counted from the end of the VRAM (`DISCOVERY_TMR_OFFSET`).
pub const FROM_END: u64 = 64 << 10;

/// The size of `struct binary_header`.
const BINARY_HEADER: usize = 12 + TOTAL_TABLES as usize * TABLE_INFO;
/// What of it the checksum does not cover: up to `binary_checksum`.
const UNCHECKED: usize = 10;
/// The size of `struct table_info`.
const TABLE_INFO: usize = 8;
/// The size of `struct ip_discovery_header`, whose list of dies has 16 entries.
const DISCOVERY_HEADER: usize = 14 + 16 * 4 + 2;
/// The size of `struct harvest_table`, whose list has 32 entries.
const HARVEST_TABLE: usize = 8 + 32 * 4;
/// Versions of the tables: of the binary, of the list of IP blocks, of the shader table.
const BINARY_VERSION: [u16; 2] = [1, 0];
const DISCOVERY_VERSION: u16 = 3;
const GC_VERSION: [u16; 2] = [2, 1];

/// Bytes that grow.
#[derive(Default)]
struct Table(Vec<u8>);

impl Table {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u16(&mut self, value: u16) {
        self.0.extend(value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    /// Its size, as far as the table's fields can say it.
    fn size(&self) -> u16 {
        u16::try_from(self.0.len()).unwrap_or(u16::MAX)
    }
}

/// The checksum of all tables: the sum of the bytes.
fn checksum(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(u16::from(*byte)))
}

/// The list of IP blocks of one die; `at` is where it will be in the binary.
fn ip_list(at: usize, blocks: &[Ip]) -> Vec<u8> {
    let mut die = Table::default();
    die.u16(0); // die_id
    die.u16(u16::try_from(blocks.len()).unwrap_or(u16::MAX));
    for block in blocks {
        die.u16(block.hw_id as u16);
        die.u8(0); // instance_number
        die.u8(block.bases.len() as u8);
        for part in block.version {
            die.u8(part);
        }
        die.u8(0); // sub_revision, variant
        for base in block.bases {
            die.u32(*base);
        }
    }
    let mut table = Table::default();
    table.u32(DISCOVERY_TABLE_SIGNATURE);
    table.u16(DISCOVERY_VERSION);
    table.u16(u16::try_from(DISCOVERY_HEADER).unwrap_or(0).saturating_add(die.size()));
    table.u32(0); // id
    table.u16(1); // num_dies
    table.u16(0); // die_info[0].die_id
    table.u16(u16::try_from(at + DISCOVERY_HEADER).unwrap_or(u16::MAX));
    table.0.resize(DISCOVERY_HEADER, 0);
    table.0.append(&mut die.0);
    table.0
}

/// The shader table, `struct gc_info_v2_1`.
fn shader_table(shaders: &Shaders) -> Vec<u8> {
    let fields = [
        shaders.engines,
        shaders.units,
        shaders.arrays,
        1, // gc_num_rb_per_se
        shaders.tccs,
        shaders.gprs,
        0, // gc_num_max_gs_thds
        0, // gc_gs_table_depth
        0, // gc_gsprim_buff_depth
        0, // gc_parameter_cache_depth
        0, // gc_double_offchip_lds_buffer
        shaders.wave,
        shaders.waves_per_simd,
        shaders.scratch_slots,
        shaders.lds,
        1,             // gc_num_sc_per_se
        1,             // gc_num_packer_per_sc
        shaders.units, // gc_num_tcp_per_sh
        32,            // gc_tcp_size_per_cu, KiB
        16,            // gc_num_sdp_interface
        2,             // gc_num_cu_per_sqc
        64,            // gc_instruction_cache_size_per_sqc, KiB
        16,            // gc_scalar_data_cache_size_per_sqc, KiB
        4096,          // gc_tcc_size, KiB
    ];
    let mut table = Table::default();
    table.u32(GC_TABLE_ID);
    GC_VERSION.into_iter().for_each(|version| table.u16(version));
    table.u32(12 + 4 * fields.len() as u32);
    fields.into_iter().for_each(|field| table.u32(field));
    table.0
}

/// The list of blocks that are broken: none.
fn harvest_table() -> Vec<u8> {
    let mut table = Table::default();
    table.u32(HARVEST_TABLE_SIGNATURE);
    table.u32(0); // version
    table.0.resize(HARVEST_TABLE, 0);
    table.0
}

/// The binary: a header and the tables.
pub fn binary() -> Vec<u8> {
    let tables = [
        (IP_DISCOVERY, ip_list(BINARY_HEADER, BLOCKS)),
        (GC, shader_table(&SHADERS)),
        (HARVEST_INFO, harvest_table()),
    ];
    let mut offset = BINARY_HEADER;
    let size = tables.iter().fold(offset, |sum, (_, bytes)| sum + bytes.len());
    let mut rest = Table::default();
    rest.u16(u16::try_from(size).unwrap_or(u16::MAX));
    for number in 0..TOTAL_TABLES {
        match tables.iter().find(|(table, _)| *table == number) {
            Some((_, bytes)) => {
                rest.u16(u16::try_from(offset).unwrap_or(u16::MAX));
                rest.u16(checksum(bytes));
                rest.u16(u16::try_from(bytes.len()).unwrap_or(u16::MAX));
                rest.u16(0);
                offset += bytes.len();
            }
            None => rest.0.resize(rest.0.len() + TABLE_INFO, 0),
        }
    }
    for (_, bytes) in tables {
        rest.0.extend(bytes);
    }
    let mut binary = Table::default();
    binary.u32(BINARY_SIGNATURE);
    BINARY_VERSION.into_iter().for_each(|version| binary.u16(version));
    binary.u16(checksum(&rest.0));
    debug_assert_eq!(binary.0.len(), UNCHECKED);
    binary.0.append(&mut rest.0);
    binary.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use amdgpu_regs::hwid;

    /// Reads the binary as the kernel does: field by field at the offsets of `discovery.h`.
    struct Reader<'a>(&'a [u8]);

    impl Reader<'_> {
        fn u8(&self, at: usize) -> usize {
            usize::from(self.0[at])
        }

        fn u16(&self, at: usize) -> usize {
            usize::from(u16::from_le_bytes([self.0[at], self.0[at + 1]]))
        }

        fn u32(&self, at: usize) -> u32 {
            (self.u16(at) | self.u16(at + 2) << 16) as u32
        }

        fn sum(&self, at: usize, size: usize) -> usize {
            self.0[at..at + size].iter().map(|byte| usize::from(*byte)).sum::<usize>() & 0xffff
        }
    }

    #[test]
    fn the_kernels_checks_pass() {
        let bytes = binary();
        let r = Reader(&bytes);
        assert_eq!(r.u32(0), 0x2821_1407);
        assert_eq!(r.u16(10), bytes.len());
        assert_eq!(r.u16(8), r.sum(10, bytes.len() - 10));
        for table in 0..6 {
            let info = 12 + 8 * table;
            let (offset, sum) = (r.u16(info), r.u16(info + 2));
            match table {
                0 => {
                    assert_eq!(r.u32(offset), 0x5344_5049);
                    assert_eq!(sum, r.sum(offset, r.u16(offset + 6)));
                    assert_eq!(offset + r.u16(offset + 6), r.u16(info + 8));
                }
                1 => {
                    assert_eq!(r.u32(offset), 0x4347);
                    assert_eq!(sum, r.sum(offset, r.u32(offset + 8) as usize));
                }
                2 => {
                    assert_eq!(r.u32(offset), 0x5652_4148);
                    assert_eq!(sum, r.sum(offset, 136));
                    assert_eq!(r.u16(offset + 8), 0, "something is harvested");
                    assert_eq!(offset + 136, bytes.len());
                }
                _ => assert_eq!(offset, 0),
            }
        }
        assert!(bytes.len() as u64 <= 10 << 10, "larger than the kernel's default size");
    }

    #[test]
    fn the_kernel_finds_each_block() {
        let bytes = binary();
        let r = Reader(&bytes);
        let list = r.u16(12);
        assert_eq!(r.u16(list + 12), 1, "dies");
        let die = r.u16(list + 16);
        assert_eq!(r.u16(die), 0, "die number");
        let mut at = die + 4;
        let mut found = Vec::new();
        for _ in 0..r.u16(die + 2) {
            let bases: Vec<u32> = (0..r.u8(at + 3)).map(|n| r.u32(at + 8 + 4 * n)).collect();
            found.push((r.u16(at) as u32, [r.u8(at + 4), r.u8(at + 5), r.u8(at + 6)], bases));
            at += 8 + 4 * r.u8(at + 3);
        }
        assert_eq!(at, r.u16(12 + 8), "the list ends where the next table begins");
        let gc = found.iter().find(|(id, ..)| *id == hwid::GC_HWID).unwrap();
        assert_eq!(gc.1, [9, 4, 3]);
        assert_eq!(gc.2, amdgpu_regs::gc::BASES);
        assert_eq!(found.len(), BLOCKS.len());
    }
}
