// SPDX-License-Identifier: GPL-2.0

//! The device as QEMU and a driver use it: over the socket, from another thread.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use amdgpu_emu::assembly;
use amdgpu_emu::control::Registry;
use amdgpu_emu::gpu::Gpu;
use amdgpu_emu::mem::{GuestRam, Vram};
use amdgpu_emu::vfio::Device;
use amdgpu_regs::{ih, nbio, osssys, sdma, sdma_pkt};
use rustix::event::{eventfd, EventfdFlags};
use rustix::fs::{memfd_create, MemfdFlags};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_BAR0_REGION_INDEX,
    VFIO_PCI_BAR5_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSI_IRQ_INDEX,
};
use vfio_user::Client;

const VRAM: u64 = 64 << 20;
/// The guest's RAM, and where the device sees it.
const RAM: u64 = 1 << 20;
const RAM_AT: u64 = 1 << 20;
/// In the guest's RAM: the interrupt ring, and where its write pointer is reported.
const IH_RING: u64 = RAM_AT;
const IH_RING_SIZE: u32 = 4096;
const IH_WPTR: u64 = RAM_AT + 0x8000;
/// In the VRAM: the SDMA ring, and what it writes.
const RING: u64 = 0x1_0000;
const RING_DWORDS: u32 = 1024;
const RESULT: u64 = 0x2_0000;

/// An emulator with a client.
struct Rig {
    gpu: Arc<Gpu>,
    client: Client,
    server: JoinHandle<()>,
    event: File,
}

fn socket() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("amdgpu-emu-{}-{number}.sock", std::process::id()))
}

