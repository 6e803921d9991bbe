// SPDX-License-Identifier: GPL-2.0

//! NBIO: the bus interface, with the windows to VRAM and to registers beyond the BAR; and ATHUB,
//! the table of address spaces beside it.
//!
//! The driver's side is `nbio_v7_9.c`, `amdgpu_device_mm_access()` and
//! `amdgpu_device_indirect_rreg()`.

use amdgpu_regs::{athub, nbio, osssys};

use crate::block::Block;
use crate::gpu::Gpu;
use crate::hub::{Hub, VMIDS};

/// Bit of `MM_INDEX` that selects the VRAM.
const MM_INDEX_APERTURE: u32 = 1 << 31;
/// The first revision that the driver accepts (`amdgpu_device_ip_early_init()`).
const REVISION: u32 = 1;
/// All of the memory is one partition (`nbio_v7_9_get_memory_partition_mode()`).
const NPS1: u32 = 1;

/// The bus interface.
pub struct Nbio;

impl Nbio {
    /// Where `MM_DATA` is in the VRAM, if it shows VRAM.
    fn window(gpu: &Gpu) -> Option<u64> {
        let index = gpu.regs.read(nbio::BIF_BX_PF0_MM_INDEX);
        let high = gpu.regs.read(nbio::BIF_BX_PF0_MM_INDEX_HI);
        let low = u64::from(index & !MM_INDEX_APERTURE);
        (index & MM_INDEX_APERTURE != 0).then_some(low | u64::from(high) << 31)
    }

    /// The register that `PCIE_DATA2` shows.
    fn indirect(gpu: &Gpu) -> u32 {
        // A byte address; no register beyond the first 4 GiB has a name.
        gpu.regs.read(nbio::BIF_BX0_PCIE_INDEX2) / 4
    }
}

impl Block for Nbio {
    fn name(&self) -> &'static str {
        "nbio"
    }

    fn owns(&self, reg: u32) -> bool {
        matches!(
            reg,
            nbio::BIF_BX_PF0_MM_DATA
                | nbio::BIF_BX0_PCIE_DATA2
                | nbio::RCC_DEV0_EPF0_RCC_CONFIG_MEMSIZE
                | nbio::RCC_DEV0_EPF0_RCC_IOV_FUNC_IDENTIFIER
                | nbio::RCC_STRAP0_RCC_DEV0_EPF0_STRAP0
                | nbio::BIF_BX_PF0_GPU_HDP_FLUSH_DONE
                | nbio::BIF_BX_PF0_PARTITION_MEM_STATUS
        )
    }

    fn read(&self, gpu: &Gpu, reg: u32) -> u32 {
        match reg {
            nbio::BIF_BX_PF0_MM_DATA => match Self::window(gpu) {
                Some(at) => gpu.vram.load32(at).unwrap_or(u32::MAX),
                None => gpu.reg_read_far(gpu.regs.read(nbio::BIF_BX_PF0_MM_INDEX) / 4),
            },
            nbio::BIF_BX0_PCIE_DATA2 => gpu.reg_read_far(Self::indirect(gpu)),
            nbio::RCC_DEV0_EPF0_RCC_CONFIG_MEMSIZE => (gpu.vram_size() >> 20) as u32,
            // Neither a virtual function nor able to have some.
            nbio::RCC_DEV0_EPF0_RCC_IOV_FUNC_IDENTIFIER => 0,
            nbio::RCC_STRAP0_RCC_DEV0_EPF0_STRAP0 => {
                nbio::RCC_STRAP0_RCC_DEV0_EPF0_STRAP0__STRAP_ATI_REV_ID_DEV0_F0.set(0, REVISION)
            }
            nbio::BIF_BX_PF0_PARTITION_MEM_STATUS => {
                nbio::BIF_BX_PF0_PARTITION_MEM_STATUS__NPS_MODE.set(0, NPS1)
            }
            // There is no cache between the CPUs and the VRAM: every flush is done.
            nbio::BIF_BX_PF0_GPU_HDP_FLUSH_DONE => u32::MAX,
            _ => gpu.regs.read(reg),
        }
    }

    fn write(&self, gpu: &Gpu, reg: u32, value: u32) {
        match reg {
            nbio::BIF_BX_PF0_MM_DATA => match Self::window(gpu) {
                // What is beyond the VRAM is lost, as on hardware.
                Some(at) => gpu.vram.store32(at, value).unwrap_or_default(),
                None => gpu.reg_write_far(gpu.regs.read(nbio::BIF_BX_PF0_MM_INDEX) / 4, value),
            },
            nbio::BIF_BX0_PCIE_DATA2 => gpu.reg_write_far(Self::indirect(gpu), value),
            _ => {}
        }
    }
}

/// ATHUB: which address space (PASID) a VMID is.
pub struct Athub;

