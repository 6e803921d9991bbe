// SPDX-License-Identifier: GPL-2.0

//! What an engine reaches of the GPU around it. The engines' tests have a bus of their own.

use std::time::Duration;

use crate::gpuvm::{Fault, Requester};
use crate::ih::Iv;
use crate::report::Kind;

/// How long a queue that waits for the driver, or for a value to change, sleeps before it looks
/// again. A replay that comes faster than the driver can handle faults would only fill its ring.
pub const POLL: Duration = Duration::from_millis(1);

/// The GPU as an engine sees it. No engine holds a lock while it calls one of these.
pub trait Bus {
    /// Reads memory at a virtual address.
    ///
    /// # Errors
    ///
    /// The fault, at the first address that cannot be read.
    fn read(&self, by: &Requester, va: u64, to: &mut [u8]) -> Result<(), Fault>;

    /// Reads instructions at a virtual address.
    ///
    /// # Errors
    ///
    /// The fault, at the first address that cannot be fetched.
    fn fetch(&self, by: &Requester, va: u64, to: &mut [u8]) -> Result<(), Fault>;

    /// Writes memory at a virtual address.
    ///
    /// # Errors
    ///
    /// The fault, at the first address that cannot be written; all before it is written.
    fn write(&self, by: &Requester, va: u64, from: &[u8]) -> Result<(), Fault>;

    /// Writes what a copy, a fill or a shader computed: as [`Self::write`], but tests may have this
    /// go wrong.
    ///
    /// # Errors
    ///
    /// As [`Self::write`].
    fn store(&self, by: &Requester, va: u64, from: &[u8]) -> Result<(), Fault> {
        self.write(by, va, from)
    }

    /// Reads a register with the effects that this has.
    fn reg_read(&self, reg: u32) -> u32;

    /// Writes a register with the effects that this has.
    fn reg_write(&self, reg: u32, value: u32);

    /// Sends an interrupt vector.
    fn interrupt(&self, iv: Iv);

    /// Tells the driver about a fault; one that may be retried only once per page at a time.
    fn fault(&self, fault: &Fault);

    /// The address space of a VMID.
    fn pasid(&self, vmid: u8) -> u16;

    /// The VMIDs of an address space, as a mask.
    fn vmids(&self, pasid: u16) -> u16;

    /// Forgets the translations of the VMIDs in the mask, of the GFXHUB or of both hubs.
    fn invalidate(&self, vmids: u16, both_hubs: bool);

    /// Makes a VMID the address space with these page tables, in both hubs, and forgets what was
    /// cached of it.
    fn map_process(&self, vmid: u8, root: u64, pasid: u16);

    /// The GPU's clock counter.
    fn clock(&self) -> u64;

    /// Counts an executed packet.
    fn packet(&self) {}

    /// Counts a wave that ended.
    fn wave(&self) {}

    /// Reports a mistake.
    fn error(&self, kind: Kind, engine: &str, text: String);

    /// Says what happens, if anybody wants to know.
    fn note(&self, _engine: &str, _text: &dyn Fn() -> String) {}
}

/// Reads a dword.
///
/// # Errors
///
/// As [`Bus::read`].
pub fn read32<B: Bus + ?Sized>(bus: &B, by: &Requester, va: u64) -> Result<u32, Fault> {
    let mut bytes = [0; 4];
    bus.read(by, va, &mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// Reads a quadword.
///
/// # Errors
///
/// As [`Bus::read`].
pub fn read64<B: Bus + ?Sized>(bus: &B, by: &Requester, va: u64) -> Result<u64, Fault> {
    let mut bytes = [0; 8];
    bus.read(by, va, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// The number that two dwords make.
pub fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// Compares as `WAIT_REG_MEM` and `POLL_REGMEM` do: `function` is 0 for "always", then `<`, `<=`,
/// `==`, `!=`, `>=`, `>`; nothing else is defined.
pub fn compare(function: u32, value: u32, reference: u32) -> Option<bool> {
    Some(match function {
        0 => true,
        1 => value < reference,
        2 => value <= reference,
        3 => value == reference,
        4 => value != reference,
        5 => value >= reference,
        6 => value > reference,
        _ => return None,
    })
}

#[cfg(test)]
pub mod fake;
