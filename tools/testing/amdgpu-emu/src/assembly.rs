// SPDX-License-Identifier: GPL-2.0

//! Puts a GPU together: memories, blocks, engines, control commands.

use std::io;
use std::sync::Arc;

use crate::blocks;
use crate::control::Registry;
use crate::gpu::Gpu;
use crate::gpuvm::dump;
use crate::machine::Machine;
use crate::mem::Memory;
use crate::sabotage;

/// A GPU whose engines run.
///
/// # Errors
///
/// If the system has no more threads.
pub fn gpu(
    system: Arc<dyn Memory>,
    vram: Arc<dyn Memory>,
    vram_size: u64,
    registry: &mut Registry,
) -> io::Result<Arc<Gpu>> {
    let mut machine = Machine::new();
    let mut all = blocks();
    all.extend(machine.take_blocks());
    let gpu = Arc::new(Gpu::new(system, vram, vram_size, all));
    machine.start(&gpu)?;
    registry.add(
        "pagetable",
        "gfx|mm VMID [physical]: the page tables of a VMID",
        Box::new(dump::command),
    );
    registry.add(
        "sabotage",
        "[off|drop|corrupt]: lose or change the data that users write",
        Box::new(sabotage::command),
    );
    Ok(gpu)
}
