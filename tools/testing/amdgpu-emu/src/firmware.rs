// SPDX-License-Identifier: GPL-2.0

//! Firmware files that say nothing: the driver wants to load some, and the emulated processors need
//! none. The headers are those of `amdgpu_ucode.h`; the only check is the size
//! (`amdgpu_ucode_validate()`).

use std::fs;
use std::io;
use std::path::Path;

/// The size of `struct common_firmware_header`.
const COMMON: usize = 32;
/// The size of each file's program, all zeros.
const PROGRAM: usize = 512;
/// Where in the program the jump table is said to be, and how large, in dwords.
const JUMP_TABLE: [u32; 2] = [16, 16];

/// A firmware file.
struct File {
    name: &'static str,
    /// The version of its header.
    header: [u16; 2],
    /// The version of what it is for.
    ip: [u16; 2],
    /// The version that the driver reads; KFD asks some features of it.
    version: u32,
    /// The fields after the common header.
    fields: &'static [u32],
}

/// All files that the driver asks for.
const FILES: &[File] = &[
    // struct gfx_firmware_header_v1_0: ucode_feature_version, jt_offset, jt_size.
    File {
        name: "gc_9_4_3_mec.bin",
        header: [1, 0],
        ip: [9, 4],
        version: 1,
        fields: &[1, JUMP_TABLE[0], JUMP_TABLE[1]],
    },
    // struct rlc_firmware_header_v2_0: ucode_feature_version, jt_offset, jt_size, then offsets and
    // sizes of lists that are empty.
    File {
        name: "gc_9_4_3_rlc.bin",
        header: [2, 0],
        ip: [9, 4],
        version: 1,
        fields: &[1, JUMP_TABLE[0], JUMP_TABLE[1], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    },
    // struct sdma_firmware_header_v1_0: ucode_feature_version, ucode_change_version, jt_offset,
    // jt_size.
    File {
        name: "sdma_4_4_2.bin",
        header: [1, 0],
        ip: [4, 4],
        version: 1,
        fields: &[1, 0, JUMP_TABLE[0], JUMP_TABLE[1]],
    },
];

fn content(file: &File) -> Vec<u8> {
    let header = COMMON + 4 * file.fields.len();
    let mut bytes = Vec::with_capacity(header + PROGRAM);
    let dword = |bytes: &mut Vec<u8>, value: u32| bytes.extend(value.to_le_bytes());
    dword(&mut bytes, (header + PROGRAM) as u32);
    dword(&mut bytes, header as u32);
    for part in [file.header, file.ip].concat() {
        bytes.extend(part.to_le_bytes());
    }
    dword(&mut bytes, file.version);
    dword(&mut bytes, PROGRAM as u32);
    dword(&mut bytes, header as u32);
    dword(&mut bytes, 0); // crc32, which nobody checks
    for field in file.fields {
        dword(&mut bytes, *field);
    }
    bytes.resize(header + PROGRAM, 0);
    bytes
}

/// Writes all files into a folder, which is made if there is none: `lib/firmware/amdgpu` of the
/// guest.
///
/// # Errors
///
/// If the folder cannot be made or written.
pub fn write(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for file in FILES {
        fs::write(folder.join(file.name), content(file))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_as_the_kernel_checks_them() {
        for file in FILES {
            let bytes = content(file);
            let field =
                |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
            assert_eq!(field(0), bytes.len(), "{}", file.name);
            // ucode_array_offset_bytes + ucode_size_bytes
            assert_eq!(field(24) + field(20), bytes.len(), "{}", file.name);
            assert_eq!(field(4), field(24), "{}", file.name);
        }
    }

    #[test]
    fn the_longest_header_has_all_of_its_fields() {
        let rlc = FILES.iter().find(|file| file.name.contains("rlc")).unwrap();
        // The last field is reg_list_separate_array_offset_bytes.
        assert_eq!(rlc.fields.len(), 18);
    }
}
