// SPDX-License-Identifier: GPL-2.0

//! Generates Rust constants from the amdgpu headers of a kernel tree, so that no register name,
//! offset or field is written down a second time.
//!
//! `AMDGPU_EMU_KERNEL_SRC` names the kernel tree.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// The variable that names the kernel tree.
const KERNEL: &str = "AMDGPU_EMU_KERNEL_SRC";

/// An IP block: our module, its headers below `include/asic_reg`, and the name of its base
/// addresses in [`BASES`]. Which versions these are is decided by `src/ip.rs` of the emulator.
const BLOCKS: &[(&str, &str, &str)] = &[
    ("gc", "gc/gc_9_4_3", "GC"),
    ("mmhub", "mmhub/mmhub_1_8_0", "MMHUB"),
    ("sdma", "sdma/sdma_4_4_2", "SDMA0"),
    ("osssys", "oss/osssys_4_4_2", "OSSSYS"),
    ("nbio", "nbio/nbio_7_9_0", "NBIO"),
    ("hdp", "hdp/hdp_4_4_2", "HDP"),
    ("smuio", "smuio/smuio_13_0_3", "SMUIO"),
    ("athub", "athub/athub_1_8_0", "ATHUB"),
    ("thm", "thm/thm_13_0_2", "THM"),
    ("mp", "mp/mp_13_0_2", "MP0"),
];

/// A table of base addresses of a chip whose blocks have the same layout.
const BASES: &str = "include/aldebaran_ip_offset.h";

/// Blocks that are elsewhere than on that chip.
///
/// `gfx_v9_4_3_normalize_xcc_reg_offset()` takes a register for one of an XCC, and drops its upper
/// bits, if the lower 16 are in 0x2000..0x3400 or 0xa000..0x10000. The MMHUB must not be there, since
/// packets of the kernel's queue write and poll its registers.
const MOVED: &[(&str, &[u32])] = &[("MMHUB", &[0x1_8000, 0x240_8800])];

/// Modules of plain numbers: their name and the headers they come from.
const NUMBERS: &[(&str, &[&str])] = &[
    ("pm4", &["amdgpu/soc15d.h", "amdkfd/kfd_pm4_opcodes.h"]),
    ("sdma_pkt", &["amdgpu/vega10_sdma_pkt_open.h"]),
    (
        "ih",
        &[
            "include/soc15_ih_clientid.h",
            "include/ivsrcid/gfx/irqsrcs_gfx_9_0.h",
            "include/ivsrcid/sdma0/irqsrcs_sdma0_4_0.h",
            "include/ivsrcid/vmc/irqsrcs_vmc_1_0.h",
        ],
    ),
    ("pte", &["amdgpu/amdgpu_vm.h"]),
    ("hwid", &["include/soc15_hw_ip.h"]),
    ("discovery", &["include/discovery.h"]),
    ("doorbell", &["amdgpu/amdgpu_doorbell.h"]),
];

/// The structures of memory queue descriptors, by dword.
const DESCRIPTORS: &[(&str, &str)] = &[("compute", "v9_mqd"), ("sdma", "v9_sdma_mqd")];

struct Headers {
    amd: PathBuf,
}

impl Headers {
    fn read(&self, path: &str) -> String {
        let path = self.amd.join(path);
        println!("cargo:rerun-if-changed={}", path.display());
        match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => panic!("{}: {error}; does {KERNEL} name a kernel tree?", path.display()),
        }
    }
}

/// The value of a number as the headers write it: `12`, `0xfUL`, `(1ULL << 3)`.
fn number(text: &str) -> Option<u64> {
    let text = text.split("/*").next()?.split("//").next()?.trim();
    let text = match text.strip_prefix('(') {
        Some(inner) => inner.strip_suffix(')')?.trim(),
        None => text,
    };
    if let Some((left, right)) = text.split_once("<<") {
        return number(left)?.checked_shl(u32::try_from(number(right)?).ok()?);
    }
    let digits = text.trim_end_matches(['U', 'L', 'u', 'l']);
    match digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => digits.parse().ok(),
    }
}

