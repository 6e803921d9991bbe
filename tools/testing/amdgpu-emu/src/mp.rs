// SPDX-License-Identifier: GPL-2.0

//! MP0 and MP1: the security and the power-management processor, as far as the driver looks when it
//! loads no firmware through them and manages no power.

use amdgpu_regs::mp;

use crate::block::Block;
use crate::gpu::Gpu;

/// The GPU's own firmware has started (`amdgpu_discovery_get_tmr_info()`).
const IFWI_READY: u32 = 1 << 31;

/// Both processors.
pub struct Mp;

impl Block for Mp {
    fn name(&self) -> &'static str {
        "mp"
    }

    fn owns(&self, reg: u32) -> bool {
        reg == mp::MP0_SMN_C2PMSG_33
    }

    fn read(&self, gpu: &Gpu, reg: u32) -> u32 {
        gpu.regs.read(reg) | IFWI_READY
    }

    fn write(&self, gpu: &Gpu, reg: u32, value: u32) {
        gpu.regs.write(reg, value);
    }
}
