// SPDX-License-Identifier: GPL-2.0

//! GPUVM: virtual addresses of the engines to memory, through tables that the driver writes.
//!
//! [`walk`](walk::walk) is the walk itself; [`Mmu`] is both hubs: it resolves an engine's access,
//! caches translations until the driver invalidates them, makes sure that no access is under way
//! when an invalidation is acknowledged, and notices uses of translations that the tables do not
//! have any more.

use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

pub use crate::hub::Hub;
use crate::mem::{MemError, Memory};

pub mod dump;
mod entry;
mod host;
mod tlb;
pub mod walk;
mod writers;

pub use entry::Entry;
use tlb::{Cached, Tlb};
use walk::{Leaf, Tables, WalkError, PAGE_SIZE};
pub use writers::Writer;
use writers::Writers;

/// How long a translation may be used after its entry was changed before the driver must have
/// invalidated it, unless [`Mmu::set_grace`] says otherwise. The driver needs some milliseconds
/// between the two; a guest whose CPUs are emulated needs more.
const GRACE: Duration = Duration::from_secs(2);

/// What an address of an entry is an address of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// The GPU's memory, by offset.
    Vram,
    /// The guest's memory, by DMA address.
    System,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vram => "vram",
            Self::System => "system",
        })
    }
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads and reads of a copy.
    Read,
    /// Stores and writes of a copy.
    Write,
    /// Instruction fetches.
    Execute,
}

/// A VMID's context registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Where its tables are.
    pub tables: Tables,
    /// `VM_CONTEXTn_CNTL.ENABLE_CONTEXT`.
    pub enabled: bool,
    /// `VM_CONTEXTn_CNTL.RETRY_PERMISSION_OR_INVALID_PAGE_FAULT`.
    pub retry: bool,
}

/// The apertures that VMID 0 reaches without tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aperture {
    /// VRAM: `MC_VM_FB_LOCATION_BASE` to `_TOP`.
    pub fb: Range<u64>,
    /// The window to system memory: `MC_VM_AGP_BOT` to `_TOP`.
    pub agp: Range<u64>,
    /// `MC_VM_AGP_BASE`: the DMA address that the window begins at.
    pub agp_base: u64,
}

/// Who makes an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requester {
    /// Its hub.
    pub hub: Hub,
    /// Its VMID.
    pub vmid: u8,
    /// It does not retry, whatever the context says: `SH_MEM_CONFIG.RETRY_DISABLE` of a shader.
    pub no_retry: bool,
    /// What to call it in reports, and as the writer of what it writes.
    pub writer: Writer,
}

/// Why an access failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Outside of the context's range, or the context is not enabled.
    Range,
    /// No mapping.
    Invalid,
    /// The mapping does not allow this access.
    Permission,
    /// The tables cannot be read or make no sense.
    Broken,
    /// The memory that the mapping points to is not there.
    Lost(MemError),
}

/// An access that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The hub that noticed it.
    pub hub: Hub,
    /// The VMID of the access.
    pub vmid: u8,
    /// The address that could not be accessed.
    pub addr: u64,
    /// What was tried.
    pub access: Access,
    /// It may be tried again after the driver has handled the fault.
    pub retry: bool,
    /// Why.
    pub cause: Cause,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let retry = if self.retry { "retry" } else { "no-retry" };
        write!(
            f,
            "{retry} fault, {:?} vmid {}, {:?} of {:#x}: {:?}",
            self.hub, self.vmid, self.access, self.addr, self.cause
        )
    }
}

/// What the MMU needs of the GPU around it.
pub trait Host {
    /// The memory of a space.
    fn memory(&self, space: Space) -> &dyn Memory;
    /// The context registers of a VMID.
    fn context(&self, hub: Hub, vmid: u8) -> Context;
    /// The apertures of a hub.
    fn aperture(&self, hub: Hub) -> Aperture;
    /// A walk of the tables was made.
    fn walked(&self) {}
    /// A translation came from the TLB.
    fn hit(&self) {}
    /// Bytes of system memory were read, or written.
    fn moved(&self, _space: Space, _access: Access, _bytes: u64) {}
    /// A stale translation was used: a flush is missing.
    fn stale(&self, text: String);
    /// A mapping pointed to memory that is not there.
    fn lost(&self, text: String);
}