impl Rig {
    fn new() -> Self {
        let ram = Arc::new(GuestRam::new());
        let vram = Arc::new(Vram::new(VRAM).unwrap());
        let gpu = assembly::gpu(ram.clone(), vram.clone(), VRAM, &mut Registry::new()).unwrap();
        let mut device = Device::new(gpu.clone(), ram, vram);
        let path = socket();
        let server = device.listen(&path).unwrap();
        let server = thread::spawn(move || device.serve(&server).unwrap());
        let mut client = Client::new(&path).unwrap();
        let file = File::from(memfd_create("ram", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(RAM).unwrap();
        client.dma_map(0, RAM_AT, RAM, file.as_raw_fd()).unwrap();
        let event = File::from(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let flags = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD;
        client.set_irqs(VFIO_PCI_MSI_IRQ_INDEX, flags, 0, 1, &[event.as_raw_fd()]).unwrap();
        Self { gpu, client, server, event }
    }

    fn read(&mut self, reg: u32) -> u32 {
        let mut data = [0; 4];
        let at = u64::from(reg) * 4;
        self.client.region_read(VFIO_PCI_BAR5_REGION_INDEX, at, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    fn write(&mut self, reg: u32, value: u32) {
        let at = u64::from(reg) * 4;
        self.client.region_write(VFIO_PCI_BAR5_REGION_INDEX, at, &value.to_le_bytes()).unwrap();
    }

    /// Switches ring 0 of the interrupt handler on, as `vega20_ih_irq_init()` does.
    fn interrupts_on(&mut self) {
        let cntl = osssys::IH_RB_CNTL__RB_ENABLE.mask
            | osssys::IH_RB_CNTL__ENABLE_INTR.mask
            | osssys::IH_RB_CNTL__WPTR_WRITEBACK_ENABLE.mask;
        let cntl = osssys::IH_RB_CNTL__MC_SPACE.set(cntl, 1);
        let cntl = osssys::IH_RB_CNTL__RB_SIZE.set(cntl, (IH_RING_SIZE / 4).ilog2());
        self.write(osssys::IH_RB_BASE, (IH_RING >> 8) as u32);
        self.write(osssys::IH_RB_WPTR_ADDR_LO, IH_WPTR as u32);
        self.write(osssys::IH_RB_CNTL, cntl);
    }

    /// The address at which the engines see an offset of the VRAM.
    fn address(&self, offset: u64) -> u64 {
        self.gpu.aperture(amdgpu_emu::hub::Hub::Mm).fb.start + offset
    }

    /// Executes packets on the SDMA engine's kernel ring.
    fn sdma(&mut self, packets: &[u32]) {
        for (at, dword) in (0..).step_by(4).zip(packets) {
            self.gpu.vram.store32(RING + at, *dword).unwrap();
        }
        let base = self.address(RING);
        self.write(sdma::SDMA_F32_CNTL, 0);
        self.write(sdma::SDMA_GFX_RB_BASE, (base >> 8) as u32);
        self.write(sdma::SDMA_GFX_RB_BASE_HI, (base >> 40) as u32);
        let cntl = sdma::SDMA_GFX_RB_CNTL__RB_SIZE.set(0, RING_DWORDS.ilog2());
        self.write(sdma::SDMA_GFX_RB_CNTL, cntl | sdma::SDMA_GFX_RB_CNTL__RB_ENABLE.mask);
        self.write(sdma::SDMA_GFX_RB_WPTR, 4 * packets.len() as u32);
    }

    fn end(self) {
        self.client.shutdown().unwrap();
        self.server.join().unwrap();
        self.gpu.stop();
    }
}

/// Waits for something that another thread does.
fn becomes(what: impl Fn() -> bool) -> bool {
    let begin = Instant::now();
    while !what() {
        if begin.elapsed() > Duration::from_secs(20) {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}

#[test]
fn the_device_is_found_and_identified() {
    let mut rig = Rig::new();
    let mut id = [0; 4];
    rig.client.region_read(VFIO_PCI_CONFIG_REGION_INDEX, 0, &mut id).unwrap();
    assert_eq!(u32::from_le_bytes(id), 0x74a1_1002);
    assert_eq!(rig.client.region(VFIO_PCI_BAR0_REGION_INDEX).unwrap().size, VRAM);
    assert_eq!(rig.read(nbio::RCC_DEV0_EPF0_RCC_CONFIG_MEMSIZE), (VRAM >> 20) as u32);
    // As the driver finds the discovery table: bit 31 selects the VRAM.
    rig.write(nbio::BIF_BX_PF0_MM_INDEX, (VRAM - (64 << 10)) as u32 | 1 << 31);
    assert_eq!(rig.read(nbio::BIF_BX_PF0_MM_DATA), 0x2821_1407);
    rig.end();
}

#[test]
fn an_engine_executes_and_interrupts() {
    let mut rig = Rig::new();
    rig.interrupts_on();
    let result = rig.address(RESULT);
    rig.sdma(&[
        sdma_pkt::SDMA_OP_WRITE,
        result as u32,
        (result >> 32) as u32,
        0, // one dword
        0xcafe_f00d,
        sdma_pkt::SDMA_OP_TRAP,
        0,
    ]);
    // The message comes by the event; this blocks until it does.
    let mut count = [0; 8];
    rig.event.read_exact(&mut count).unwrap();
    assert_eq!(rig.gpu.vram.load32(RESULT), Ok(0xcafe_f00d));
    assert_eq!(rig.gpu.system.load32(IH_WPTR), Ok(32));
    let vector = rig.gpu.system.load32(IH_RING).unwrap();
    assert_eq!(vector & 0xff, ih::SOC15_IH_CLIENTID_SDMA0, "client of {vector:#x}");
    assert!(!rig.gpu.report.failed(), "{:?}", rig.gpu.report.list());
    rig.end();
}

#[test]
fn a_bad_packet_is_reported_and_the_device_lives() {
    let mut rig = Rig::new();
    rig.interrupts_on();
    rig.sdma(&[0xff]);
    assert!(becomes(|| rig.gpu.report.failed()));
    let listed = rig.gpu.report.list();
    assert!(listed.iter().any(|(_, text, _)| text.contains("sdma")), "{listed:?}");
    rig.write(nbio::BIF_BX_PF0_MM_INDEX, 0x1234);
    assert_eq!(rig.read(nbio::BIF_BX_PF0_MM_INDEX), 0x1234);
    rig.end();
}

#[test]
fn memory_that_is_taken_away_is_out_of_reach() {
    let mut rig = Rig::new();
    assert!(rig.gpu.system.contains(RAM_AT, RAM));
    rig.client.dma_unmap(RAM_AT, RAM).unwrap();
    assert!(!rig.gpu.system.contains(RAM_AT, 1));
    rig.end();
}

#[test]
fn a_reset_makes_it_new() {
    let mut rig = Rig::new();
    rig.interrupts_on();
    rig.gpu.vram.store32(VRAM - (64 << 10), 0).unwrap();
    rig.client.reset().unwrap();
    assert_eq!(rig.read(osssys::IH_RB_CNTL), 0);
    assert_eq!(rig.gpu.vram.load32(VRAM - (64 << 10)), Ok(0x2821_1407));
    rig.end();
}
