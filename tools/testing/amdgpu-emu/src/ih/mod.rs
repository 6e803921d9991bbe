// SPDX-License-Identifier: GPL-2.0

//! OSSSYS: the interrupt handler, which writes interrupt vectors to rings in the guest's memory
//! and sends messages; and the CAM of retry faults.
//!
//! The driver's side is `vega20_ih.c`; the layout of a vector is that of
//! `amdgpu_ih_decode_iv_helper()` in `amdgpu_ih.c`.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use amdgpu_regs::osssys;

use crate::block::Block;
use crate::gpu::Gpu;
use crate::report::Kind;

mod cam;
mod inject;

pub use cam::{Cam, FaultKey, Raise};
pub use inject::Inject;

/// The size of a vector in the ring in bytes.
const VECTOR: u32 = 32;
/// The unit of the timestamps: the 100 MHz reference clock.
const NANOSECONDS_PER_TICK: u128 = 10;
/// How many bits of a timestamp a vector has.
const TIMESTAMP_MASK: u64 = (1 << 48) - 1;
/// How many vectors wait for room in the ring at most.
const WAITING: usize = 1 << 16;
/// `MC_SPACE` of a ring whose addresses are DMA addresses (`vega20_ih_rb_cntl()`).
const MC_SPACE_BUS: u32 = 1;

/// An interrupt vector without its timestamp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Iv {
    /// Who sends it: `SOC15_IH_CLIENTID_*`.
    pub client: u8,
    /// What it is, among the client's.
    pub source: u8,
    /// The ring or queue it is about.
    pub ring: u8,
    /// The VMID it is about (4 bits).
    pub vmid: u8,
    /// Is the VMID one of the MMHUB's?
    pub vmid_mmhub: bool,
    /// The address space, see [`Gpu::pasid`].
    pub pasid: u16,
    /// The die it comes from: 0 is the base die, 1 its first XCD.
    pub node: u8,
    /// What the source has to say.
    pub data: [u32; 4],
}

impl Iv {
    /// The vector as it is in the ring.
    fn encode(&self, timestamp: u64) -> [u32; 8] {
        let [low, high] = [timestamp as u32, (timestamp >> 32) as u32];
        let vmid = u32::from(self.vmid & 0xf) << 24 | u32::from(self.vmid_mmhub) << 31;
        let [d0, d1, d2, d3] = self.data;
        [
            u32::from(self.client)
                | u32::from(self.source) << 8
                | u32::from(self.ring) << 16
                | vmid,
            low,
            high & 0xffff,
            u32::from(self.pasid) | u32::from(self.node) << 16,
            d0,
            d1,
            d2,
            d3,
        ]
    }
}

#[derive(Default)]
struct State {
    /// Vectors that found no room, or are held back.
    waiting: VecDeque<Iv>,
}

/// The interrupt handler.
pub struct Ih {
    state: Mutex<State>,
    started: Instant,
    /// Retry faults that the driver has not answered.
    pub cam: Cam,
    /// Mistakes made on purpose.
    pub inject: Inject,
}

impl Default for Ih {
    fn default() -> Self {
        Self::new()
    }
}

