// SPDX-License-Identifier: GPL-2.0

use super::*;
use crate::bus::fake::FakeBus;
use crate::gpuvm::{Hub, Writer};

const CODE: u64 = 0x7000_0000;
const VMID: u8 = 8;

fn by() -> Requester {
    let writer = Writer { engine: "cp", queue: 0, rptr: 0 };
    Requester { hub: Hub::Gfx, vmid: VMID, no_retry: false, writer }
}

fn wave(sgprs: &[u32], lanes: usize) -> Wave {
    Wave::new(&Start {
        pc: CODE,
        sgprs: sgprs.to_vec(),
        lanes: (0..lanes as u32).map(|x| [x, 0, 0]).collect(),
        dimensions: 1,
        vgprs: 24,
    })
}

fn run(wave: &mut Wave, bus: &FakeBus) -> Run {
    wave.run(bus, &by(), &mut 100_000)
}

/// Copies a dword: `s[0:1]` to `s[2:3]`, by flat memory instructions.
const COPY: [u32; 10] = [
    0x7e00_0200, // v_mov_b32 v0, s0
    0x7e02_0201, // v_mov_b32 v1, s1
    0x7e04_0202, // v_mov_b32 v2, s2
    0x7e06_0203, // v_mov_b32 v3, s3
    0xdc50_0000,
    0x0400_0000, // flat_load_dword v4, v[0:1]
    0xbf8c_0070, // s_waitcnt vmcnt(0) lgkmcnt(0)
    0xdc70_0000,
    0x0000_0402, // flat_store_dword v[2:3], v4
    0xbf81_0000, // s_endpgm
];

#[test]
fn a_dword_is_copied() {
    let bus = FakeBus::default();
    bus.put(VMID, CODE, &COPY);
    bus.put(VMID, 0x1_0000_2000, &[0x1234_5678]);
    let mut wave = wave(&[0x2000, 1, 0x3000, 2], 1);
    assert_eq!(run(&mut wave, &bus), Run::Ended);
    assert_eq!(bus.get(VMID, 0x2_0000_3000, 1), [0x1234_5678]);
}

#[test]
fn a_fault_leaves_the_wave_at_its_instruction() {
    let bus = FakeBus::default();
    bus.put(VMID, CODE, &COPY);
    bus.put(VMID, 0x1_0000_2000, &[7]);
    for page in [CODE, 0x1_0000_2000, 0x2_0000_3000] {
        bus.state().missing.insert((VMID, page), true);
    }
    let mut wave = wave(&[0x2000, 1, 0x3000, 2], 1);
    for (page, pc) in [(CODE, 0), (0x1_0000_2000, 16), (0x2_0000_3000, 28)] {
        for _ in 0..2 {
            let Run::Fault(fault) = run(&mut wave, &bus) else { panic!("no fault at {page:#x}") };
            assert_eq!((fault.addr, wave.pc()), (page, CODE + pc));
        }
        bus.state().missing.remove(&(VMID, page));
    }
    // A wave can be saved in the middle and restored.
    let mut copy = wave.clone();
    assert_eq!(run(&mut copy, &bus), Run::Ended);
    assert_eq!(bus.get(VMID, 0x2_0000_3000, 1), [7]);
}

#[test]
fn lanes_that_are_not_active_do_nothing() {
    let bus = FakeBus::default();
    let code = [
        0x2400_0082, // v_lshlrev_b32 v0, 2, v0
        0x3208_0002, // v_add_co_u32 v4, vcc, s2, v0
        0x7e0a_0203, // v_mov_b32 v5, s3
        0xd11c_6a05,
        0x01a9_0105, // v_addc_co_u32 v5, vcc, v5, 0, vcc
        0x7e10_02ff,
        0x5678, // v_mov_b32 v8, 0x5678
        0xdc70_0000,
        0x0000_0804, // flat_store_dword v[4:5], v8
        0xbf81_0000,
    ];
    bus.put(VMID, CODE, &code);
    let mut wave = wave(&[0, 0, 0xffff_fff8, 4], 5);
    assert_eq!(run(&mut wave, &bus), Run::Ended);
    // The third lane's address has a carry.
    assert_eq!(bus.get(VMID, 0x4_ffff_fff8, 2), [0x5678; 2]);
    assert_eq!(bus.get(VMID, 0x5_0000_0000, 4), [0x5678, 0x5678, 0x5678, 0]);
}

