// SPDX-License-Identifier: GPL-2.0

//! An emulated GPU of AMD's GC 9.4.3 family, complete enough for the unmodified amdgpu and KFD
//! drivers to run shared virtual memory on it, for machines without such a card.
//!
//! [`gpu::Gpu`] is the device: memory, registers and interrupts. [`block`]s answer register
//! accesses at once; [`engine`]s do the work that registers and doorbells ask for, on threads of
//! their own. [`vfio`] connects all of it with QEMU.

pub mod assembly;
pub mod block;
pub mod bus;
pub mod control;
pub mod counters;
pub mod cp;
pub mod discovery;
pub mod engine;
pub mod firmware;
pub mod gpu;
pub mod gpuvm;
pub mod hub;
pub mod ih;
pub mod ip;
pub mod machine;
pub mod mem;
pub mod mp;
pub mod nbio;
pub mod pci;
pub mod registers;
pub mod report;
pub mod rlc;
pub mod sabotage;
pub mod sdma;
pub mod shader;
pub mod vfio;

use block::Block;

/// All blocks but those that have engines.
pub fn blocks() -> Vec<Box<dyn Block>> {
    vec![
        Box::new(nbio::Nbio),
        Box::new(nbio::Athub),
        Box::new(hub::Gmc),
        Box::new(ih::Osssys),
        Box::new(rlc::Rlc),
        Box::new(mp::Mp),
    ]
}