impl Block for Athub {
    fn name(&self) -> &'static str {
        "athub"
    }

    fn owns(&self, reg: u32) -> bool {
        let first = athub::ATC_VMID0_PASID_MAPPING;
        reg == athub::ATC_VMID_PASID_MAPPING_UPDATE_STATUS
            || (first..first + u32::from(VMIDS)).contains(&reg)
    }

    fn read(&self, gpu: &Gpu, reg: u32) -> u32 {
        gpu.regs.read(reg)
    }

    fn write(&self, gpu: &Gpu, reg: u32, value: u32) {
        let status = athub::ATC_VMID_PASID_MAPPING_UPDATE_STATUS;
        let done = gpu.regs.read(status);
        if reg == status {
            // Bits are cleared by writing ones.
            gpu.regs.write(status, done & !value);
        } else {
            gpu.regs.write(reg, value);
            gpu.regs.write(status, done | 1 << (reg - athub::ATC_VMID0_PASID_MAPPING));
        }
    }
}

impl Gpu {
    /// The address space (PASID) that interrupts name for a VMID: what the driver wrote to the
    /// interrupt handler's table (`kgd_gfx_v9_4_3_set_pasid_vmid_mapping()`).
    pub fn pasid(&self, hub: Hub, vmid: u8) -> u16 {
        let first = match hub {
            Hub::Gfx => osssys::IH_VMID_0_LUT,
            Hub::Mm => osssys::IH_VMID_0_LUT_MM,
        };
        self.regs.read(first + u32::from(vmid % VMIDS)) as u16
    }

    /// Says which address space a VMID is, as the scheduler's firmware does.
    pub fn set_pasid(&self, vmid: u8, pasid: u16) {
        let vmid = u32::from(vmid % VMIDS);
        let valid = athub::ATC_VMID0_PASID_MAPPING__VALID.mask;
        let value = if pasid == 0 { 0 } else { u32::from(pasid) | valid };
        self.regs.write(athub::ATC_VMID0_PASID_MAPPING + vmid, value);
        self.regs.write(osssys::IH_VMID_0_LUT + vmid, value);
        self.regs.write(osssys::IH_VMID_0_LUT_MM + vmid, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registers::DIRECT;

    #[test]
    fn the_vram_window_ends_with_the_vram() {
        let gpu = Gpu::for_tests();
        let at = gpu.vram_size() - 4;
        gpu.reg_write(nbio::BIF_BX_PF0_MM_INDEX, at as u32 | MM_INDEX_APERTURE);
        gpu.reg_write(nbio::BIF_BX_PF0_MM_DATA, 0x1234);
        assert_eq!(gpu.vram.load32(at), Ok(0x1234));
        assert_eq!(gpu.reg_read(nbio::BIF_BX_PF0_MM_DATA), 0x1234);
        gpu.reg_write(nbio::BIF_BX_PF0_MM_INDEX_HI, 0xffff_ffff);
        gpu.reg_write(nbio::BIF_BX_PF0_MM_DATA, 1);
        assert_eq!(gpu.reg_read(nbio::BIF_BX_PF0_MM_DATA), u32::MAX);
    }

    #[test]
    fn far_registers_are_reached_by_the_index() {
        let gpu = Gpu::for_tests();
        gpu.reg_write(nbio::BIF_BX0_PCIE_INDEX2, 4 * (DIRECT + 7));
        gpu.reg_write(nbio::BIF_BX0_PCIE_DATA2, 5);
        assert_eq!(gpu.regs.read(DIRECT + 7), 5);
    }

    /// A window that shows itself must not recurse.
    #[test]
    fn windows_do_not_show_themselves() {
        let gpu = Gpu::for_tests();
        for (index, data) in [
            (nbio::BIF_BX0_PCIE_INDEX2, nbio::BIF_BX0_PCIE_DATA2),
            (nbio::BIF_BX_PF0_MM_INDEX, nbio::BIF_BX_PF0_MM_DATA),
        ] {
            gpu.reg_write(index, 4 * data);
            gpu.reg_write(data, 1);
            gpu.reg_read(data);
        }
        gpu.reg_write(nbio::BIF_BX_PF0_MM_INDEX, 4 * nbio::BIF_BX0_PCIE_DATA2);
        gpu.reg_write(nbio::BIF_BX0_PCIE_INDEX2, 4 * nbio::BIF_BX_PF0_MM_DATA);
        gpu.reg_write(nbio::BIF_BX_PF0_MM_DATA, 1);
        gpu.reg_read(nbio::BIF_BX_PF0_MM_DATA);
    }

    #[test]
    fn mappings_are_done_when_the_driver_waits_for_them() {
        let gpu = Gpu::for_tests();
        gpu.reg_write(athub::ATC_VMID0_PASID_MAPPING + 9, 0x8000_0005);
        let status = athub::ATC_VMID_PASID_MAPPING_UPDATE_STATUS;
        assert_eq!(gpu.reg_read(status), 1 << 9);
        gpu.reg_write(status, 1 << 9);
        assert_eq!(gpu.reg_read(status), 0);
        gpu.set_pasid(9, 0x8003);
        assert_eq!(gpu.pasid(Hub::Gfx, 9), 0x8003);
        assert_eq!(gpu.pasid(Hub::Mm, 9), 0x8003);
        assert_eq!(gpu.pasid(Hub::Mm, 8), 0);
    }
}