/// Reads pages in a loop until a dword says that it is enough, as AMD's eviction test does.
#[test]
fn loops_end_when_memory_says_so() {
    let bus = FakeBus::default();
    let code = [
        0xb008_5678, // s_movk_i32 s8, 0x5678
        0xc003_0400,
        0,           // repeat: s_load_dword s16, s[0:1], 0x0 glc
        0xbf8c_0070, // s_waitcnt
        0xbf00_0810, // s_cmp_eq_i32 s16, s8
        0xbf85_000d, // s_cbranch_scc1 quit
        0x7e12_0280, // v_mov_b32 v9, 0
        0x7e16_0205, // v_mov_b32 v11, s5
        0x7e0c_0202, // v_mov_b32 v6, s2
        0x7e0e_0203, // v_mov_b32 v7, s3
        0xdc54_0000,
        0x0c00_0006, // read: flat_load_dwordx2 v[12:13], v[6:7]
        0x6812_12ff,
        0x1000, // v_add_u32 v9, 0x1000, v9
        0x320c_0cff,
        0x1000,      // v_add_co_u32 v6, vcc, 0x1000, v6
        0x7d92_1709, // v_cmp_lt_u32 vcc, v9, v11
        0xbf87_fff8, // s_cbranch_vccnz read
        0xbf82_ffee, // s_branch repeat
        0xbf81_0000, // quit: s_endpgm
    ];
    bus.put(VMID, CODE, &code);
    let mut wave = wave(&[0x1000, 0, 0x10_0000, 0, 0, 0x4000], 1);
    let mut budget = 500;
    assert_eq!(wave.run(&bus, &by(), &mut budget), Run::More);
    assert_eq!(budget, 0);
    for page in 0..4 {
        assert!(bus.state().touched.contains(&(VMID, 0x10_0000 + page * 0x1000)), "{page}");
    }
    assert!(!bus.state().touched.contains(&(VMID, 0x10_4000)));
    bus.put(VMID, 0x1000, &[0x5678]);
    assert_eq!(run(&mut wave, &bus), Run::Ended);
}

#[test]
fn scalar_arithmetic() {
    let bus = FakeBus::default();
    let code = [
        0x8000_0201, // s_add_u32 s0, s1, s2
        0x8203_8080, // s_addc_u32 s3, 0, 0
        0x8084_8501, // s_sub_u32 s4, s1, 5
        0xbe85_00ff,
        0x1234_5678, // s_mov_b32 s5, 0x12345678
        0xbe86_017e, // s_mov_b64 s[6:7], exec
        0xc00a_0200,
        0x0000_0010, // s_load_dwordx4 s[8:11], s[0:1], 0x10
        0xbf81_0000,
    ];
    bus.put(VMID, CODE, &code);
    let mut wave = wave(&[0, 0xffff_f000, 0x3000], 64);
    wave.set_sgpr(1, 0xffff_f000);
    bus.put(VMID, 0xffff_f000_0000_2010, &[1, 2, 3, 4]);
    assert_eq!(run(&mut wave, &bus), Run::Ended);
    assert_eq!([0, 3, 4, 5].map(|n| wave.sgpr(n)), [0x2000, 1, 0xffff_effb, 0x1234_5678]);
    assert_eq!(wave.pair(6), u64::MAX);
    assert_eq!([8, 9, 10, 11].map(|n| wave.sgpr(n)), [1, 2, 3, 4]);
}

#[test]
fn what_is_unknown_or_impossible_breaks_the_wave() {
    let bus = FakeBus::default();
    // s_barrier; a vector register that the wave does not have; one that no wave has.
    for (code, text) in [
        (vec![0xbf8a_0000], "SOPP opcode 0xa"),
        (vec![0x7e30_0200], "beyond its own"),
        (vec![0xdc5c_0000, 0xff00_0000], "beyond its own"),
    ] {
        bus.put(VMID, CODE, &code);
        let Run::Broken(why) = run(&mut wave(&[], 1), &bus) else { panic!("{text}") };
        assert!(why.contains(text), "{why}");
    }
}

#[test]
fn random_code_neither_panics_nor_hangs() {
    let mut state = 7u32;
    for _ in 0..300 {
        let bus = FakeBus::default();
        let code: Vec<u32> = (0..64)
            .map(|n| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let random = state ^ state >> 15;
                // Encodings that exist, so that more than the first instruction runs.
                match n % 4 {
                    0 => random & 0x01ff_ffff | 0x7e00_0000,
                    1 => random & 0x003f_ffff | 0x2400_0000,
                    2 => random & 0x0007_ffff | 0xbf80_0000,
                    _ => random,
                }
            })
            .collect();
        bus.put(VMID, CODE, &code);
        wave(&[1, 2, 3, 4], 64).run(&bus, &by(), &mut 1000);
    }
}
