// SPDX-License-Identifier: GPL-2.0

//! GMC: the two VM hubs' registers, GFXHUB (shaders and command processors) and MMHUB (SDMA).
//!
//! The driver's side is `gfxhub_v1_2.c`, `mmhub_v1_8.c` and `gmc_v9_0.c`. Both hubs have the same
//! registers at different addresses. What is written to them is kept; a request for an invalidation
//! is carried out and acknowledged.

use std::ops::Range;
use std::sync::Arc;

use amdgpu_regs::{gc, mmhub};

use crate::block::Block;
use crate::gpu::Gpu;

/// The VMIDs of a hub.
pub const VMIDS: u8 = 16;
/// The invalidation engines of a hub (`gfxhub_v1_2_xcc_program_invalidation()`).
const ENGINES: u32 = 18;
/// The unit of `MC_VM_FB_LOCATION_*` and `MC_VM_AGP_*`: 16 MiB.
const FB_SHIFT: u32 = 24;
/// The unit of `MC_VM_SYSTEM_APERTURE_*`: 256 KiB.
const APERTURE_SHIFT: u32 = 18;
/// Where the VRAM is in the GPU's address space without translation, in units of 16 MiB. Firmware
/// decides that on hardware; MI300 has its VRAM there.
const FB_BASE: u32 = 0x8000;

/// One of the two hubs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hub {
    /// Shaders and command processors.
    Gfx,
    /// SDMA engines.
    Mm,
}

/// The registers of a hub.
struct Registers {
    cntl: u32,
    base: [u32; 2],
    start: [u32; 2],
    end: [u32; 2],
    /// The distance of the addresses from one context to the next.
    stride: u32,
    sem: u32,
    req: u32,
    ack: u32,
    range: [u32; 2],
    range_stride: u32,
    fb_base: u32,
    fb_top: u32,
    agp_bot: u32,
    agp_top: u32,
    agp_base: u32,
    system_low: u32,
    system_high: u32,
    fault_status: u32,
    fault_addr: [u32; 2],
    fault_cntl: u32,
}

macro_rules! registers {
    ($block:ident) => {
        Registers {
            cntl: $block::VM_CONTEXT0_CNTL,
            base: [
                $block::VM_CONTEXT0_PAGE_TABLE_BASE_ADDR_LO32,
                $block::VM_CONTEXT0_PAGE_TABLE_BASE_ADDR_HI32,
            ],
            start: [
                $block::VM_CONTEXT0_PAGE_TABLE_START_ADDR_LO32,
                $block::VM_CONTEXT0_PAGE_TABLE_START_ADDR_HI32,
            ],
            end: [
                $block::VM_CONTEXT0_PAGE_TABLE_END_ADDR_LO32,
                $block::VM_CONTEXT0_PAGE_TABLE_END_ADDR_HI32,
            ],
            stride: $block::VM_CONTEXT1_PAGE_TABLE_BASE_ADDR_LO32
                - $block::VM_CONTEXT0_PAGE_TABLE_BASE_ADDR_LO32,
            sem: $block::VM_INVALIDATE_ENG0_SEM,
            req: $block::VM_INVALIDATE_ENG0_REQ,
            ack: $block::VM_INVALIDATE_ENG0_ACK,
            range: [
                $block::VM_INVALIDATE_ENG0_ADDR_RANGE_LO32,
                $block::VM_INVALIDATE_ENG0_ADDR_RANGE_HI32,
            ],
            range_stride: $block::VM_INVALIDATE_ENG1_ADDR_RANGE_LO32
                - $block::VM_INVALIDATE_ENG0_ADDR_RANGE_LO32,
            fb_base: $block::MC_VM_FB_LOCATION_BASE,
            fb_top: $block::MC_VM_FB_LOCATION_TOP,
            agp_bot: $block::MC_VM_AGP_BOT,
            agp_top: $block::MC_VM_AGP_TOP,
            agp_base: $block::MC_VM_AGP_BASE,
            system_low: $block::MC_VM_SYSTEM_APERTURE_LOW_ADDR,
            system_high: $block::MC_VM_SYSTEM_APERTURE_HIGH_ADDR,
            fault_status: $block::VM_L2_PROTECTION_FAULT_STATUS,
            fault_addr: [
                $block::VM_L2_PROTECTION_FAULT_ADDR_LO32,
                $block::VM_L2_PROTECTION_FAULT_ADDR_HI32,
            ],
            fault_cntl: $block::VM_L2_PROTECTION_FAULT_CNTL,
        }
    };
}

