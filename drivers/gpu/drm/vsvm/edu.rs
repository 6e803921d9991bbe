// SPDX-License-Identifier: GPL-2.0

//! The DMA engine of QEMU's `edu` device.
//!
//! It copies up to 4 KiB between memory and a buffer inside of the device. The CPU cannot see that
//! buffer, so a second transfer moves the bytes on, to or from a coherent buffer of the driver.
//! Each transfer takes 100 ms of the machine's time. The device does not report errors: an address
//! that the IOMMU does not know shows in the kernel log as a DMAR fault.
//!
//! See `docs/specs/edu.rst` of QEMU.

use kernel::{
    device::Bound,
    devres::Devres,
    dma::{
        Coherent,
        DmaAddress, //
    },
    io::{
        io_project,
        poll::read_poll_timeout,
        Io, //
    },
    new_mutex,
    pci::{
        self,
        DevresBar, //
    },
    prelude::*,
    sync::Mutex,
    time::Delta, //
};

use crate::{
    counters::Counter,
    page_table::SMALL, //
};

/// Registers, all of 64 bits.
mod regs {
    pub(super) const SOURCE: usize = 0x80;
    pub(super) const DESTINATION: usize = 0x88;
    pub(super) const COUNT: usize = 0x90;
    pub(super) const COMMAND: usize = 0x98;

    /// Bytes of the BAR that are used.
    pub(super) const END: usize = 0xa0;

    /// COMMAND: start, and busy.
    pub(super) const RUN: u64 = 1 << 0;
    /// COMMAND: from the device's buffer to memory, instead of the other way.
    pub(super) const TO_MEMORY: u64 = 1 << 1;

    /// Where transfers address the device's buffer of [`SMALL`](super::SMALL) bytes.
    pub(super) const BUFFER: u64 = 0x40000;
}

/// Longest time that a transfer may take.
const TIMEOUT: Delta = Delta::from_secs(10);

/// Time between two looks at the device.
const POLL: Delta = Delta::from_millis(5);

/// The DMA engine of one device.
#[pin_data]
pub(crate) struct Edu {
    bar: DevresBar<{ regs::END }>,
    bounce: Devres<Coherent<[u8]>>,
    /// Held during a command's transfers: there is one engine and one buffer.
    #[pin]
    busy: Mutex<()>,
    pub(crate) transfers: Counter,
}

impl Edu {
    /// Takes the engine of `pdev`.
    pub(crate) fn new(pdev: &pci::Device<Bound>) -> Result<Pin<KBox<Self>>> {
        let bar = pdev
            .iomap_region_sized::<{ regs::END }>(0, c"vsvm")?
            .into_devres()?;
        let bounce = Coherent::zeroed_slice(pdev.as_ref(), SMALL, GFP_KERNEL)?;

        KBox::try_pin_init(
            try_pin_init!(Self {
                bar,
                bounce: Devres::new(pdev.as_ref(), Ok::<_, Error>(bounce))?,
                busy <- new_mutex!((), "vsvm::Edu::busy"),
                transfers: Counter::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Lets the device copy `len` bytes. `flags` says in which direction.
    fn run(
        &self,
        pdev: &pci::Device<Bound>,
        from: DmaAddress,
        to: DmaAddress,
        len: usize,
        flags: u64,
    ) -> Result {
        // A length beyond its buffer would not be an error for the device, but its end.
        if len == 0 || len > SMALL {
            return Err(EINVAL);
        }
        let bar = self.bar.access(pdev.as_ref())?;

        // In one access each: the device takes half of a register for all of it.
        bar.try_write64(from, regs::SOURCE)?;
        bar.try_write64(to, regs::DESTINATION)?;
        bar.try_write64(len as u64, regs::COUNT)?;
        bar.try_write64(flags | regs::RUN, regs::COMMAND)?;
        self.transfers.add(1);
        read_poll_timeout(
            || bar.try_read64(regs::COMMAND),
            |command| command & regs::RUN == 0,
            POLL,
            TIMEOUT,
        )
        .map_err(|_| EIO)?;
        Ok(())
    }

    /// Copies memory to `buf`, and leaves it in the coherent buffer too.
    fn read_locked(
        &self,
        pdev: &pci::Device<Bound>,
        bounce: &Coherent<[u8]>,
        addr: DmaAddress,
        buf: &mut [u8],
    ) -> Result {
        self.run(pdev, addr, regs::BUFFER, buf.len(), 0)?;
        self.run(
            pdev,
            regs::BUFFER,
            bounce.dma_address(),
            buf.len(),
            regs::TO_MEMORY,
        )?;
        io_project!(bounce, [try: ..buf.len()]).copy_to_slice(buf);
        Ok(())
    }

    /// Copies `len` bytes of the coherent buffer to memory.
    fn write_locked(
        &self,
        pdev: &pci::Device<Bound>,
        bounce: &Coherent<[u8]>,
        addr: DmaAddress,
        len: usize,
    ) -> Result {
        self.run(pdev, bounce.dma_address(), regs::BUFFER, len, 0)?;
        self.run(pdev, regs::BUFFER, addr, len, regs::TO_MEMORY)
    }

    /// Copies memory at `addr` to `buf`, of at most [`SMALL`] bytes.
    pub(crate) fn read(
        &self,
        pdev: &pci::Device<Bound>,
        addr: DmaAddress,
        buf: &mut [u8],
    ) -> Result {
        let _busy = self.busy.lock();
        let bounce = self.bounce.access(pdev.as_ref())?;

        self.read_locked(pdev, bounce, addr, buf)
    }

    /// Copies `buf`, of at most [`SMALL`] bytes, to memory at `addr`.
    pub(crate) fn write(&self, pdev: &pci::Device<Bound>, addr: DmaAddress, buf: &[u8]) -> Result {
        let _busy = self.busy.lock();
        let bounce = self.bounce.access(pdev.as_ref())?;

        io_project!(bounce, [try: ..buf.len()]).copy_from_slice(buf);
        self.write_locked(pdev, bounce, addr, buf.len())
    }

    /// Adds `value` to the words at `addr`; atomic only for those who use the engine.
    pub(crate) fn add(
        &self,
        pdev: &pci::Device<Bound>,
        addr: DmaAddress,
        value: u64,
        old: &mut [u8],
    ) -> Result {
        let _busy = self.busy.lock();
        let bounce = self.bounce.access(pdev.as_ref())?;

        self.read_locked(pdev, bounce, addr, old)?;
        // Word by word into the coherent buffer: nothing may be allocated here.
        for (i, word) in old.chunks_exact(8).enumerate() {
            let word = word.try_into().map_or(0, u64::from_ne_bytes);

            io_project!(bounce, [try: i * 8..i * 8 + 8])
                .copy_from_slice(&word.wrapping_add(value).to_ne_bytes());
        }
        self.write_locked(pdev, bounce, addr, old.len())
    }
}
