// SPDX-License-Identifier: GPL-2.0

//! Which IP blocks the GPU has, in which version and where.
//!
//! A GC 9.4.3 card reduced to what compute needs: one XCC, one SDMA engine, no display, no video,
//! no memory controllers with error reports. What is not listed, the driver does not look for.

use amdgpu_regs as regs;
use amdgpu_regs::hwid;

/// An IP block as the discovery table announces it.
pub struct Ip {
    /// Its number in the table (`*_HWID`).
    pub hw_id: u32,
    /// Version: major, minor, revision.
    pub version: [u8; 3],
    /// Base addresses (dwords), by the index that `*_BASE_IDX` of a register gives.
    pub bases: &'static [u32],
}

/// All IP blocks.
///
/// The MP0 version (the security processor) is one without a list of RAS features, which would
/// need a video BIOS (`amdgpu_ras_asic_supported()`).
pub const BLOCKS: &[Ip] = &[
    Ip { hw_id: hwid::GC_HWID, version: [9, 4, 3], bases: regs::gc::BASES },
    Ip { hw_id: hwid::MMHUB_HWID, version: [1, 8, 0], bases: regs::mmhub::BASES },
    Ip { hw_id: hwid::SDMA0_HWID, version: [4, 4, 2], bases: regs::sdma::BASES },
    Ip { hw_id: hwid::OSSSYS_HWID, version: [4, 4, 2], bases: regs::osssys::BASES },
    Ip { hw_id: hwid::NBIF_HWID, version: [7, 9, 0], bases: regs::nbio::BASES },
    Ip { hw_id: hwid::HDP_HWID, version: [4, 4, 2], bases: regs::hdp::BASES },
    Ip { hw_id: hwid::SMUIO_HWID, version: [13, 0, 3], bases: regs::smuio::BASES },
    Ip { hw_id: hwid::ATHUB_HWID, version: [1, 8, 0], bases: regs::athub::BASES },
    Ip { hw_id: hwid::THM_HWID, version: [13, 0, 2], bases: regs::thm::BASES },
    Ip { hw_id: hwid::MP0_HWID, version: [13, 0, 2], bases: regs::mp::BASES },
    Ip { hw_id: hwid::MP1_HWID, version: [13, 0, 2], bases: regs::mp::BASES },
];

/// What the shader array looks like.
pub struct Shaders {
    /// Shader engines.
    pub engines: u32,
    /// Shader arrays in each engine.
    pub arrays: u32,
    /// Compute units in each array.
    pub units: u32,
    /// Lanes of a wave.
    pub wave: u32,
    /// Waves that a SIMD holds.
    pub waves_per_simd: u32,
    /// Local memory of a compute unit in KiB.
    pub lds: u32,
    /// Scratch slots of a compute unit.
    pub scratch_slots: u32,
    /// L2 cache banks.
    pub tccs: u32,
    /// Vector registers of a SIMD.
    pub gprs: u32,
}

/// The smallest array that makes sense; the other numbers are those of a GC 9.4.3 XCC.
pub const SHADERS: Shaders = Shaders {
    engines: 1,
    arrays: 1,
    units: 4,
    wave: 64,
    waves_per_simd: 8,
    lds: 64,
    scratch_slots: 32,
    tccs: 16,
    gprs: 512,
};
