// SPDX-License-Identifier: GPL-2.0

//! A grid of workgroups and the waves of it that exist.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use amdgpu_regs::gc;

use crate::bus::{join, Bus, POLL};
use crate::gpuvm::Requester;
use crate::report::Kind;
use crate::shader::{Run, Start, Wave, LANES};

/// Waves of a dispatch that exist at a time; more of them wait for room. The tests of AMD need
/// 512, which must all be there at once.
const RESIDENT: usize = 1024;
/// Instructions of a wave's turn.
const TURN: u32 = 2000;
/// Threads of a workgroup at most (CDNA3).
const MAX_THREADS: u64 = 1024;
/// The unit of `COMPUTE_PGM_RSRC1.VGPRS` since GFX90A.
const VGPR_GRANULE: usize = 8;
/// The unit of `COMPUTE_PGM_LO`.
const PGM_SHIFT: u32 = 8;
/// Page of an address, by which faults are handled.
const PAGE_MASK: u64 = !0xfff;
/// `COMPUTE_NUM_THREAD_*.NUM_THREAD_FULL`.
const THREADS_MASK: u32 = 0xffff;

/// The shader registers of a queue, from `COMPUTE_DISPATCH_INITIATOR` on.
pub struct ShaderRegs<'a>(pub &'a [u32]);

impl ShaderRegs<'_> {
    fn get(&self, reg: u32) -> u32 {
        let index = reg.checked_sub(gc::COMPUTE_DISPATCH_INITIATOR);
        index.and_then(|n| self.0.get(n as usize)).copied().unwrap_or(0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Resident {
    wave: Wave,
    /// The page that it waits for.
    waits: Option<u64>,
    /// A fault without retry ended it; the driver must take the queue away.
    halted: bool,
}

/// A dispatch that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispatch {
    pc: u64,
    user: Vec<u32>,
    rsrc2: u32,
    vgprs: usize,
    threads: [u32; 3],
    start: [u32; 3],
    groups: [u32; 3],
    next: u64,
    total: u64,
    waves: Vec<Resident>,
    turn: usize,
    /// Pages that waves wait for, and when to look again.
    pages: HashMap<u64, Instant>,
}

/// How a slice of a dispatch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// All waves have ended.
    Done,
    /// Waves can go on.
    More,
    /// All waves wait for pages.
    Wait(Duration),
    /// It cannot go on.
    Stop,
}