/// The `#define NAME VALUE` lines of a header.
fn defines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let rest = line.trim_start().strip_prefix("#define")?.trim_start();
        rest.split_once(char::is_whitespace)
    })
}

/// The base addresses of each block's first instance.
fn bases(text: &str) -> BTreeMap<&str, Vec<u32>> {
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("static const struct IP_BASE ") else { continue };
        let Some((name, values)) = rest.split_once("_BASE = ") else { continue };
        let values = values.trim_matches(|c| " {},".contains(c));
        let mut segments: Vec<u32> =
            values.split(',').filter_map(|v| u32::try_from(number(v)?).ok()).collect();
        while segments.len() > 1 && segments.last() == Some(&0) {
            segments.pop();
        }
        found.insert(name, segments);
    }
    found
}

/// One block's registers and fields.
fn block(
    out: &mut String,
    names: &mut BTreeMap<u32, String>,
    headers: &Headers,
    segments: &[u32],
    (module, path, base): (&str, &str, &str),
) {
    let text = headers.read(&format!("include/asic_reg/{path}_offset.h"));
    let values: BTreeMap<&str, u64> =
        defines(&text).filter_map(|(name, value)| Some((name, number(value)?))).collect();
    let mut registers = BTreeMap::new();
    for (name, offset) in &values {
        let Some(index) = values.get(format!("{name}_BASE_IDX").as_str()) else { continue };
        // Segments that the chip of the table does not have: nobody can address these.
        let Some(segment) = usize::try_from(*index).ok().and_then(|i| segments.get(i)) else {
            continue;
        };
        let Some(short) = name.strip_prefix("reg").or(name.strip_prefix("mm")) else { continue };
        let Some(address) = u32::try_from(*offset).ok().and_then(|o| segment.checked_add(o)) else {
            continue;
        };
        registers.insert(short.to_uppercase(), address);
    }
    writeln!(out, "pub mod {module} {{\n    use crate::Field;").unwrap();
    writeln!(out, "    pub const BASES: &[u32] = &{segments:?}; // {base}").unwrap();
    for (name, address) in &registers {
        writeln!(out, "    pub const {name}: u32 = {address:#x};").unwrap();
        names.entry(*address).or_insert_with(|| name.clone());
    }
    let text = headers.read(&format!("include/asic_reg/{path}_sh_mask.h"));
    let values: BTreeMap<&str, u64> =
        defines(&text).filter_map(|(name, value)| Some((name, number(value)?))).collect();
    let mut fields = BTreeSet::new();
    for (name, shift) in &values {
        let Some(field) = name.strip_suffix("__SHIFT") else { continue };
        let mask = values.get(format!("{field}_MASK").as_str()).copied();
        let Some(mask) = mask.and_then(|m| u32::try_from(m).ok()) else { continue };
        let known = field
            .split_once("__")
            .is_some_and(|(register, _)| registers.contains_key(&register.to_uppercase()));
        if known && fields.insert(field.to_uppercase()) {
            let field = field.to_uppercase();
            writeln!(out, "    pub const {field}: Field = Field::new({shift}, {mask:#x});")
                .unwrap();
        }
    }
    writeln!(out, "}}").unwrap();
}

/// A module of plain numbers: `#define`s, and members of an `enum` with a value.
fn numbers(out: &mut String, headers: &Headers, module: &str, paths: &[&str]) {
    let mut found = BTreeMap::new();
    for path in paths {
        let text = headers.read(path);
        for (name, value) in defines(&text) {
            if !name.contains('(') {
                if let Some(value) = number(value) {
                    found.entry(name.to_uppercase()).or_insert(value);
                }
            }
        }
        let mut next = None;
        for line in text.lines() {
            let line = line.split("/*").next().unwrap_or("").trim();
            if line.starts_with("enum ") || line.starts_with("typedef enum") {
                next = Some(0);
            } else if line.starts_with('}') {
                next = None;
            } else if let (Some(value), Some(member)) =
                (next, line.strip_suffix(',').or(Some(line)))
            {
                let (name, given) = match member.split_once('=') {
                    Some((name, given)) => (name.trim(), number(given)),
                    None => (member, Some(value)),
                };
                let plain =
                    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
                if let (true, Some(value)) = (plain, given) {
                    found.entry(name.to_uppercase()).or_insert(value);
                    next = Some(value + 1);
                }
            }
        }
    }
    writeln!(out, "pub mod {module} {{").unwrap();
    for (name, value) in found {
        if name.starts_with(|c: char| c.is_alphabetic() || c == '_') {
            let kind = if u32::try_from(value).is_ok() && module != "pte" { "u32" } else { "u64" };
            writeln!(out, "    pub const {name}: {kind} = {value:#x};").unwrap();
        }
    }
    writeln!(out, "}}").unwrap();
}

