// SPDX-License-Identifier: GPL-2.0

//! A fuzz test: registers, doorbells, page tables, descriptors and packets as no driver writes
//! them. Nothing of it may make the emulator panic or hang.
//!
//! `AMDGPU_EMU_FUZZ_ROUNDS` says how many rounds are made, `AMDGPU_EMU_FUZZ_SEED` with which
//! numbers the first one begins; a failure names its seed.

use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use amdgpu_emu::gpu::Gpu;
use amdgpu_emu::machine::Machine;
use amdgpu_emu::mem::{TestMemory, Vram};
use amdgpu_regs::{gc, mmhub, osssys, pm4, pte, sdma, sdma_pkt};

const ROUNDS: u64 = 60;
const STEPS: u32 = 400;
/// The aperture has a granularity of 16 MiB.
const VRAM_SIZE: u64 = 32 << 20;
const RAM: u64 = 1 << 20;
const RAM_SIZE: usize = 1 << 20;
/// VRAM as VMID 0 sees it.
const FB: u64 = 0x80_0000_0000;
/// From the registers of an SDMA ring to those of the next.
const RING_STRIDE: u32 = sdma::SDMA_PAGE_RB_CNTL - sdma::SDMA_GFX_RB_CNTL;
/// A round takes some milliseconds; more than this is a hang.
const PATIENCE: Duration = Duration::from_secs(10);

/// Any numbers with a long period (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// A number of some size, often one that is special.
    fn value(&mut self) -> u32 {
        let random = self.next() as u32;
        match self.below(8) {
            0 => 0,
            1 => u32::MAX,
            2 => 1 << (random & 31),
            3 => random & 0xf,
            4 => random & 0xfff,
            _ => random,
        }
    }

    /// An address that means something to VMID 0, or to nobody.
    fn address(&mut self) -> u64 {
        let random = self.next();
        match self.below(6) {
            0 => random,
            1 => FB + VRAM_SIZE - random % 64,
            2 => random % (16 << 12),
            _ => FB + ((random % VRAM_SIZE) & !3),
        }
    }
}

/// Registers from and to which something is written.
const RANGES: &[(u32, u32)] = &[
    (sdma::SDMA_GFX_RB_CNTL, sdma::SDMA_RLC7_RB_CNTL + RING_STRIDE),
    (gc::CP_MQD_BASE_ADDR, gc::CP_HQD_AQL_DISPATCH_ID_HI),
    (gc::VM_CONTEXT0_CNTL, gc::VM_CONTEXT0_CNTL + 15),
    (mmhub::VM_CONTEXT0_CNTL, mmhub::VM_CONTEXT0_CNTL + 15),
    (
        mmhub::VM_CONTEXT0_PAGE_TABLE_BASE_ADDR_LO32,
        mmhub::VM_CONTEXT0_PAGE_TABLE_BASE_ADDR_LO32 + 31,
    ),
    (gc::VM_CONTEXT0_PAGE_TABLE_BASE_ADDR_LO32, gc::VM_CONTEXT0_PAGE_TABLE_BASE_ADDR_LO32 + 31),
    (mmhub::VM_INVALIDATE_ENG0_SEM, mmhub::VM_INVALIDATE_ENG0_SEM + 60),
    (osssys::IH_RB_CNTL, osssys::IH_RB_CNTL + 16),
    (gc::GRBM_GFX_CNTL, gc::GRBM_GFX_CNTL),
    (gc::SH_MEM_BASES, gc::SH_MEM_CONFIG),
    (0, 0x20),
];
/// Packets that the engines know.
const SDMA_PACKETS: &[u32] = &[
    sdma_pkt::SDMA_OP_NOP,
    sdma_pkt::SDMA_OP_COPY,
    sdma_pkt::SDMA_OP_WRITE,
    sdma_pkt::SDMA_OP_INDIRECT,
    sdma_pkt::SDMA_OP_FENCE,
    sdma_pkt::SDMA_OP_TRAP,
    sdma_pkt::SDMA_OP_POLL_REGMEM,
    sdma_pkt::SDMA_OP_COND_EXE,
    sdma_pkt::SDMA_OP_CONST_FILL,
    sdma_pkt::SDMA_OP_PTEPDE,
    sdma_pkt::SDMA_OP_SRBM_WRITE,
];
const PM4_PACKETS: &[u32] = &[
    pm4::PACKET3_NOP,
    pm4::PACKET3_SET_UCONFIG_REG,
    pm4::PACKET3_SET_SH_REG,
    pm4::PACKET3_WRITE_DATA,
    pm4::PACKET3_WAIT_REG_MEM,
    pm4::PACKET3_INDIRECT_BUFFER,
    pm4::PACKET3_COPY_DATA,
    pm4::PACKET3_RELEASE_MEM,
    pm4::PACKET3_DISPATCH_DIRECT,
    pm4::PACKET3_PRED_EXEC,
    pm4::PACKET3_SET_RESOURCES,
    pm4::IT_MAP_PROCESS,
    pm4::PACKET3_MAP_QUEUES,
    pm4::PACKET3_UNMAP_QUEUES,
    pm4::PACKET3_QUERY_STATUS,
    pm4::IT_RUN_LIST,
    pm4::PACKET3_INVALIDATE_TLBS,
];