impl Ih {
    /// An interrupt handler as after a reset.
    pub fn new() -> Self {
        Self {
            state: Mutex::default(),
            started: Instant::now(),
            cam: Cam::new(),
            inject: Inject::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reference clock's value.
    pub fn clock(&self) -> u64 {
        (self.started.elapsed().as_nanos() / NANOSECONDS_PER_TICK) as u64
    }

    /// Sends a vector: to the ring if it has room, else as soon as it has.
    pub fn post(&self, gpu: &Gpu, iv: Iv) {
        let copies = self.inject.copies(&iv);
        let mut state = self.state();
        for _ in 0..copies {
            if state.waiting.len() < WAITING {
                state.waiting.push_back(iv);
            } else {
                gpu.report.error(
                    Kind::Driver,
                    "ih",
                    "vectors lost: the driver does not read its ring",
                );
            }
        }
        if gpu.report.verbose() {
            gpu.report.note("ih", format_args!("{iv:x?} x {copies}"));
        }
        self.flush(gpu, &mut state);
    }

    /// Delivers what was held back.
    pub fn poll(&self, gpu: &Gpu) {
        let mut state = self.state();
        if !state.waiting.is_empty() {
            self.flush(gpu, &mut state);
        }
    }

    /// Writes waiting vectors to ring 0 as far as it has room, and sends a message for them.
    fn flush(&self, gpu: &Gpu, state: &mut State) {
        if self.inject.held() {
            return;
        }
        let cntl = gpu.regs.read(osssys::IH_RB_CNTL);
        if osssys::IH_RB_CNTL__RB_ENABLE.get(cntl) == 0 {
            // What happens while the ring is off is lost.
            state.waiting.clear();
            return;
        }
        if osssys::IH_RB_CNTL__MC_SPACE.get(cntl) != MC_SPACE_BUS {
            gpu.report.error(Kind::Unimplemented, "ih", "a ring that is not at a DMA address");
            return;
        }
        let size = 4u32.checked_shl(osssys::IH_RB_CNTL__RB_SIZE.get(cntl)).unwrap_or(0);
        let Some(mask) = size.checked_sub(1).filter(|_| size >= 2 * VECTOR) else { return };
        let base = gpu.regs.read64(osssys::IH_RB_BASE, osssys::IH_RB_BASE_HI) << 8;
        let first = gpu.regs.read(osssys::IH_RB_WPTR) & mask;
        let rptr = gpu.regs.read(osssys::IH_RB_RPTR) & mask;
        let mut wptr = first;
        while let Some(iv) = state.waiting.front() {
            let next = wptr.wrapping_add(VECTOR) & mask;
            if next == rptr {
                gpu.counters.vectors_delayed.add(1);
                break;
            }
            let bytes: Vec<u8> = iv
                .encode(self.clock() & TIMESTAMP_MASK)
                .iter()
                .flat_map(|d| d.to_le_bytes())
                .collect();
            if let Err(error) = gpu.system.write(base.wrapping_add(u64::from(wptr)), &bytes) {
                gpu.report.error(Kind::BadDma, "ih", format_args!("ring at {error}"));
                return;
            }
            gpu.counters.vectors.add(1);
            state.waiting.pop_front();
            wptr = next;
        }
        if wptr == first {
            return;
        }
        gpu.regs.write(osssys::IH_RB_WPTR, wptr);
        if osssys::IH_RB_CNTL__WPTR_WRITEBACK_ENABLE.get(cntl) != 0 {
            let back = gpu.regs.read64(osssys::IH_RB_WPTR_ADDR_LO, osssys::IH_RB_WPTR_ADDR_HI);
            if let Err(error) = gpu.system.store32(back, wptr) {
                gpu.report.error(Kind::BadDma, "ih", format_args!("write pointer at {error}"));
            }
        }
        std::sync::atomic::fence(Ordering::SeqCst);
        Self::interrupt(gpu, cntl);
    }

    fn interrupt(gpu: &Gpu, cntl: u32) {
        if osssys::IH_RB_CNTL__ENABLE_INTR.get(cntl) != 0 && gpu.irq.send() {
            gpu.counters.irqs.add(1);
        }
    }

    /// The driver has read up to `rptr`.
    fn read_up_to(&self, gpu: &Gpu, rptr: u32) {
        let mut state = self.state();
        gpu.regs.write(osssys::IH_RB_RPTR, rptr);
        if !state.waiting.is_empty() {
            self.flush(gpu, &mut state);
        }
        let cntl = gpu.regs.read(osssys::IH_RB_CNTL);
        let rearm = osssys::IH_RB_CNTL__RPTR_REARM.get(cntl) != 0;
        if rearm && gpu.regs.read(osssys::IH_RB_WPTR) != rptr {
            Self::interrupt(gpu, cntl);
        }
    }
}

/// The registers and doorbells of the interrupt handler.
pub struct Osssys;

/// Is a doorbell write the one that a register of the form of `IH_DOORBELL_RPTR` announces?
fn is_doorbell(register: u32, byte: u64) -> bool {
    osssys::IH_DOORBELL_RPTR__ENABLE.get(register) != 0
        && u64::from(osssys::IH_DOORBELL_RPTR__OFFSET.get(register)) * 4 == byte
}

impl Block for Osssys {
    fn name(&self) -> &'static str {
        "osssys"
    }

    fn owns(&self, reg: u32) -> bool {
        matches!(reg, osssys::IH_RB_RPTR | osssys::IH_RB_CNTL)
    }

    fn read(&self, gpu: &Gpu, reg: u32) -> u32 {
        gpu.regs.read(reg)
    }

    fn write(&self, gpu: &Gpu, reg: u32, value: u32) {
        if reg == osssys::IH_RB_RPTR {
            gpu.ih.read_up_to(gpu, value);
        } else {
            gpu.regs.write(reg, value);
        }
    }

    fn doorbell(&self, gpu: &Gpu, byte: u64, value: u64, _size: usize) {
        if is_doorbell(gpu.regs.read(osssys::IH_DOORBELL_RPTR), byte) {
            gpu.ih.read_up_to(gpu, value as u32);
        } else if is_doorbell(gpu.regs.read(osssys::IH_DOORBELL_RPTR_RING1), byte) {
            gpu.regs.write(osssys::IH_RB_RPTR_RING1, value as u32);
        } else if is_doorbell(gpu.regs.read(osssys::IH_DOORBELL_RETRY_CAM), byte) {
            gpu.ih.cam.acknowledge(value as u32);
            gpu.counters.replays.add(1);
            gpu.wake_all();
        }
    }

    fn reset(&self, gpu: &Gpu) {
        gpu.ih.state().waiting.clear();
        gpu.ih.cam.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: u64 = 0x10_0000;
    const BACK: u64 = 0x10_8000;
    const SIZE: u32 = 256;
    /// The doorbells, as the driver lays them out: dword numbers.
    const RPTR: u32 = 0x1e0;
    const RETRY_CAM: u32 = 0x1e6;

    fn gpu() -> std::sync::Arc<Gpu> {
        let gpu = Gpu::for_tests();
        let cntl = osssys::IH_RB_CNTL__RB_ENABLE.mask
            | osssys::IH_RB_CNTL__ENABLE_INTR.mask
            | osssys::IH_RB_CNTL__WPTR_WRITEBACK_ENABLE.mask
            | osssys::IH_RB_CNTL__RPTR_REARM.mask;
        let cntl = osssys::IH_RB_CNTL__MC_SPACE.set(cntl, MC_SPACE_BUS);
        let cntl = osssys::IH_RB_CNTL__RB_SIZE.set(cntl, (SIZE / 4).ilog2());
        gpu.reg_write(osssys::IH_RB_CNTL, cntl);
        gpu.reg_write(osssys::IH_RB_BASE, (RING >> 8) as u32);
        gpu.reg_write(osssys::IH_RB_WPTR_ADDR_LO, BACK as u32);
        let enable = osssys::IH_DOORBELL_RPTR__ENABLE.mask;
        gpu.reg_write(osssys::IH_DOORBELL_RPTR, RPTR | enable);
        gpu.reg_write(osssys::IH_DOORBELL_RETRY_CAM, RETRY_CAM | enable);
        gpu
    }

    #[test]
    fn vectors_are_written_as_the_driver_reads_them() {
        let gpu = gpu();
        let iv = Iv {
            client: 0x12,
            source: 3,
            ring: 4,
            vmid: 9,
            vmid_mmhub: true,
            pasid: 0x8001,
            node: 1,
            data: [1, 2, 3, 4],
        };
        gpu.ih.post(&gpu, iv);
        assert_eq!(gpu.system.load32(BACK), Ok(VECTOR));
        let word = |n: u64| gpu.system.load32(RING + 4 * n).unwrap();
        assert_eq!(word(0), 0x8904_0312);
        assert_eq!(word(3), 0x0001_8001);
        assert_eq!([word(4), word(5), word(6), word(7)], [1, 2, 3, 4]);
    }

    #[test]
    fn a_full_ring_makes_vectors_wait() {
        let gpu = gpu();
        let room = SIZE / VECTOR - 1;
        for n in 0..room + 2 {
            gpu.ih.post(&gpu, Iv { data: [n, 0, 0, 0], ..Iv::default() });
        }
        let wptr = room * VECTOR;
        assert_eq!(gpu.system.load32(BACK), Ok(wptr));
        gpu.doorbell(u64::from(RPTR) * 4, u64::from(wptr), 4);
        assert_eq!(gpu.system.load32(BACK), Ok((room + 2) * VECTOR % SIZE));
        assert_eq!(gpu.system.load32(RING + u64::from(wptr) + 16), Ok(room));
        assert_eq!(gpu.system.load32(RING + 16), Ok(room + 1));
    }

    #[test]
    fn acknowledged_faults_are_gone() {
        let gpu = gpu();
        let key = FaultKey { mmhub: true, vmid: 8, page: 0x7000 };
        let Raise::Fresh(index) = gpu.ih.cam.raise(key) else { panic!("not fresh") };
        assert_eq!(gpu.ih.cam.raise(key), Raise::Pending(index));
        gpu.doorbell(u64::from(RETRY_CAM) * 4, u64::from(index), 4);
        assert_ne!(gpu.ih.cam.raise(key), Raise::Pending(index));
    }

    #[test]
    fn a_ring_outside_of_memory_is_reported() {
        let gpu = gpu();
        gpu.reg_write(osssys::IH_RB_BASE_HI, 0xff);
        gpu.ih.post(&gpu, Iv::default());
        assert!(gpu.report.failed());
    }
}