static GFX: Registers = registers!(gc);
static MM: Registers = registers!(mmhub);

impl Hub {
    fn registers(self) -> &'static Registers {
        match self {
            Self::Gfx => &GFX,
            Self::Mm => &MM,
        }
    }
}

/// How a VMID's addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Does the context translate at all?
    pub enabled: bool,
    /// `PAGE_TABLE_BASE_ADDR` as it is: the root directory's entry, with its flags.
    pub root: u64,
    /// `PAGE_TABLE_DEPTH`: how many levels of directories there are above the last one.
    pub depth: u8,
    /// `PAGE_TABLE_BLOCK_SIZE`: log2 of the 2 MiB units that a last-level directory entry covers.
    pub block_size: u8,
    /// The first page (4 KiB) that is translated.
    pub start: u64,
    /// The last page that is translated.
    pub end: u64,
    /// Are invalid pages retried?
    pub retry: bool,
}

/// What VMID 0 reaches without translation. All in bytes; ends are exclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aperture {
    /// The VRAM.
    pub fb: Range<u64>,
    /// The window to DMA addresses.
    pub agp: Range<u64>,
    /// The DMA address of the window's begin.
    pub agp_base: u64,
    /// Inside of this, addresses are not translated.
    pub system: Range<u64>,
}

/// A request to forget translations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalidate {
    /// The VMIDs, one bit for each.
    pub vmids: u16,
    /// The pages (4 KiB), or all.
    pub pages: Option<Range<u64>>,
    /// `FLUSH_TYPE`: 0 legacy, 1 light, 2 heavy.
    pub flush_type: u8,
}

impl Invalidate {
    /// Everything of some VMIDs.
    pub fn all(vmids: u16) -> Self {
        Self { vmids, pages: None, flush_type: 0 }
    }
}

/// Who caches translations.
pub trait Invalidator: Send + Sync {
    /// Forgets translations; when it returns, no engine uses one of them any more.
    fn invalidate(&self, gpu: &Gpu, hub: Hub, request: &Invalidate);
}

/// The registers of both hubs.
#[derive(Default)]
pub struct Gmc;

/// The number of an item in a row of registers.
fn index(reg: u32, first: u32, stride: u32, count: u32) -> Option<u32> {
    let offset = reg.checked_sub(first)?;
    (offset % stride == 0 && offset / stride < count).then_some(offset / stride)
}

impl Gmc {
    fn hub(reg: u32) -> Option<Hub> {
        [Hub::Gfx, Hub::Mm].into_iter().find(|hub| {
            let r = hub.registers();
            index(reg, r.req, 1, ENGINES).is_some()
                || index(reg, r.sem, 1, ENGINES).is_some()
                || reg == r.fault_cntl
        })
    }

    /// Carries out the request of an invalidation engine.
    fn invalidate(gpu: &Gpu, hub: Hub, engine: u32, value: u32) {
        let r = hub.registers();
        let vmids = gc::VM_INVALIDATE_ENG0_REQ__PER_VMID_INVALIDATE_REQ.get(value) as u16;
        let flush_type = gc::VM_INVALIDATE_ENG0_REQ__FLUSH_TYPE.get(value) as u8;
        let [low, high] = r.range.map(|reg| gpu.regs.read(reg + engine * r.range_stride));
        // The range is not used by the driver, which programs all ones once.
        let everything = low == u32::MAX;
        let start = u64::from(low) >> 1 | u64::from(high) << 31;
        let pages = (!everything).then_some(start..start.saturating_add(1));
        gpu.invalidate(hub, &Invalidate { vmids, pages, flush_type });
        gpu.regs.write(r.req + engine, value);
        gpu.regs.write(r.ack + engine, u32::from(vmids));
        if gc::VM_INVALIDATE_ENG0_REQ__CLEAR_PROTECTION_FAULT_STATUS_ADDR.get(value) != 0 {
            gpu.regs.write(r.fault_status, 0);
        }
    }
}