/// Where an access ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Memory(Space, u64),
    /// Nowhere: zeroes.
    Nothing,
}

/// An invalidation, as `VM_INVALIDATE_ENGn_REQ` asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidate {
    /// The VMIDs concerned.
    pub vmids: u16,
    /// First and last address, if not all.
    pub range: Option<(u64, u64)>,
}

/// The two hubs' translation of addresses.
pub struct Mmu {
    gfx: Mutex<Tlb>,
    mm: Mutex<Tlb>,
    /// Held shared from a translation to the end of the access that uses it.
    in_flight: RwLock<()>,
    writers: Mutex<Writers>,
    grace: Mutex<Duration>,
}

impl Default for Mmu {
    fn default() -> Self {
        Self::new()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mmu {
    /// Nothing cached.
    pub fn new() -> Self {
        Self {
            gfx: Mutex::default(),
            mm: Mutex::default(),
            in_flight: RwLock::default(),
            writers: Mutex::default(),
            grace: Mutex::new(GRACE),
        }
    }

    /// Sets how long a changed translation may still be used.
    pub fn set_grace(&self, grace: Duration) {
        *lock(&self.grace) = grace;
    }

    fn tlb(&self, hub: Hub) -> MutexGuard<'_, Tlb> {
        lock(match hub {
            Hub::Gfx => &self.gfx,
            Hub::Mm => &self.mm,
        })
    }

    /// Forgets translations. When this returns no access that used one of them is under way.
    ///
    /// Never call this from within an access; engines have none open between packets.
    pub fn invalidate(&self, hub: Hub, what: Invalidate) {
        let _none_in_flight = self.in_flight.write().unwrap_or_else(PoisonError::into_inner);
        self.tlb(hub).invalidate(what.vmids, what.range);
    }

    /// Forgets everything, as a reset of the device does.
    pub fn reset(&self) {
        for hub in [Hub::Gfx, Hub::Mm] {
            self.invalidate(hub, Invalidate { vmids: u16::MAX, range: None });
        }
        *lock(&self.writers) = Writers::default();
    }

    /// How many translations a hub caches.
    pub fn cached(&self, hub: Hub) -> usize {
        self.tlb(hub).len()
    }

    /// Reads memory at a virtual address.
    ///
    /// # Errors
    ///
    /// A [`Fault`] with the first address that cannot be read.
    pub fn read<H>(&self, host: &H, by: &Requester, va: u64, to: &mut [u8]) -> Result<(), Fault>
    where
        H: Host + ?Sized,
    {
        self.load(host, by, va, Access::Read, to)
    }

    /// Reads instructions at a virtual address.
    ///
    /// # Errors
    ///
    /// As [`Self::read`]; pages need the right to be executed.
    pub fn fetch<H>(&self, host: &H, by: &Requester, va: u64, to: &mut [u8]) -> Result<(), Fault>
    where
        H: Host + ?Sized,
    {
        self.load(host, by, va, Access::Execute, to)
    }

    fn load<H>(
        &self,
        host: &H,
        by: &Requester,
        va: u64,
        access: Access,
        to: &mut [u8],
    ) -> Result<(), Fault>
    where
        H: Host + ?Sized,
    {
        let mut va = va;
        let mut rest = to;
        while !rest.is_empty() {
            let len = in_page(va, rest.len());
            let (part, later) = rest.split_at_mut(len);
            let _in_flight = self.in_flight.read().unwrap_or_else(PoisonError::into_inner);
            match self.translate(host, by, va, access)? {
                Target::Nothing => part.fill(0),
                Target::Memory(space, addr) => {
                    let memory = host.memory(space);
                    let done = match *part {
                        [_, _, _, _] if addr % 4 == 0 => memory
                            .load32(addr)
                            .map(|value| part.copy_from_slice(&value.to_le_bytes())),
                        [_, _, _, _, _, _, _, _] if addr % 8 == 0 => memory
                            .load64(addr)
                            .map(|value| part.copy_from_slice(&value.to_le_bytes())),
                        _ => memory.read(addr, part),
                    };
                    done.map_err(|error| self.lost(host, by, va, access, error))?;
                    host.moved(space, access, len as u64);
                }
            }
            va = va.wrapping_add(len as u64);
            rest = later;
        }
        Ok(())
    }

    /// Writes memory at a virtual address.
    ///
    /// # Errors
    ///
    /// A [`Fault`] with the first address that cannot be written; all before it is written.
    pub fn write<H>(&self, host: &H, by: &Requester, va: u64, from: &[u8]) -> Result<(), Fault>
    where
        H: Host + ?Sized,
    {
        let mut va = va;
        let mut rest = from;
        while !rest.is_empty() {
            let len = in_page(va, rest.len());
            let (part, later) = rest.split_at(len);
            let _in_flight = self.in_flight.read().unwrap_or_else(PoisonError::into_inner);
            if let Target::Memory(space, addr) = self.translate(host, by, va, Access::Write)? {
                let memory = host.memory(space);
                let done = match *part {
                    [a, b, c, d] if addr % 4 == 0 => {
                        memory.store32(addr, u32::from_le_bytes([a, b, c, d]))
                    }
                    [a, b, c, d, e, f, g, h] if addr % 8 == 0 => {
                        memory.store64(addr, u64::from_le_bytes([a, b, c, d, e, f, g, h]))
                    }
                    _ => memory.write(addr, part),
                };
                done.map_err(|error| self.lost(host, by, va, Access::Write, error))?;
                host.moved(space, Access::Write, len as u64);
                // Page tables are in VRAM and written by the driver, that is by VMID 0.
                if space == Space::Vram && by.vmid == 0 {
                    lock(&self.writers).wrote(addr, len as u64, by.writer, Instant::now());
                }
            }
            va = va.wrapping_add(len as u64);
            rest = later;
        }
        Ok(())
    }

    fn lost<H>(&self, host: &H, by: &Requester, va: u64, access: Access, error: MemError) -> Fault
    where
        H: Host + ?Sized,
    {
        let entry = self.tlb(by.hub).lookup(by.vmid, va).map(|cached| cached.leaf);
        let entry = entry.map_or_else(|| "an aperture".to_string(), |leaf| self.describe(&leaf));
        host.lost(format!(
            "{:?} vmid {}: {access:?} of {va:#x} by {}: {error}, through {entry}",
            by.hub, by.vmid, by.writer
        ));
        let cause = Cause::Lost(error);
        Fault { hub: by.hub, vmid: by.vmid, addr: va, access, retry: false, cause }
    }

    /// An entry, where it is, and who wrote it.
    fn describe(&self, leaf: &Leaf) -> String {
        let (space, at) = leaf.at;
        let last = if space == Space::Vram { lock(&self.writers).last(at) } else { None };
        let writer = last.map_or_else(
            || "the CPU or unknown".to_string(),
            |(writer, time)| format!("{writer}, {} ms ago", time.elapsed().as_millis()),
        );
        format!("entry {:#x} of {space} {at:#x} (last writer of it: {writer})", leaf.entry.0)
    }

    fn walk<H>(&self, host: &H, tables: &Tables, va: u64) -> Result<Leaf, WalkError>
    where
        H: Host + ?Sized,
    {
        host.walked();
        walk::walk(tables, va, |space, at| host.memory(space).load64(at).ok())
    }

    fn translate<H>(
        &self,
        host: &H,
        by: &Requester,
        va: u64,
        access: Access,
    ) -> Result<Target, Fault>
    where
        H: Host + ?Sized,
    {
        if by.vmid == 0 {
            let aperture = host.aperture(by.hub);
            if aperture.fb.contains(&va) {
                return Ok(Target::Memory(Space::Vram, va - aperture.fb.start));
            }
            // Without a window its registers are what they are after a reset: from 0 on.
            if aperture.agp.start != 0 && aperture.agp.contains(&va) {
                let addr = aperture.agp_base.wrapping_add(va - aperture.agp.start);
                return Ok(Target::Memory(Space::System, addr));
            }
        }
        let context = host.context(by.hub, by.vmid);
        let may_retry = context.retry && !by.no_retry;
        let fault = |retry, cause| {
            Err(Fault { hub: by.hub, vmid: by.vmid, addr: va, access, retry, cause })
        };
        if !context.enabled {
            return fault(false, Cause::Range);
        }
        let mut tlb = self.tlb(by.hub);
        if let Some(cached) = tlb.lookup(by.vmid, va) {
            if allows(cached.leaf.entry, access) {
                host.hit();
                let now = self.walk(host, &context.tables, va);
                if !same(&cached.leaf, va, now.ok().as_ref(), access) {
                    self.used_stale(host, by, va, access, cached, now.ok());
                }
                return match cached.leaf.resolve(va) {
                    Some(addr) => Ok(Target::Memory(cached.leaf.entry.space(), addr)),
                    None => fault(false, Cause::Broken),
                };
            }
            // Rights may have been added meanwhile; the walk decides.
            tlb.forget(by.vmid, va);
        }
        let leaf = match self.walk(host, &context.tables, va) {
            Ok(leaf) => leaf,
            Err(WalkError::Range) => return fault(false, Cause::Range),
            Err(WalkError::Invalid { .. }) => return fault(may_retry, Cause::Invalid),
            Err(WalkError::Broken { .. }) => return fault(false, Cause::Broken),
        };
        if !leaf.entry.valid() {
            return Ok(Target::Nothing);
        }
        if !allows(leaf.entry, access) {
            return fault(may_retry && !leaf.entry.forbids_retry(), Cause::Permission);
        }
        let Some(addr) = leaf.resolve(va) else { return fault(false, Cause::Broken) };
        tlb.fill(by.vmid, va, leaf);
        Ok(Target::Memory(leaf.entry.space(), addr))
    }

    fn used_stale<H>(
        &self,
        host: &H,
        by: &Requester,
        va: u64,
        access: Access,
        cached: &mut Cached,
        now: Option<Leaf>,
    ) where
        H: Host + ?Sized,
    {
        // If an engine wrote the entry after it was cached, that time is exact. Of a write by the
        // CPU, or to a directory above, only the first use after it is known.
        let written = match cached.leaf.at {
            (Space::Vram, at) => lock(&self.writers).last(at).map(|(_, time)| time),
            (Space::System, _) => None,
        };
        let noticed = *cached.stale_since.get_or_insert_with(Instant::now);
        let since =
            written.filter(|time| *time > cached.filled).map_or(noticed, |t| t.min(noticed));
        let age = since.elapsed();
        if cached.reported || age < *lock(&self.grace) {
            return;
        }
        cached.reported = true;
        let now =
            now.map_or_else(|| "no mapping".to_string(), |leaf| format!("{:#x}", leaf.entry.0));
        host.stale(format!(
            "{:?} vmid {}: {access:?} of {va:#x} by {} used {}, but the tables say {now} since \
             {} ms and nothing invalidated it",
            by.hub,
            by.vmid,
            by.writer,
            self.describe(&cached.leaf),
            age.as_millis(),
        ));
    }
}

/// Does the entry allow the access? Instruction fetches need the right to read, too.
fn allows(entry: Entry, access: Access) -> bool {
    match access {
        Access::Read => entry.readable(),
        Access::Write => entry.writable(),
        Access::Execute => entry.readable() && entry.executable(),
    }
}

/// Does the cached leaf still lead where the tables lead?
fn same(cached: &Leaf, va: u64, now: Option<&Leaf>, access: Access) -> bool {
    now.is_some_and(|now| {
        now.entry.valid()
            && allows(now.entry, access)
            && now.entry.space() == cached.entry.space()
            && now.resolve(va) == cached.resolve(va)
    })
}

/// How much of `len` bytes from `va` is in the first page.
fn in_page(va: u64, len: usize) -> usize {
    let rest = PAGE_SIZE - (va & (PAGE_SIZE - 1));
    usize::try_from(rest).map_or(len, |rest| rest.min(len))
}

#[cfg(test)]
mod tests;
