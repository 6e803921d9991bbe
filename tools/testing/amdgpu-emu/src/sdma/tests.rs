// SPDX-License-Identifier: GPL-2.0

use std::time::Duration;

use super::*;
use crate::machine::Machine;
use crate::mem::{TestMemory, Vram};

/// VRAM as VMID 0 sees it.
const FB: u64 = 0x80_0000_0000;
const RING: u64 = 0x1_0000;
const RPTR: u64 = 0x2_0000;
const DATA: u64 = 0x3_0000;
const DOORBELL: u32 = 0x1e0;

fn gpu() -> Arc<Gpu> {
    let mut machine = Machine::new();
    let mut blocks = crate::blocks();
    blocks.extend(machine.take_blocks());
    let vram = Arc::new(Vram::new(32 << 20).unwrap());
    let gpu =
        Arc::new(Gpu::new(Arc::new(TestMemory::new(1 << 20, 1 << 20)), vram, 32 << 20, blocks));
    machine.start(&gpu).unwrap();
    gpu
}

/// Sets up a ring of 256 dwords as the driver does, up to its doorbell.
fn set_up(gpu: &Gpu, ring: usize) {
    let at = |gfx: u32| Regs::of(ring).at(gfx);
    gpu.reg_write(at(sdma::SDMA_GFX_RB_BASE), ((FB + RING) >> 8) as u32);
    gpu.reg_write(at(sdma::SDMA_GFX_RB_BASE_HI), ((FB + RING) >> 40) as u32);
    gpu.reg_write(at(sdma::SDMA_GFX_RB_RPTR_ADDR_LO), (FB + RPTR) as u32);
    gpu.reg_write(at(sdma::SDMA_GFX_RB_RPTR_ADDR_HI), ((FB + RPTR) >> 32) as u32);
    gpu.reg_write(at(sdma::SDMA_GFX_DOORBELL_OFFSET), DOORBELL << 2);
    gpu.reg_write(at(sdma::SDMA_GFX_DOORBELL), sdma::SDMA_RLC0_DOORBELL__ENABLE.mask);
}

fn enable(gpu: &Gpu, ring: usize, enable: bool) {
    let cntl = sdma::SDMA_GFX_RB_CNTL__RB_SIZE.set(0, 8);
    let cntl = sdma::SDMA_GFX_RB_CNTL__RPTR_WRITEBACK_ENABLE.set(cntl, 1);
    let cntl = sdma::SDMA_GFX_RB_CNTL__RB_ENABLE.set(cntl, u32::from(enable));
    gpu.reg_write(Regs::of(ring).at(sdma::SDMA_GFX_RB_CNTL), cntl);
}

fn put(gpu: &Gpu, dwords: &[u32]) {
    for (n, dword) in (0..).zip(dwords) {
        gpu.vram.store32(RING + 4 * n, *dword).unwrap();
    }
}

/// A fence that writes `value` to `DATA`.
fn fence(value: u32) -> [u32; 4] {
    [5, (FB + DATA) as u32, ((FB + DATA) >> 32) as u32, value]
}