impl Block for Gmc {
    fn name(&self) -> &'static str {
        "gmc"
    }

    fn owns(&self, reg: u32) -> bool {
        Self::hub(reg).is_some()
    }

    fn read(&self, gpu: &Gpu, reg: u32) -> u32 {
        let sem = Self::hub(reg).and_then(|hub| index(reg, hub.registers().sem, 1, ENGINES));
        match sem {
            // Everybody who asks gets the semaphore: there is one driver only.
            Some(_) => 1,
            None => gpu.regs.read(reg),
        }
    }

    fn write(&self, gpu: &Gpu, reg: u32, value: u32) {
        let Some(hub) = Self::hub(reg) else { return };
        let r = hub.registers();
        if let Some(engine) = index(reg, r.req, 1, ENGINES) {
            Self::invalidate(gpu, hub, engine, value);
        } else if reg == r.fault_cntl {
            let clear = gc::VM_L2_PROTECTION_FAULT_CNTL__CLEAR_PROTECTION_FAULT_STATUS_ADDR;
            if clear.get(value) != 0 {
                gpu.regs.write(r.fault_status, 0);
            }
            gpu.regs.write(reg, clear.set(value, 0));
        }
    }

    fn reset(&self, gpu: &Gpu) {
        let size = gpu.vram_size() >> FB_SHIFT;
        for hub in [Hub::Gfx, Hub::Mm] {
            let r = hub.registers();
            gpu.regs.write(r.fb_base, FB_BASE);
            gpu.regs.write(r.fb_top, FB_BASE.saturating_add(size as u32).saturating_sub(1));
        }
    }
}

impl Gpu {
    /// How a VMID is translated by a hub; contexts beyond the last one translate nothing.
    pub fn context(&self, hub: Hub, vmid: u8) -> Context {
        let r = hub.registers();
        let n = u32::from(vmid);
        let pair =
            |[low, high]: [u32; 2]| self.regs.read64(low + n * r.stride, high + n * r.stride);
        let cntl = if vmid < VMIDS { self.regs.read(r.cntl + n) } else { 0 };
        Context {
            enabled: gc::VM_CONTEXT0_CNTL__ENABLE_CONTEXT.get(cntl) != 0,
            root: pair(r.base),
            depth: gc::VM_CONTEXT0_CNTL__PAGE_TABLE_DEPTH.get(cntl) as u8,
            block_size: gc::VM_CONTEXT0_CNTL__PAGE_TABLE_BLOCK_SIZE.get(cntl) as u8,
            start: pair(r.start),
            end: pair(r.end),
            retry: gc::VM_CONTEXT0_CNTL__RETRY_PERMISSION_OR_INVALID_PAGE_FAULT.get(cntl) != 0,
        }
    }

    /// Sets the root directory of a VMID, as packets do.
    pub fn set_root(&self, hub: Hub, vmid: u8, root: u64) {
        let r = hub.registers();
        if vmid < VMIDS {
            let [low, high] = r.base.map(|reg| reg + u32::from(vmid) * r.stride);
            self.regs.write(low, root as u32);
            self.regs.write(high, (root >> 32) as u32);
        }
    }