/// Packets with any contents.
fn packets(random: &mut Random) -> Vec<u32> {
    let of_sdma = random.below(2) == 0;
    let mut packets = Vec::new();
    while packets.len() < 200 {
        let body = 1 + random.below(if of_sdma { 9 } else { 20 });
        let mut header = if of_sdma {
            random.pick(SDMA_PACKETS)
        } else {
            3 << 30 | random.pick(PM4_PACKETS) << 8 | (body as u32 - 1) << 16
        };
        if random.below(16) == 0 {
            header ^= 1 << random.below(32);
        }
        packets.push(header);
        let mut left = body;
        while left > 0 {
            if left > 1 && random.below(3) == 0 {
                let address = random.address();
                packets.extend([address as u32, (address >> 32) as u32]);
                left -= 2;
            } else {
                packets.push(random.value());
                left -= 1;
            }
        }
    }
    packets
}

fn step(gpu: &Gpu, random: &mut Random, active: u32) {
    let ring = random.below(4) * 0x1000;
    let base = FB + ring;
    match random.below(8) {
        0 => {
            for (n, dword) in (0..).zip(packets(random)) {
                gpu.vram.store32(ring + 4 * n, dword).unwrap();
            }
        }
        // A ring or a queue that begins where packets are.
        1 => {
            let offset = RING_STRIDE * random.below(10) as u32;
            gpu.reg_write(offset + sdma::SDMA_GFX_RB_BASE, (base >> 8) as u32);
            gpu.reg_write(offset + sdma::SDMA_GFX_RB_BASE_HI, (base >> 40) as u32);
            gpu.reg_write(offset + sdma::SDMA_GFX_DOORBELL_OFFSET, 4 << 2);
            gpu.reg_write(offset + sdma::SDMA_GFX_DOORBELL, 1 << 28);
            gpu.reg_write(offset + sdma::SDMA_GFX_RB_RPTR, 0);
            gpu.reg_write(offset + sdma::SDMA_GFX_RB_WPTR, 0x300);
            let cntl = random.value() & 0xf000_1000 | 10 << 1 | active;
            gpu.reg_write(offset + sdma::SDMA_GFX_RB_CNTL, cntl);
        }
        2 => {
            gpu.reg_write(gc::GRBM_GFX_CNTL, random.value() & 0x7ff);
            gpu.reg_write(gc::CP_HQD_PQ_BASE, (base >> 8) as u32);
            gpu.reg_write(gc::CP_HQD_PQ_BASE_HI, (base >> 40) as u32);
            gpu.reg_write(gc::CP_HQD_PQ_CONTROL, 9);
            gpu.reg_write(gc::CP_HQD_PQ_DOORBELL_CONTROL, 6 << 2);
            gpu.reg_write(gc::CP_HQD_ACTIVE, active);
        }
        3 => {
            let at = random.below(VRAM_SIZE) & !7;
            let flags = random.next() & 0xff00_0000_0000_0fff | pte::AMDGPU_PTE_VALID;
            let to = (random.address() % VRAM_SIZE) & !0xfff;
            gpu.vram.store64(at, to | flags).unwrap();
        }
        4 => {
            let anywhere = random.below(1 << 21) & !3;
            let byte = random.pick(&[16, 24, 0x780, anywhere]);
            let (value, size) = (random.value(), random.pick(&[4, 8]));
            gpu.doorbell(byte, u64::from(value), size);
        }
        _ => {
            let (first, last) = random.pick(RANGES);
            let reg = first + random.below(u64::from(last - first) + 1) as u32;
            if random.below(4) == 0 {
                gpu.reg_read(reg);
            } else {
                gpu.reg_write(reg, random.value());
            }
        }
    }
}

fn round(seed: u64) {
    let mut random = Random(seed | 1);
    let mut machine = Machine::new();
    let mut blocks = amdgpu_emu::blocks();
    blocks.extend(machine.take_blocks());
    let vram = Arc::new(Vram::new(VRAM_SIZE).unwrap());
    let system = Arc::new(TestMemory::new(RAM, RAM_SIZE));
    let gpu = Arc::new(Gpu::new(system, vram, VRAM_SIZE, blocks));
    machine.start(&gpu).unwrap();
    for n in 0..STEPS {
        step(&gpu, &mut random, n & 1);
    }
    thread::sleep(Duration::from_millis(5));
    gpu.stop();
}

#[test]
fn nothing_makes_it_panic() {
    static PANICKED: AtomicBool = AtomicBool::new(false);
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let rounds = variable("AMDGPU_EMU_FUZZ_ROUNDS").unwrap_or(ROUNDS);
    let first = variable("AMDGPU_EMU_FUZZ_SEED").unwrap_or(1);
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        PANICKED.store(true, Ordering::SeqCst);
        before(info);
    }));
    for seed in first..first + rounds {
        let begun = Instant::now();
        round(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let took = begun.elapsed();
        assert!(!PANICKED.load(Ordering::SeqCst), "AMDGPU_EMU_FUZZ_SEED={seed}");
        assert!(took < PATIENCE, "AMDGPU_EMU_FUZZ_SEED={seed} took {took:?}");
    }
}