fn wait(gpu: &Gpu, at: u64, value: u32) {
    for _ in 0..2000 {
        if gpu.vram.load32(at) == Ok(value) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{at:#x} is {:?} and not {value:#x}", gpu.vram.load32(at));
}

#[test]
fn a_doorbell_runs_the_kernels_ring() {
    let gpu = gpu();
    set_up(&gpu, 0);
    enable(&gpu, 0, true);
    put(&gpu, &fence(0xdead_beef));
    gpu.doorbell(u64::from(DOORBELL) * 4, 16, 8);
    wait(&gpu, DATA, 0xdead_beef);
    wait(&gpu, RPTR, 16);
    for _ in 0..2000 {
        if gpu.reg_read(sdma::SDMA_GFX_RB_RPTR) == 16 {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(gpu.reg_read(sdma::SDMA_GFX_RB_RPTR), 16);
    assert!(!gpu.report.failed());
}

/// The order in which `kgd_gfx_v9_4_3_hqd_sdma_load()` connects a queue: the user may ring after
/// the driver has read the write pointer and before the ring is enabled.
#[test]
fn a_doorbell_before_the_ring_is_enabled_counts() {
    let gpu = gpu();
    let ring = RLC0 + 3;
    set_up(&gpu, ring);
    put(&gpu, &fence(7));
    gpu.doorbell(u64::from(DOORBELL) * 4, 16, 8);
    gpu.reg_write(Regs::of(ring).at(sdma::SDMA_GFX_RB_WPTR), 0);
    enable(&gpu, ring, true);
    wait(&gpu, DATA, 7);
}

/// ... and a doorbell that is older than the write pointer in memory does not.
#[test]
fn an_old_doorbell_does_not_count() {
    let gpu = gpu();
    let ring = RLC0;
    set_up(&gpu, ring);
    put(&gpu, &[fence(7), fence(8)].concat());
    gpu.doorbell(u64::from(DOORBELL) * 4, 16, 8);
    gpu.reg_write(Regs::of(ring).at(sdma::SDMA_GFX_RB_WPTR), 32);
    enable(&gpu, ring, true);
    wait(&gpu, DATA, 8);
}

/// `kgd_gfx_v9_4_3_hqd_sdma_destroy()` enables the ring again after it took the queue off.
#[test]
fn a_ring_without_a_doorbell_is_nobodys() {
    let gpu = gpu();
    let ring = RLC0 + 1;
    let at = |gfx: u32| Regs::of(ring).at(gfx);
    set_up(&gpu, ring);
    enable(&gpu, ring, true);
    enable(&gpu, ring, false);
    assert_ne!(
        sdma::SDMA_GFX_CONTEXT_STATUS__IDLE.get(gpu.reg_read(at(sdma::SDMA_GFX_CONTEXT_STATUS))),
        0
    );
    gpu.reg_write(at(sdma::SDMA_GFX_DOORBELL), 0);
    put(&gpu, &fence(7));
    gpu.reg_write(at(sdma::SDMA_GFX_RB_WPTR), 16);
    enable(&gpu, ring, true);
    gpu.doorbell(u64::from(DOORBELL) * 4, 16, 8);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(gpu.vram.load32(DATA), Ok(0));
    assert_eq!(gpu.reg_read(at(sdma::SDMA_GFX_RB_RPTR)), 0);
}

/// A write to the hub's registers by a packet, from the engine's thread.
#[test]
fn a_packet_can_invalidate_translations() {
    use amdgpu_regs::mmhub;
    let gpu = gpu();
    set_up(&gpu, 0);
    enable(&gpu, 0, true);
    let req = [14 | 0xf << 28, mmhub::VM_INVALIDATE_ENG0_REQ, 1 << 5];
    let ack = [8 | 3 << 28, mmhub::VM_INVALIDATE_ENG0_ACK << 2, 0, 1 << 5, 1 << 5, 0];
    let packets = [&req[..], &ack[..], &fence(9)[..]].concat();
    put(&gpu, &packets);
    gpu.doorbell(u64::from(DOORBELL) * 4, packets.len() as u64 * 4, 8);
    wait(&gpu, DATA, 9);
    assert_eq!(gpu.counters.invalidations.get(), 1);
}

/// A user's queue waits for a page, and goes on without a doorbell when the page is there.
#[test]
fn a_fault_is_replayed() {
    use amdgpu_regs::{mmhub, pte};
    const TABLE: u64 = 0x8_0000;
    let gpu = gpu();
    let vmid = 9;
    gpu.set_root(Hub::Mm, vmid, TABLE | pte::AMDGPU_PTE_VALID);
    let cntl = mmhub::VM_CONTEXT1_CNTL__ENABLE_CONTEXT.set(0, 1);
    let cntl = mmhub::VM_CONTEXT1_CNTL__RETRY_PERMISSION_OR_INVALID_PAGE_FAULT.set(cntl, 1);
    gpu.reg_write(mmhub::VM_CONTEXT0_CNTL + u32::from(vmid), cntl);
    gpu.reg_write(mmhub::VM_CONTEXT0_PAGE_TABLE_END_ADDR_LO32 + 2 * u32::from(vmid), 0xff);
    let rw = pte::AMDGPU_PTE_VALID | pte::AMDGPU_PTE_READABLE | pte::AMDGPU_PTE_WRITEABLE;
    let map = |page: u64, to: u64| gpu.vram.store64(TABLE + page * 8, to | rw).unwrap();
    map(1, RING);
    map(2, RPTR);
    let queue = Queue {
        rb_cntl: sdma::SDMA_RLC0_RB_CNTL__RB_VMID.set(8 << 1 | 1 << 12, u32::from(vmid)),
        base: 0x1000 >> 8,
        rptr: 0,
        wptr: 16,
        rptr_addr: 0x2000,
        doorbell_offset: DOORBELL << 2,
    };
    put(&gpu, &[5, 0x3000, 0, 5]);
    let (block, mut engine, _) = super::new(Arc::new(Mmu::new()));
    block.connect(&gpu, 2, &queue);
    for _ in 0..3 {
        assert!(matches!(engine.step(&gpu), Step::Busy | Step::Wait(_)));
    }
    assert_eq!(gpu.counters.retry_faults.get(), 1, "one vector until it is acknowledged");
    assert_eq!(block.rptr(&gpu, 2), Some(0));
    map(3, DATA);
    std::thread::sleep(2 * POLL);
    while engine.step(&gpu) != Step::Idle {}
    assert_eq!(gpu.vram.load32(DATA), Ok(5));
    assert_eq!(gpu.vram.load32(RPTR), Ok(16));
    block.disconnect(&gpu, 2);
    assert_eq!(block.rptr(&gpu, 2), Some(16));
}

/// Negative controls of tests that check data.
#[test]
fn sabotage_is_of_users_data_alone() {
    use crate::sabotage::Mode;
    let gpu = gpu();
    set_up(&gpu, 0);
    enable(&gpu, 0, true);
    gpu.sabotage.set(Mode::Drop);
    put(&gpu, &fence(7));
    gpu.doorbell(u64::from(DOORBELL) * 4, 16, 8);
    wait(&gpu, DATA, 7);
    let mmu = Mmu::new();
    let bus = GpuBus { gpu: &gpu, mmu: &mmu };
    let writer = Writer { engine: "test", queue: 0, rptr: 0 };
    let by = |vmid| Requester { hub: Hub::Mm, vmid, no_retry: false, writer };
    bus.store(&by(0), FB + DATA, &[9, 0, 0, 0]).unwrap();
    assert_eq!(gpu.vram.load32(DATA), Ok(9));
    let page = |n: u64, to: u64| gpu.vram.store64(0x8_0000 + n * 8, to | 0x61).unwrap();
    page(1, DATA);
    gpu.set_root(Hub::Mm, 9, 0x8_0001);
    gpu.reg_write(amdgpu_regs::mmhub::VM_CONTEXT0_CNTL + 9, 1);
    gpu.reg_write(amdgpu_regs::mmhub::VM_CONTEXT0_PAGE_TABLE_END_ADDR_LO32 + 18, 0xff);
    bus.store(&by(9), 0x1000, &[5, 0, 0, 0]).unwrap();
    assert_eq!(gpu.vram.load32(DATA), Ok(9), "dropped");
    assert!(bus.store(&by(9), 0x2000, &[5, 0, 0, 0]).is_err(), "faults as ever");
    gpu.sabotage.set(Mode::Corrupt);
    bus.store(&by(9), 0x1000, &[5, 0, 0, 0]).unwrap();
    assert_eq!(gpu.vram.load32(DATA), Ok(0x0101_0106));
    bus.write(&by(9), 0x1000, &[5, 0, 0, 0]).unwrap();
    assert_eq!(gpu.vram.load32(DATA), Ok(5), "fences are right");
}