/// The dword offsets of a structure's members; alternatives of a union share theirs.
fn descriptor(out: &mut String, text: &str, module: &str, structure: &str) {
    writeln!(out, "    pub mod {module} {{").unwrap();
    let start = format!("struct {structure} {{");
    let mut dword = 0;
    // Of each open union: where it begins and how far its longest alternative reaches.
    let mut unions: Vec<(usize, usize)> = Vec::new();
    // Of each open brace: is it a union's?
    let mut braces = Vec::new();
    for line in text.lines().skip_while(|line| !line.starts_with(&start)).skip(1).map(str::trim) {
        if line.starts_with("union {") {
            unions.push((dword, dword));
            braces.push(true);
        } else if line.starts_with("struct {") {
            braces.push(false);
        } else if line.starts_with('}') {
            match braces.pop() {
                Some(true) => dword = unions.pop().map_or(dword, |(_, end)| end),
                Some(false) => {
                    if let Some((begin, end)) = unions.last_mut() {
                        *end = dword.max(*end);
                        dword = *begin;
                    }
                }
                None => break,
            }
        }
        let Some(member) = line.strip_prefix("uint32_t ") else { continue };
        let Some(member) = member.split(';').next() else { continue };
        let (name, count) = match member.trim().trim_end_matches(']').split_once('[') {
            Some((name, count)) => (name, usize::try_from(number(count).unwrap_or(1)).unwrap()),
            None => (member.trim(), 1),
        };
        writeln!(out, "        pub const {}: usize = {dword};", name.to_uppercase()).unwrap();
        dword += count;
    }
    writeln!(out, "        pub const DWORDS: usize = {dword};\n    }}").unwrap();
}

fn main() {
    println!("cargo:rerun-if-env-changed={KERNEL}");
    println!("cargo:rerun-if-changed=build.rs");
    let Some(kernel) = env::var_os(KERNEL) else {
        panic!("{KERNEL} must name a kernel tree, whose headers give the registers their names");
    };
    let headers = Headers { amd: Path::new(&kernel).join("drivers/gpu/drm/amd") };
    let mut out = String::new();
    let mut names = BTreeMap::new();
    let text = headers.read(BASES);
    let mut bases = bases(&text);
    bases.extend(MOVED.iter().map(|(name, segments)| (*name, segments.to_vec())));
    for entry in BLOCKS {
        let Some(segments) = bases.get(entry.2) else { panic!("{BASES} has no {}", entry.2) };
        block(&mut out, &mut names, &headers, segments, *entry);
    }
    for (module, paths) in NUMBERS {
        numbers(&mut out, &headers, module, paths);
    }
    writeln!(out, "pub mod mqd {{").unwrap();
    let text = headers.read("include/v9_structs.h");
    for (module, structure) in DESCRIPTORS {
        descriptor(&mut out, &text, module, structure);
    }
    writeln!(out, "}}").unwrap();
    writeln!(out, "pub(crate) const NAMES: &[(u32, &str)] = &[").unwrap();
    for (address, name) in names {
        writeln!(out, "    ({address:#x}, \"{name}\"),").unwrap();
    }
    writeln!(out, "];").unwrap();
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(folder.join("names.rs"), out).expect("OUT_DIR can be written");
}
