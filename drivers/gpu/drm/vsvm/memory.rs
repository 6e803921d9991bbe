// SPDX-License-Identifier: GPL-2.0

//! How the engine reaches memory: by DMA addresses, and by nothing else.

use kernel::{
    device::Bound,
    dma::DmaAddress,
    pci,
    prelude::*, //
};

use crate::{
    edu::Edu,
    ffi, //
};

/// What is done with bytes of memory, all of which are in one page of the GPU.
pub(crate) enum Transfer<'a> {
    /// Memory to buffer.
    Read(&'a mut [u8]),
    /// Buffer to memory.
    Write(&'a [u8]),
    /// Adds `value` to each 64-bit word; `old` gets the words as they were before. The address is a
    /// multiple of 8, as is the length of `old`.
    Add { value: u64, old: &'a mut [u8] },
}

impl Transfer<'_> {
    /// The same transfer, to be tried once.
    pub(crate) fn reborrow(&mut self) -> Transfer<'_> {
        match self {
            Self::Read(buf) => Transfer::Read(buf),
            Self::Write(buf) => Transfer::Write(buf),
            Self::Add { value, old } => Transfer::Add { value: *value, old },
        }
    }

    /// Bytes of memory that are touched.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Read(buf) => buf.len(),
            Self::Write(buf) => buf.len(),
            Self::Add { old, .. } => old.len(),
        }
    }

    /// Whether memory is written.
    pub(crate) fn writes(&self) -> bool {
        !matches!(self, Self::Read(_))
    }
}

/// The two ways.
pub(crate) enum Memory {
    /// The CPU copies, after it looked up where the device's access would go.
    Cpu,
    /// The device copies.
    Dma(Pin<KBox<Edu>>),
}

impl Memory {
    /// Carries out `transfer` at the DMA address `addr` of the device. Sleeps.
    ///
    /// The caller holds the TLB lock under which it translated to `addr`: so the memory belongs to
    /// the device until this returns, as [`wait`] takes that lock.
    ///
    /// [`wait`]: kernel::drm::gpusvm::Driver::wait
    ///
    /// Fails with `EFAULT` if nothing answers at the address, `EIO` if the device does not finish.
    pub(crate) fn transfer(
        &self,
        pdev: &pci::Device<Bound>,
        addr: DmaAddress,
        transfer: Transfer<'_>,
    ) -> Result {
        match self {
            Self::Cpu => {
                let dev = pdev.as_ref();

                match transfer {
                    Transfer::Read(buf) => ffi::read(dev, addr, buf),
                    Transfer::Write(buf) => ffi::write(dev, addr, buf),
                    Transfer::Add { value, old } => ffi::add(dev, addr, value, old),
                }
            }
            Self::Dma(edu) => match transfer {
                Transfer::Read(buf) => edu.read(pdev, addr, buf),
                Transfer::Write(buf) => edu.write(pdev, addr, buf),
                Transfer::Add { value, old } => edu.add(pdev, addr, value, old),
            },
        }
    }
}