impl Dispatch {
    /// A grid of `groups`, or of threads if the initiator says so.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn new(regs: &ShaderRegs<'_>, groups: [u32; 3], initiator: u32) -> Result<Self, String> {
        let threads =
            [gc::COMPUTE_NUM_THREAD_X, gc::COMPUTE_NUM_THREAD_Y, gc::COMPUTE_NUM_THREAD_Z]
                .map(|reg| (regs.get(reg) & THREADS_MASK).max(1));
        let per_group = threads.iter().map(|n| u64::from(*n)).product::<u64>();
        if per_group > MAX_THREADS {
            return Err(format!("{per_group} threads in a workgroup"));
        }
        let start = if gc::COMPUTE_DISPATCH_INITIATOR__FORCE_START_AT_000.get(initiator) != 0 {
            [0; 3]
        } else {
            [gc::COMPUTE_START_X, gc::COMPUTE_START_Y, gc::COMPUTE_START_Z].map(|reg| regs.get(reg))
        };
        let mut groups = groups;
        if gc::COMPUTE_DISPATCH_INITIATOR__USE_THREAD_DIMENSIONS.get(initiator) != 0 {
            for (groups, threads) in groups.iter_mut().zip(threads) {
                if *groups % threads != 0 {
                    return Err("a partial workgroup".to_string());
                }
                *groups /= threads;
            }
        }
        let total = groups.iter().try_fold(1u64, |n, groups| n.checked_mul(u64::from(*groups)));
        let rsrc1 = regs.get(gc::COMPUTE_PGM_RSRC1);
        let rsrc2 = regs.get(gc::COMPUTE_PGM_RSRC2);
        if gc::COMPUTE_PGM_RSRC2__SCRATCH_EN.get(rsrc2) != 0 {
            return Err("scratch memory".to_string());
        }
        let user = gc::COMPUTE_PGM_RSRC2__USER_SGPR.get(rsrc2);
        let pc = join(regs.get(gc::COMPUTE_PGM_LO), regs.get(gc::COMPUTE_PGM_HI));
        Ok(Self {
            pc: pc << PGM_SHIFT,
            user: (0..user).map(|n| regs.get(gc::COMPUTE_USER_DATA_0 + n)).collect(),
            rsrc2,
            vgprs: (gc::COMPUTE_PGM_RSRC1__VGPRS.get(rsrc1) as usize + 1) * VGPR_GRANULE,
            threads,
            start,
            groups,
            next: 0,
            total: total.ok_or("more workgroups than there are numbers")?,
            waves: Vec::new(),
            turn: 0,
            pages: HashMap::new(),
        })
    }

    /// Starts waves of the next workgroups as far as there is room.
    fn launch(&mut self) {
        let [x, y, z] = self.threads;
        let threads = x * y * z;
        let waves = threads.div_ceil(LANES as u32) as usize;
        while self.next < self.total && self.waves.len() + waves <= RESIDENT {
            let n = self.next;
            self.next += 1;
            let [gx, gy, _] = self.groups.map(u64::from);
            let position = [n % gx, n / gx % gy, n / gx / gy];
            let mut sgprs = self.user.clone();
            let enabled = [
                gc::COMPUTE_PGM_RSRC2__TGID_X_EN,
                gc::COMPUTE_PGM_RSRC2__TGID_Y_EN,
                gc::COMPUTE_PGM_RSRC2__TGID_Z_EN,
            ];
            for ((enabled, position), start) in enabled.iter().zip(position).zip(self.start) {
                if enabled.get(self.rsrc2) != 0 {
                    sgprs.push(start.wrapping_add(position as u32));
                }
            }
            if gc::COMPUTE_PGM_RSRC2__TG_SIZE_EN.get(self.rsrc2) != 0 {
                sgprs.push(waves as u32);
            }
            let dimensions = gc::COMPUTE_PGM_RSRC2__TIDIG_COMP_CNT.get(self.rsrc2) as usize + 1;
            for first in (0..threads).step_by(LANES) {
                let last = threads.min(first + LANES as u32);
                let lanes = (first..last).map(|t| [t % x, t / x % y, t / x / y]).collect();
                let start = Start {
                    pc: self.pc,
                    sgprs: sgprs.clone(),
                    lanes,
                    dimensions: dimensions.min(3),
                    vgprs: self.vgprs,
                };
                self.waves.push(Resident { wave: Wave::new(&start), waits: None, halted: false });
            }
        }
    }

    /// Lets waves run, each in its turn, until `until` or until each has had its turn.
    pub fn run<B: Bus + ?Sized>(&mut self, bus: &B, by: &Requester, until: Instant) -> State {
        self.launch();
        let mut progress = false;
        for _ in 0..self.waves.len() {
            let now = Instant::now();
            if now >= until {
                return State::More;
            }
            if self.turn >= self.waves.len() {
                self.turn = 0;
            }
            let Some(resident) = self.waves.get_mut(self.turn) else { break };
            self.turn += 1;
            let page = resident.waits;
            let early = page.and_then(|page| self.pages.get(&page)).is_some_and(|at| *at > now);
            if resident.halted || early {
                continue;
            }
            let mut budget = TURN;
            let run = resident.wave.run(bus, by, &mut budget);
            let fault = match &run {
                Run::Fault(fault) => Some(*fault),
                _ => None,
            };
            let missing = fault.map(|fault| fault.addr & PAGE_MASK);
            if let Some(page) = page.filter(|page| missing != Some(*page)) {
                // The page is there: all others that wait for it may go on, too.
                self.pages.remove(&page);
                progress = true;
            }
            resident.waits = None;
            match run {
                Run::More => progress = true,
                Run::Ended => {
                    bus.wave();
                    progress = true;
                    self.turn -= 1;
                    self.waves.swap_remove(self.turn);
                }
                Run::Fault(fault) => {
                    bus.fault(&fault);
                    if fault.retry {
                        let page = fault.addr & PAGE_MASK;
                        resident.waits = Some(page);
                        self.pages.insert(page, now + POLL);
                    } else {
                        resident.halted = true;
                    }
                }
                Run::Broken(text) => {
                    let text = format!("vmid {} at {:#x}: {text}", by.vmid, resident.wave.pc());
                    bus.error(Kind::UnknownOpcode, by.writer.engine, text);
                    return State::Stop;
                }
            }
        }
        if self.waves.is_empty() {
            self.pages.clear();
            return if self.next < self.total { State::More } else { State::Done };
        }
        if progress {
            State::More
        } else if self.waves.iter().all(|resident| resident.halted) {
            State::Stop
        } else {
            State::Wait(POLL)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::fake::FakeBus;
    use crate::gpuvm::{Hub, Writer};

    const CODE: u64 = 0x7000_0000;
    const VMID: u8 = 8;

    fn by() -> Requester {
        let writer = Writer { engine: "cp", queue: 0, rptr: 0 };
        Requester { hub: Hub::Gfx, vmid: VMID, no_retry: false, writer }
    }

    fn regs(threads: u32, user: &[u32]) -> Vec<u32> {
        let mut regs = vec![0; 0x80];
        let mut set =
            |reg: u32, value| regs[(reg - gc::COMPUTE_DISPATCH_INITIATOR) as usize] = value;
        set(gc::COMPUTE_NUM_THREAD_X, threads);
        set(gc::COMPUTE_PGM_LO, (CODE >> 8) as u32);
        set(gc::COMPUTE_PGM_RSRC1, 7);
        let rsrc2 = gc::COMPUTE_PGM_RSRC2__USER_SGPR.set(0, user.len() as u32);
        set(gc::COMPUTE_PGM_RSRC2, gc::COMPUTE_PGM_RSRC2__TGID_X_EN.set(rsrc2, 1));
        for (n, value) in (0..).zip(user) {
            set(gc::COMPUTE_USER_DATA_0 + n, *value);
        }
        regs
    }

    /// Stores the workgroup's number at `s[2:3]` + 4 * number, with the number in `s4`.
    const STORE: [u32; 9] = [
        0x7e00_0204, // v_mov_b32 v0, s4
        0x7e10_0204, // v_mov_b32 v8, s4
        0x2400_0082, // v_lshlrev_b32 v0, 2, v0
        0x3208_0002, // v_add_co_u32 v4, vcc, s2, v0
        0x7e0a_0203, // v_mov_b32 v5, s3
        0xdc70_0000,
        0x0000_0804, // flat_store_dword v[4:5], v8
        0xbf81_0000,
        0,
    ];

    fn finish(dispatch: &mut Dispatch, bus: &FakeBus) -> State {
        loop {
            match dispatch.run(bus, &by(), Instant::now() + Duration::from_secs(1)) {
                State::More => {}
                other => return other,
            }
        }
    }

    #[test]
    fn every_workgroup_runs() {
        let bus = FakeBus::default();
        bus.put(VMID, CODE, &STORE);
        let regs = regs(1, &[0, 0, 0x10_0000, 0]);
        let mut dispatch = Dispatch::new(&ShaderRegs(&regs), [3000, 1, 1], 1).unwrap();
        assert_eq!(finish(&mut dispatch, &bus), State::Done);
        assert_eq!(bus.get(VMID, 0x10_0000, 3001), [(0..3000).collect(), vec![0]].concat());
    }

    #[test]
    fn waves_wait_for_their_own_page_only() {
        let bus = FakeBus::default();
        bus.put(VMID, CODE, &STORE);
        let regs = regs(1, &[0, 0, 0x10_0000, 0]);
        // The 3072 dwords are on three pages.
        let mut dispatch = Dispatch::new(&ShaderRegs(&regs), [3072, 1, 1], 1).unwrap();
        bus.state().missing.insert((VMID, 0x10_1000), true);
        assert!(matches!(finish(&mut dispatch, &bus), State::Wait(_)));
        assert_eq!(bus.get(VMID, 0x10_0000, 1024), (0..1024).collect::<Vec<u32>>());
        // Waves on the missing page fill the room; they do not flood the driver.
        assert!(bus.state().faults.len() <= 2 * RESIDENT);
        let faults = bus.state().faults.len();
        assert!(matches!(finish(&mut dispatch, &bus), State::Wait(_)));
        assert!(bus.state().faults.len() <= faults + 1, "every wave asks again");
        bus.state().missing.clear();
        std::thread::sleep(2 * POLL);
        assert_eq!(finish(&mut dispatch, &bus), State::Done);
        assert_eq!(bus.get(VMID, 0x10_0000, 3072), (0..3072).collect::<Vec<u32>>());
    }

    #[test]
    fn faults_without_retry_halt_the_wave() {
        let bus = FakeBus::default();
        bus.put(VMID, CODE, &STORE);
        bus.state().missing.insert((VMID, 0x10_0000), false);
        let regs = regs(1, &[0, 0, 0x10_0000, 0]);
        let mut dispatch = Dispatch::new(&ShaderRegs(&regs), [4, 1, 1], 1).unwrap();
        assert_eq!(finish(&mut dispatch, &bus), State::Stop);
        assert_eq!(bus.state().faults.len(), 4);
    }

    #[test]
    fn hostile_dispatches() {
        let bad = |regs: &[u32], groups, initiator| {
            Dispatch::new(&ShaderRegs(regs), groups, initiator).is_err()
        };
        assert!(bad(&regs(0xffff, &[]), [1, 1, 1], 1));
        assert!(bad(&regs(1, &[]), [u32::MAX; 3], 1));
        assert!(bad(&regs(64, &[]), [100, 1, 1], 1 | 1 << 5));
        let bus = FakeBus::default();
        let mut none = Dispatch::new(&ShaderRegs(&regs(1, &[])), [0, 5, 5], 1).unwrap();
        assert_eq!(finish(&mut none, &bus), State::Done);
        let mut none = Dispatch::new(&ShaderRegs(&[]), [1, 1, 1], 1).unwrap();
        assert!(matches!(finish(&mut none, &bus), State::Stop | State::Done));
    }
}
