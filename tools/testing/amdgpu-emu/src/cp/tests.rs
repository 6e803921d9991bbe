// SPDX-License-Identifier: GPL-2.0

use std::time::{Duration, Instant};

use amdgpu_regs::{mqd, pm4 as op, pte, sdma};

use super::*;
use crate::hub::Hub;
use crate::machine::Machine;
use crate::mem::{TestMemory, Vram};

/// VRAM as VMID 0 sees it.
const FB: u64 = 0x80_0000_0000;
/// Offsets in VRAM.
const KIQ_RING: u64 = 0x1_0000;
const HIQ_RING: u64 = 0x1_1000;
const HIQ_MQD: u64 = 0x1_2000;
const HIQ_WPTR: u64 = 0x1_3000;
const RUN_LIST: u64 = 0x1_4000;
const FENCE: u64 = 0x1_5000;
/// A process' memory: its pages 1, 2, ... are those of VRAM from here on.
const USER: u64 = 0x10_0000;
const TABLE: u64 = 0x8_0000;
const MQD: u64 = 0x2_0000;
const SDMA_MQD: u64 = 0x2_1000;
/// Doorbells, by dword.
const KIQ: u32 = 0x10;
const HIQ: u32 = 0x12;
const COMPUTE: u32 = 0x800;
const SDMA: u32 = 0x802;
const PASID: u16 = 0x8001;
const ROOT: u64 = TABLE | pte::AMDGPU_PTE_VALID;

struct Test {
    gpu: Arc<Gpu>,
    kiq: u64,
    hiq: u64,
}

fn packet3(opcode: u32, body: &[u32]) -> Vec<u32> {
    let mut packet = vec![3 << 30 | opcode << 8 | (body.len() as u32 - 1) << 16];
    packet.extend(body);
    packet
}

