// SPDX-License-Identifier: GPL-2.0

//! A VM's page tables as text in one canonical form, so that two drivers' tables can be compared.

use std::fmt::Write as _;

use amdgpu_regs::pte;

use super::walk::{self, Tables, WalkError, PAGE_SHIFT};
use super::{Entry, Host, Hub, Space};
use crate::gpu::Gpu;

/// Lines after which a dump ends, so that hostile tables cannot fill the memory.
const MAX_LINES: usize = 1 << 16;
/// Flags of an entry and what a dump calls them.
const FLAGS: &[(u64, &str)] = &[
    (pte::AMDGPU_PTE_READABLE, "r"),
    (pte::AMDGPU_PTE_WRITEABLE, "w"),
    (pte::AMDGPU_PTE_EXECUTABLE, "x"),
    (pte::AMDGPU_PTE_SNOOPED, "snooped"),
    (pte::AMDGPU_PTE_PRT, "prt"),
];
/// `AMDGPU_PTE_MTYPE_VG10_SHIFT`: the memory type.
const MTYPE_SHIFT: u32 = 57;
const MTYPE_MASK: u64 = 3;

/// What a dump shows beside addresses and rights.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The physical addresses, and the fragment of each mapping. They differ from run to run.
    pub physical: bool,
}

struct Line {
    first: u64,
    end: u64,
    space: Space,
    physical: u64,
    fragment: u32,
    flags: u64,
}

fn flags(entry: Entry) -> u64 {
    let mask = FLAGS.iter().fold(MTYPE_MASK << MTYPE_SHIFT, |mask, (bit, _)| mask | bit);
    entry.0 & mask
}

fn text(line: &Line, options: Options) -> String {
    let mut text = format!("{:#014x}-{:#014x} {}", line.first, line.end, line.space);
    if options.physical {
        let _ = write!(text, " at {:#x} fragment {}", line.physical, line.fragment);
    }
    for (bit, name) in FLAGS {
        if line.flags & bit != 0 {
            let _ = write!(text, " {name}");
        }
    }
    let _ = write!(text, " mtype {}", line.flags >> MTYPE_SHIFT & MTYPE_MASK);
    text
}

/// All mappings in the order of their addresses, one line for each run of pages that have the
/// same memory and flags (and, if asked for, are contiguous in memory).
pub fn dump<H: Host + ?Sized>(host: &H, tables: &Tables, options: Options) -> String {
    let mut out = String::new();
    let mut lines = 0;
    let mut open: Option<Line> = None;
    let last = tables.end.min((1 << 36) - 1);
    let mut page = tables.start;
    while page <= last && lines < MAX_LINES {
        let va = page << PAGE_SHIFT;
        let found = walk::walk(tables, va, |space, at| host.memory(space).load64(at).ok());
        let shift = match found {
            Ok(leaf) => leaf.shift,
            Err(WalkError::Invalid { level, .. }) => hole(tables, level),
            Err(_) => PAGE_SHIFT,
        };
        let next = ((va >> shift) + 1) << (shift - PAGE_SHIFT);
        if let Ok(leaf) = found {
            let entry = leaf.entry;
            let line = Line {
                first: va,
                end: next << PAGE_SHIFT,
                space: entry.space(),
                physical: leaf.resolve(va).unwrap_or(0),
                fragment: entry.fragment(),
                flags: flags(entry),
            };
            match &mut open {
                Some(run) if joins(run, &line, options) => run.end = line.end,
                _ => {
                    if let Some(run) = open.replace(line) {
                        out.push_str(&text(&run, options));
                        out.push('\n');
                        lines += 1;
                    }
                }
            }
        }
        page = next.max(page + 1);
    }
    if let Some(run) = open {
        out.push_str(&text(&run, options));
        out.push('\n');
    }
    if lines >= MAX_LINES {
        out.push_str("...\n");
    }
    out
}

fn joins(run: &Line, line: &Line, options: Options) -> bool {
    run.end == line.first
        && run.space == line.space
        && run.flags == line.flags
        && (!options.physical
            || run.physical.wrapping_add(run.end - run.first) == line.physical
                && run.fragment == line.fragment)
}

/// log2 of the bytes without a mapping when the entry of a level is not valid.
fn hole(tables: &Tables, level: u8) -> u32 {
    let block = 9 + u32::from(tables.block_size);
    let directories = u32::from(tables.depth);
    let level = u32::from(level);
    if tables.depth == 0 || level > directories {
        PAGE_SHIFT
    } else if level == directories {
        // An entry of the block: 2 MiB in the driver's layout, a page without further tables.
        if tables.block_size >= 9 {
            PAGE_SHIFT + 9
        } else {
            PAGE_SHIFT
        }
    } else {
        (PAGE_SHIFT + block + 9 * (directories - 1 - level)).min(47)
    }
}

/// The control command `pagetable`.
pub(crate) fn command(gpu: &Gpu, words: &[&str]) -> Result<String, String> {
    const USAGE: &str = "pagetable gfx|mm VMID [physical]";
    let (hub, vmid, physical) = match words {
        [hub, vmid] => (hub, vmid, false),
        [hub, vmid, "physical"] => (hub, vmid, true),
        _ => return Err(USAGE.into()),
    };
    let hub = match *hub {
        "gfx" => Hub::Gfx,
        "mm" => Hub::Mm,
        _ => return Err(USAGE.into()),
    };
    let vmid: u8 = vmid.parse().map_err(|_| format!("{vmid} is no VMID"))?;
    let context = Host::context(gpu, hub, vmid);
    if !context.enabled {
        return Err(format!("VMID {vmid} is not enabled"));
    }
    Ok(dump(gpu, &context.tables, Options { physical }))
}