    /// What VMID 0 reaches without translation.
    pub fn aperture(&self, hub: Hub) -> Aperture {
        let r = hub.registers();
        let bytes = |reg: u32, shift: u32| u64::from(self.regs.read(reg)) << shift;
        let range = |low: u32, high: u32, shift: u32| {
            bytes(low, shift)..bytes(high, shift).saturating_add(1 << shift)
        };
        Aperture {
            fb: range(r.fb_base, r.fb_top, FB_SHIFT),
            agp: range(r.agp_bot, r.agp_top, FB_SHIFT),
            agp_base: bytes(r.agp_base, FB_SHIFT),
            system: range(r.system_low, r.system_high, APERTURE_SHIFT),
        }
    }

    /// Forgets translations everywhere.
    pub fn invalidate(&self, hub: Hub, request: &Invalidate) {
        self.counters.invalidations.add(1);
        if let Some(invalidator) = self.invalidator() {
            invalidator.invalidate(self, hub, request);
        }
        self.wake_all();
    }

    /// Sets the status that the driver prints with a fault.
    pub(crate) fn set_fault_status(&self, hub: Hub, vmid: u8, addr: u64, write: bool) {
        let r = hub.registers();
        let status = gc::VM_L2_PROTECTION_FAULT_STATUS__PERMISSION_FAULTS.set(0, 1);
        let status = gc::VM_L2_PROTECTION_FAULT_STATUS__RW.set(status, u32::from(write));
        let status = gc::VM_L2_PROTECTION_FAULT_STATUS__VMID.set(status, u32::from(vmid));
        self.regs.write(r.fault_status, status);
        let [low, high] = r.fault_addr;
        self.regs.write(low, (addr >> 12) as u32);
        self.regs.write(high, (addr >> 44) as u32);
    }
}

/// Who caches translations, shared by the GPU and its engines.
pub type SharedInvalidator = Arc<dyn Invalidator>;

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Seen(Mutex<Vec<(Hub, Invalidate)>>);

    impl Invalidator for Seen {
        fn invalidate(&self, _gpu: &Gpu, hub: Hub, request: &Invalidate) {
            self.0.lock().unwrap().push((hub, request.clone()));
        }
    }

    #[test]
    fn requests_are_carried_out_and_acknowledged() {
        let gpu = Gpu::for_tests();
        let seen = Arc::new(Seen::default());
        gpu.set_invalidator(seen.clone());
        for engine in [0, 17] {
            gpu.reg_write(mmhub::VM_INVALIDATE_ENG0_ADDR_RANGE_LO32 + 2 * engine, u32::MAX);
            gpu.reg_write(mmhub::VM_INVALIDATE_ENG0_REQ + engine, 0x2_0104);
            assert_eq!(gpu.reg_read(mmhub::VM_INVALIDATE_ENG0_ACK + engine), 0x104);
        }
        let request = Invalidate { vmids: 0x104, pages: None, flush_type: 2 };
        assert_eq!(*seen.0.lock().unwrap(), [(Hub::Mm, request.clone()), (Hub::Mm, request)]);
    }

    #[test]
    fn contexts_are_read_as_the_driver_writes_them() {
        let gpu = Gpu::for_tests();
        gpu.reg_write(gc::VM_CONTEXT0_CNTL + 8, 0x1 | 3 << 1);
        gpu.reg_write(gc::VM_CONTEXT0_PAGE_TABLE_BASE_ADDR_LO32 + 16, 0x1234_5001);
        gpu.reg_write(gc::VM_CONTEXT0_PAGE_TABLE_END_ADDR_HI32 + 16, 0xf);
        let context = gpu.context(Hub::Gfx, 8);
        assert!(context.enabled);
        assert_eq!((context.depth, context.root), (3, 0x1234_5001));
        assert_eq!(context.end, 0xf_0000_0000);
        assert!(!gpu.context(Hub::Mm, 8).enabled);
        assert!(!gpu.context(Hub::Gfx, 200).enabled);
    }

    #[test]
    fn vram_is_where_the_aperture_says() {
        let gpu = Gpu::for_tests();
        let aperture = gpu.aperture(Hub::Mm);
        assert_eq!(aperture.fb.start, 0x80_0000_0000);
        assert_eq!(aperture.fb.end - aperture.fb.start, gpu.vram_size());
    }
}