fn low(value: u64) -> u32 {
    value as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

impl Test {
    /// A GPU whose KIQ is set up as `gfx_v9_4_3_xcc_kiq_init_register()` does it.
    fn new() -> Self {
        let mut machine = Machine::new();
        let mut blocks = crate::blocks();
        blocks.extend(machine.take_blocks());
        let vram = Arc::new(Vram::new(32 << 20).unwrap());
        let system = Arc::new(TestMemory::new(1 << 20, 1 << 20));
        let gpu = Arc::new(Gpu::new(system, vram, 32 << 20, blocks));
        machine.start(&gpu).unwrap();
        gpu.reg_write(gc::GRBM_GFX_CNTL, 2 << 2);
        gpu.reg_write(gc::CP_HQD_PQ_BASE, low((FB + KIQ_RING) >> 8));
        gpu.reg_write(gc::CP_HQD_PQ_BASE_HI, high((FB + KIQ_RING) >> 8));
        gpu.reg_write(gc::CP_HQD_PQ_CONTROL, 9);
        gpu.reg_write(gc::CP_HQD_PQ_DOORBELL_CONTROL, KIQ << 2 | 1 << 30);
        gpu.reg_write(gc::CP_HQD_ACTIVE, 1);
        gpu.reg_write(gc::GRBM_GFX_CNTL, 0);
        Self { gpu, kiq: 0, hiq: 0 }
    }

    fn put(&self, at: u64, dwords: &[u32]) {
        for (n, dword) in (0..).zip(dwords) {
            self.gpu.vram.store32(at + 4 * n, *dword).unwrap();
        }
    }

    fn kiq(&mut self, packet: &[u32]) {
        self.put(KIQ_RING + self.kiq * 4, packet);
        self.kiq += packet.len() as u64;
        self.gpu.doorbell(u64::from(KIQ) * 4, self.kiq, 8);
    }

    fn hiq(&mut self, packet: &[u32]) {
        self.put(HIQ_RING + self.hiq * 4, packet);
        self.hiq += packet.len() as u64;
        self.gpu.doorbell(u64::from(HIQ) * 4, self.hiq, 8);
    }

    fn wait(&self, at: u64, value: u32) {
        self.until(&format!("{value:#x} at {at:#x}"), || self.gpu.vram.load32(at) == Ok(value));
    }

    fn until(&self, what: &str, there: impl Fn() -> bool) {
        let begun = Instant::now();
        while !there() {
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "{what}; {:?}",
                self.gpu.report.list()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A queue's MQD as the driver makes it.
    fn mqd(&self, at: u64, base: u64, doorbell: u32) {
        let mut mqd = vec![0; 256];
        mqd[mqd::compute::CP_HQD_PQ_BASE_LO] = low(base >> 8);
        mqd[mqd::compute::CP_HQD_PQ_BASE_HI] = high(base >> 8);
        mqd[mqd::compute::CP_HQD_PQ_CONTROL] = 9;
        mqd[mqd::compute::CP_HQD_PQ_DOORBELL_CONTROL] = doorbell << 2;
        self.put(at, &mqd);
    }

    /// Maps the HIQ as `kgd_gfx_v9_hiq_mqd_load()` does it, and gives it VMIDs 8 to 15.
    fn with_hiq() -> Self {
        let mut test = Self::new();
        test.mqd(HIQ_MQD, FB + HIQ_RING, HIQ);
        let (mqd, wptr) = (FB + HIQ_MQD, FB + HIQ_WPTR);
        test.kiq(&packet3(
            op::PACKET3_MAP_QUEUES,
            &[
                1 << 13 | 1 << 18 | 1 << 26 | 1 << 29,
                HIQ << 2,
                low(mqd),
                high(mqd),
                low(wptr),
                high(wptr),
            ],
        ));
        // The doorbell of a queue that is not mapped yet would be lost.
        let active = |test: &Self| {
            test.gpu.reg_write(gc::GRBM_GFX_CNTL, 2 << 2 | 1 << 8);
            let active = test.gpu.reg_read(gc::CP_HQD_ACTIVE);
            test.gpu.reg_write(gc::GRBM_GFX_CNTL, 0);
            active == 1
        };
        test.until("the HIQ", || active(&test));
        test.hiq(&packet3(op::PACKET3_SET_RESOURCES, &[0xff00 | 1 << 29, 0, 0, 0, 0, 0, 0]));
        // All VMIDs have the tables' range, and retry.
        for block in [gc::VM_CONTEXT0_CNTL, amdgpu_regs::mmhub::VM_CONTEXT0_CNTL] {
            for vmid in 8..16 {
                let cntl = gc::VM_CONTEXT1_CNTL__ENABLE_CONTEXT.set(0, 1);
                let retry = gc::VM_CONTEXT1_CNTL__RETRY_PERMISSION_OR_INVALID_PAGE_FAULT;
                test.gpu.reg_write(block + vmid, retry.set(cntl, 1));
            }
        }
        for first in [
            gc::VM_CONTEXT0_PAGE_TABLE_END_ADDR_LO32,
            amdgpu_regs::mmhub::VM_CONTEXT0_PAGE_TABLE_END_ADDR_LO32,
        ] {
            for vmid in 8..16 {
                test.gpu.reg_write(first + 2 * vmid, 0xff);
            }
        }
        test
    }

    fn map_page(&self, page: u64) {
        let flags = pte::AMDGPU_PTE_VALID
            | pte::AMDGPU_PTE_READABLE
            | pte::AMDGPU_PTE_WRITEABLE
            | pte::AMDGPU_PTE_EXECUTABLE;
        self.gpu.vram.store64(TABLE + page * 8, (USER + page * 0x1000) | flags).unwrap();
    }

    /// Runs a list of one process with a compute queue (ring on page 1, write pointer on page 2)
    /// and perhaps an SDMA queue (ring on page 5).
    fn run(&mut self, with_sdma: bool) {
        let mut process = [0; 20];
        process[..5].copy_from_slice(&[u32::from(PASID), low(ROOT), high(ROOT), 0, 0]);
        let mut list = packet3(op::IT_MAP_PROCESS, &process);
        let queue = |engine: u32, doorbell: u32, mqd: u64, wptr: u32| {
            packet3(
                op::IT_MAP_QUEUES,
                &[
                    1 << 4 | engine << 26 | 1 << 29,
                    doorbell << 2,
                    low(FB + mqd),
                    high(FB + mqd),
                    wptr,
                    0,
                ],
            )
        };
        list.extend(queue(0, COMPUTE, MQD, 0x2000));
        if with_sdma {
            list.extend(queue(2, SDMA, SDMA_MQD, 0x2008));
        }
        self.put(RUN_LIST, &list);
        self.hiq(&packet3(
            op::IT_RUN_LIST,
            &[low(FB + RUN_LIST), high(FB + RUN_LIST), list.len() as u32 | 1 << 23],
        ));
    }

    /// Unmaps all and waits for the fence, as `unmap_queues_cpsch()` does.
    fn unmap(&mut self, action: u32, fence: u32) {
        self.hiq(&packet3(op::PACKET3_UNMAP_QUEUES, &[action | 2 << 4, 0, 0, 0, 0]));
        let to = FB + FENCE;
        self.hiq(&packet3(op::PACKET3_QUERY_STATUS, &[2 << 30, 0, low(to), high(to), fence, 0]));
        self.wait(FENCE, fence);
    }

    /// Puts packets at the begin of the user's ring and its write pointer in memory.
    fn user(&self, packets: &[u32]) {
        self.put(USER + 0x1000, packets);
        self.put(USER + 0x2000, &[packets.len() as u32, 0]);
    }
}

#[test]
fn the_kiq_writes_registers_and_fences() {
    let mut test = Test::new();
    test.kiq(&packet3(
        op::PACKET3_SET_UCONFIG_REG,
        &[gc::SCRATCH_REG0 - op::PACKET3_SET_UCONFIG_REG_START, 0xdead_beef],
    ));
    let to = FB + FENCE;
    test.kiq(&packet3(op::PACKET3_WRITE_DATA, &[5 << 8 | 1 << 20, low(to), high(to), 5]));
    test.wait(FENCE, 5);
    assert_eq!(test.gpu.reg_read(gc::SCRATCH_REG0), 0xdead_beef);
    // A register is written, and another one waited for.
    test.gpu.reg_write(gc::SCRATCH_REG0 + 1, 0x30);
    test.kiq(&packet3(
        op::PACKET3_WAIT_REG_MEM,
        &[3 | 1 << 6, gc::SCRATCH_REG0, gc::SCRATCH_REG0 + 1, 0x30, 0x30, 0],
    ));
    test.kiq(&packet3(op::PACKET3_COPY_DATA, &[5 << 8, gc::SCRATCH_REG0, 0, low(to), high(to)]));
    test.wait(FENCE, 0x30);
    assert!(!test.gpu.report.failed());
}

#[test]
fn the_driver_maps_and_unmaps_a_kernel_queue() {
    let mut test = Test::new();
    test.mqd(MQD, FB + USER, COMPUTE);
    let (mqd, wptr) = (FB + MQD, FB + USER + 0x1000);
    let to = FB + FENCE;
    let packet = packet3(op::PACKET3_RELEASE_MEM, &[5 << 8, 1 << 29, low(to), high(to), 9, 0, 0]);
    test.put(USER, &packet);
    test.put(USER + 0x1000, &[packet.len() as u32, 0]);
    test.kiq(&packet3(
        op::PACKET3_MAP_QUEUES,
        &[3 << 16 | 1 << 29, COMPUTE << 2, low(mqd), high(mqd), low(wptr), high(wptr)],
    ));
    // Its write pointer is read without a doorbell.
    test.wait(FENCE, 9);
    test.kiq(&packet3(op::PACKET3_UNMAP_QUEUES, &[1 << 29, COMPUTE << 2, 0, 0, 0]));
    test.gpu.reg_write(gc::GRBM_GFX_CNTL, 1 << 2 | 3);
    test.until("the end of the queue", || test.gpu.reg_read(gc::CP_HQD_ACTIVE) == 0);
    let rptr = test.gpu.vram.load32(MQD + mqd::compute::CP_HQD_PQ_RPTR as u64 * 4);
    assert_eq!(rptr, Ok(packet.len() as u32));
}

/// The code of a shader that adds 1 to a dword at `s[0:1]` until the dword at `s[2:3]` is 1.
const COUNT: [u32; 18] = [
    0x7e00_0200, // v_mov_b32 v0, s0
    0x7e02_0201, // v_mov_b32 v1, s1
    0xc002_0101,
    0, // repeat: s_load_dword s4, s[2:3], 0
    0xdc50_0000,
    0x0400_0000, // flat_load_dword v4, v[0:1]
    0x6808_0881, // v_add_u32 v4, 1, v4
    0xdc70_0000,
    0x0000_0400, // flat_store_dword v[0:1], v4
    0xb005_0001, // s_movk_i32 s5, 1
    0xbf00_0504, // s_cmp_eq_i32 s4, s5
    0xbf85_0001, // s_cbranch_scc1 quit
    0xbf82_fff5, // s_branch repeat
    0x7e08_02ff,
    0x1234_5678, // quit: v_mov_b32 v4, 0x12345678
    0xdc70_0000,
    0x0000_0400, // flat_store_dword v[0:1], v4
    0xbf81_0000, // s_endpgm
];

/// Packets that dispatch the shader on page 3 with its data on page 4, and then write a fence
/// behind it.
fn dispatch() -> Vec<u32> {
    let set = |reg: u32, values: &[u32]| {
        let mut body = vec![reg - op::PACKET3_SET_SH_REG_START];
        body.extend(values);
        packet3(op::PACKET3_SET_SH_REG, &body)
    };
    let rsrc2 = gc::COMPUTE_PGM_RSRC2__USER_SGPR.set(0, 4);
    [
        set(gc::COMPUTE_NUM_THREAD_X, &[1, 1, 1]),
        set(gc::COMPUTE_PGM_LO, &[0x3000 >> 8, 0]),
        set(gc::COMPUTE_PGM_RSRC1, &[3, rsrc2]),
        set(gc::COMPUTE_USER_DATA_0, &[0x4000, 0, 0x4004, 0]),
        packet3(op::PACKET3_DISPATCH_DIRECT, &[1, 1, 1, 1]),
        packet3(op::PACKET3_RELEASE_MEM, &[5 << 8, 1 << 29, 0x4010, 0, 77, 0, 0]),
    ]
    .concat()
}

#[test]
fn a_wave_survives_its_queue_being_taken_off() {
    let mut test = Test::with_hiq();
    test.mqd(MQD, 0x1000, COMPUTE);
    (1..=4).for_each(|page| test.map_page(page));
    test.put(USER + 0x3000, &COUNT);
    test.user(&dispatch());
    let counter = USER + 0x4000;
    let count = |test: &Test| test.gpu.vram.load32(counter).unwrap();
    for round in 1..4 {
        let before = count(&test);
        test.run(false);
        test.until("the shader", || count(&test) > before);
        test.unmap(0, round);
        let after = count(&test);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(count(&test), after, "the shader runs without its queue");
        assert_eq!(test.gpu.pasid(Hub::Gfx, 8), 0);
    }
    // It goes on where it was, and does not begin again: the fence behind it comes once.
    test.run(false);
    test.gpu.vram.store32(counter + 4, 1).unwrap();
    test.wait(counter, 0x1234_5678);
    test.wait(counter + 0x10, 77);
    test.unmap(0, 9);
    assert!(!test.gpu.report.failed(), "{:?}", test.gpu.report.list());
}

#[test]
fn a_reset_kills_waves() {
    let mut test = Test::with_hiq();
    test.mqd(MQD, 0x1000, COMPUTE);
    (1..=4).for_each(|page| test.map_page(page));
    test.put(USER + 0x3000, &COUNT);
    test.user(&dispatch());
    test.run(false);
    test.until("the shader", || test.gpu.vram.load32(USER + 0x4000) != Ok(0));
    test.unmap(1, 1);
    test.run(false);
    // Without the wave the queue goes on behind its dispatch.
    test.wait(USER + 0x4010, 77);
}

#[test]
fn a_page_that_is_not_there_is_waited_for() {
    let mut test = Test::with_hiq();
    test.mqd(MQD, 0x1000, COMPUTE);
    (1..=3).for_each(|page| test.map_page(page));
    test.put(USER + 0x3000, &COUNT);
    test.user(&dispatch());
    test.gpu.vram.store32(USER + 0x4004, 1).unwrap();
    test.run(false);
    test.until("a fault", || test.gpu.counters.retry_faults.get() == 1);
    test.unmap(0, 1);
    test.run(false);
    test.map_page(4);
    test.wait(USER + 0x4000, 0x1234_5678);
    test.wait(USER + 0x4010, 77);
}

#[test]
fn sdma_queues_of_a_run_list() {
    let mut test = Test::with_hiq();
    test.mqd(MQD, 0x1000, COMPUTE);
    [1, 2, 4, 5].iter().for_each(|page| test.map_page(*page));
    test.put(USER + 0x2000, &[0, 0, 16, 0]);
    let mut mqd = vec![0; 128];
    mqd[mqd::sdma::SDMAX_RLCX_RB_CNTL] =
        8 << 1 | sdma::SDMA_RLC0_RB_CNTL__RPTR_WRITEBACK_ENABLE.mask;
    mqd[mqd::sdma::SDMAX_RLCX_RB_BASE] = 0x5000 >> 8;
    mqd[mqd::sdma::SDMAX_RLCX_RB_RPTR_ADDR_LO] = 0x2010;
    mqd[mqd::sdma::SDMAX_RLCX_DOORBELL_OFFSET] = SDMA << 2;
    test.put(SDMA_MQD, &mqd);
    let fence = |value| [op_fence(), 0x4000, 0, value];
    test.put(USER + 0x5000, &[fence(5), fence(6)].concat());
    test.run(true);
    test.wait(USER + 0x4000, 5);
    test.wait(USER + 0x2010, 16);
    test.unmap(0, 1);
    let rptr = SDMA_MQD + mqd::sdma::SDMAX_RLCX_RB_RPTR as u64 * 4;
    assert_eq!(test.gpu.vram.load32(rptr), Ok(16));
    // Off the hardware a doorbell does nothing; the write pointer in memory counts later.
    test.put(USER + 0x2008, &[32, 0]);
    test.gpu.doorbell(u64::from(SDMA) * 4, 32, 8);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(test.gpu.vram.load32(USER + 0x4000), Ok(5));
    test.run(true);
    test.wait(USER + 0x4000, 6);
    test.gpu.doorbell(u64::from(SDMA) * 4, 32, 8);
    test.unmap(0, 2);
    assert!(!test.gpu.report.failed(), "{:?}", test.gpu.report.list());
}

fn op_fence() -> u32 {
    amdgpu_regs::sdma_pkt::SDMA_OP_FENCE
}

#[test]
fn flushes_are_by_address_space() {
    let mut test = Test::with_hiq();
    test.mqd(MQD, 0x1000, COMPUTE);
    [1, 2].iter().for_each(|page| test.map_page(*page));
    test.run(false);
    test.until("the process", || test.gpu.pasid(Hub::Gfx, 8) == PASID);
    let before = test.gpu.counters.invalidations.get();
    test.kiq(&packet3(op::PACKET3_INVALIDATE_TLBS, &[1 | 1 << 4 | u32::from(PASID) << 5]));
    test.until("both hubs", || test.gpu.counters.invalidations.get() == before + 2);
}

#[test]
fn users_do_not_reach_registers_or_the_scheduler() {
    for packet in [
        packet3(op::PACKET3_WRITE_DATA, &[0, gc::SCRATCH_REG0, 0, 1]),
        packet3(op::PACKET3_SET_UCONFIG_REG, &[0x40, 1]),
        packet3(op::PACKET3_UNMAP_QUEUES, &[2 << 4, 0, 0, 0, 0]),
        packet3(op::PACKET3_COPY_DATA, &[5 << 8, gc::SCRATCH_REG0, 0, 0x4000, 0]),
        vec![0x1234],
        packet3(0xfe, &[0]),
    ] {
        let mut test = Test::with_hiq();
        test.mqd(MQD, 0x1000, COMPUTE);
        [1, 2, 4].iter().for_each(|page| test.map_page(*page));
        test.user(&packet);
        test.run(false);
        test.until("a report", || test.gpu.report.failed());
        assert_eq!(test.gpu.reg_read(gc::SCRATCH_REG0), 0);
        // The others go on.
        test.unmap(0, 1);
    }
}

#[test]
fn more_processes_than_vmids_take_turns() {
    let mut test = Test::with_hiq();
    test.hiq(&packet3(op::PACKET3_SET_RESOURCES, &[1 << 8 | 1 << 29, 0, 0, 0, 0, 0, 0]));
    (1..=4).for_each(|page| test.map_page(page));
    test.put(USER + 0x3000, &COUNT);
    let mut list = Vec::new();
    for n in 0..3u32 {
        // All have the same memory, but a ring and a counter of their own.
        let ring = 0x1000 + n * 0x400;
        let mqd = MQD + u64::from(n) * 0x1000;
        test.mqd(mqd, u64::from(ring), COMPUTE + 2 * n);
        test.gpu.vram.store32(mqd + mqd::compute::CP_HQD_PQ_CONTROL as u64 * 4, 7).unwrap();
        let mut packets = dispatch();
        let user = packets.iter().position(|dword| *dword == 0x4000).unwrap();
        packets[user] = 0x4000 + 0x20 * n;
        test.put(USER + u64::from(ring), &packets);
        test.put(USER + 0x2000 + 8 * u64::from(n), &[packets.len() as u32, 0]);
        let mut process = [0; 20];
        process[..3].copy_from_slice(&[u32::from(PASID) + n, low(ROOT), high(ROOT)]);
        list.extend(packet3(op::IT_MAP_PROCESS, &process));
        list.extend(packet3(
            op::IT_MAP_QUEUES,
            &[
                1 << 4 | 1 << 29,
                (COMPUTE + 2 * n) << 2,
                low(FB + mqd),
                high(FB + mqd),
                0x2000 + 8 * n,
                0,
            ],
        ));
    }
    test.put(RUN_LIST, &list);
    test.hiq(&packet3(
        op::IT_RUN_LIST,
        &[low(FB + RUN_LIST), high(FB + RUN_LIST), list.len() as u32 | 1 << 23],
    ));
    let counter = |n: u64| test.gpu.vram.load32(USER + 0x4000 + 0x20 * n).unwrap();
    test.until("all three", || (0..3).all(|n| counter(n) > 0));
    let before = [0, 1, 2].map(counter);
    test.until("all three again", || (0..3).all(|n| counter(n) > before[n as usize]));
    test.unmap(0, 1);
    assert!(!test.gpu.report.failed(), "{:?}", test.gpu.report.list());
}

/// Without the hardware scheduler: `kgd_gfx_v9_4_3_hqd_load()` and `kgd_gfx_v9_hqd_destroy()`.
#[test]
fn the_driver_loads_and_destroys_a_users_queue() {
    const SLOT: u32 = 1 << 2 | 2 | 3 << 8;
    let test = Test::with_hiq();
    (1..=4).for_each(|page| test.map_page(page));
    for hub in [Hub::Gfx, Hub::Mm] {
        test.gpu.set_root(hub, 8, ROOT);
    }
    test.mqd(MQD, 0x1000, COMPUTE);
    let mqd = |index: usize| MQD + index as u64 * 4;
    test.put(mqd(mqd::compute::CP_MQD_BASE_ADDR_LO), &[low(FB + MQD), high(FB + MQD)]);
    test.put(mqd(mqd::compute::CP_HQD_VMID), &[8]);
    test.put(USER + 0x3000, &COUNT);
    let packets = dispatch();
    test.user(&packets);
    let load = || {
        let gpu = &test.gpu;
        gpu.reg_write(gc::GRBM_GFX_CNTL, SLOT);
        for n in 0..HQD_REGS as u32 {
            let value = gpu.vram.load32(mqd(mqd::compute::CP_MQD_BASE_ADDR_LO + n as usize));
            gpu.reg_write(gc::CP_MQD_BASE_ADDR + n, value.unwrap());
        }
        gpu.reg_write(gc::CP_HQD_PQ_DOORBELL_CONTROL, COMPUTE << 2 | 1 << 30);
        gpu.reg_write(gc::CP_HQD_PQ_WPTR_POLL_ADDR, 0x2000);
        gpu.reg_write(gc::CP_PQ_WPTR_POLL_CNTL1, 1 << 3);
        gpu.reg_write(gc::CP_HQD_ACTIVE, 1);
        gpu.reg_write(gc::GRBM_GFX_CNTL, 0);
    };
    let destroy = |how: u32| {
        test.gpu.reg_write(gc::GRBM_GFX_CNTL, SLOT);
        test.gpu.reg_write(gc::CP_HQD_DEQUEUE_REQUEST, how);
        test.until("the queue's end", || test.gpu.reg_read(gc::CP_HQD_ACTIVE) & 1 == 0);
        test.gpu.reg_write(gc::GRBM_GFX_CNTL, 0);
    };
    let counter = USER + 0x4000;
    let count = || test.gpu.vram.load32(counter).unwrap();
    const SAVE_WAVES: u32 = 3;
    for _ in 0..2 {
        let before = count();
        load();
        test.until("the shader", || count() > before);
        destroy(SAVE_WAVES);
        let after = count();
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!(count(), after);
    }
    load();
    test.gpu.vram.store32(counter + 4, 1).unwrap();
    test.wait(counter + 0x10, 77);
    // A drain lets the waves end first; there are none.
    destroy(1);
    let rptr = test.gpu.vram.load32(mqd(mqd::compute::CP_HQD_PQ_RPTR));
    assert_eq!(rptr, Ok(packets.len() as u32));
    assert!(!test.gpu.report.failed(), "{:?}", test.gpu.report.list());
}
