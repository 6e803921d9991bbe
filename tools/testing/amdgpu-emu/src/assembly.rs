// SPDX-License-Identifier: GPL-2.0

//! Puts a GPU together: memories, blocks, engines, control commands.

use std::io;
use std::sync::Arc;

use crate::blocks;
use crate::control::Registry;
use crate::gpu::Gpu;
use crate::mem::Memory;

/// A GPU whose engines run.
///
/// # Errors
///
/// If the system has no more threads.
pub fn gpu(
    system: Arc<dyn Memory>,
    vram: Arc<dyn Memory>,
    vram_size: u64,
    _registry: &mut Registry,
) -> io::Result<Arc<Gpu>> {
    Ok(Arc::new(Gpu::new(system, vram, vram_size, blocks())))
}
