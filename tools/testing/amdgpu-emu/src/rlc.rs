// SPDX-License-Identifier: GPL-2.0

//! RLC: the graphics core's power and clock controller, which has to agree to everything; and its
//! clock counter.

use amdgpu_regs::gc;

use crate::block::Block;
use crate::gpu::Gpu;

/// The controller.
pub struct Rlc;

impl Block for Rlc {
    fn name(&self) -> &'static str {
        "rlc"
    }

    fn owns(&self, reg: u32) -> bool {
        matches!(reg, gc::RLC_SAFE_MODE | gc::RLC_CAPTURE_GPU_CLOCK_COUNT)
    }

    fn read(&self, gpu: &Gpu, reg: u32) -> u32 {
        gpu.regs.read(reg)
    }

    fn write(&self, gpu: &Gpu, reg: u32, value: u32) {
        if reg == gc::RLC_SAFE_MODE {
            // The command is carried out at once.
            gpu.regs.write(reg, gc::RLC_SAFE_MODE__CMD.set(value, 0));
        } else {
            let clock = gpu.ih.clock();
            gpu.regs.write(gc::RLC_GPU_CLOCK_COUNT_LSB, clock as u32);
            gpu.regs.write(gc::RLC_GPU_CLOCK_COUNT_MSB, (clock >> 32) as u32);
        }
    }
}
