// SPDX-License-Identifier: GPL-2.0

//! The translations that a hub caches.
//!
//! Real TLBs forget when they like; this one forgets only what the driver invalidates, so that a
//! missing invalidation shows every time. A mapping that does not exist is never cached.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use super::walk::Leaf;

/// VMIDs of a hub.
pub const VMIDS: usize = 16;

/// A cached translation.
#[derive(Clone, Copy, Debug)]
pub struct Cached {
    /// What the walk found when it was filled.
    pub leaf: Leaf,
    /// When it was filled.
    pub filled: Instant,
    /// When a use first found that the tables say something else by now.
    pub stale_since: Option<Instant>,
    /// A stale use of it has been reported.
    pub reported: bool,
}

#[derive(Default)]
struct OfVmid {
    /// By first address and size of the leaf.
    entries: HashMap<(u64, u32), Cached>,
    /// The sizes that occur.
    shifts: BTreeSet<u32>,
}

/// The TLB of one hub.
#[derive(Default)]
pub struct Tlb {
    vmids: [OfVmid; VMIDS],
}

impl Tlb {
    /// The cached translation of `va`.
    pub fn lookup(&mut self, vmid: u8, va: u64) -> Option<&mut Cached> {
        let of = self.vmids.get_mut(usize::from(vmid))?;
        let key =
            of.shifts.iter().map(|&shift| key(va, shift)).find(|k| of.entries.contains_key(k))?;
        of.entries.get_mut(&key)
    }

    /// Caches what a walk of `va` found.
    pub fn fill(&mut self, vmid: u8, va: u64, leaf: Leaf) {
        if let Some(of) = self.vmids.get_mut(usize::from(vmid)) {
            of.shifts.insert(leaf.shift);
            let filled = Instant::now();
            let cached = Cached { leaf, filled, stale_since: None, reported: false };
            of.entries.insert(key(va, leaf.shift), cached);
        }
    }

    /// Forgets the one translation of `va`, as a hub does when the permission did not suffice.
    pub fn forget(&mut self, vmid: u8, va: u64) {
        if let Some(of) = self.vmids.get_mut(usize::from(vmid)) {
            for &shift in &of.shifts {
                of.entries.remove(&key(va, shift));
            }
        }
    }

    /// Forgets the translations of the VMIDs in `mask`: all, or those that overlap
    /// `range` (first and last address).
    pub fn invalidate(&mut self, mask: u16, range: Option<(u64, u64)>) {
        for (vmid, of) in self.vmids.iter_mut().enumerate() {
            if mask & 1 << vmid == 0 {
                continue;
            }
            match range {
                None => *of = OfVmid::default(),
                Some((first, last)) => of.entries.retain(|&(start, shift), _| {
                    start > last || start.saturating_add((1 << shift) - 1) < first
                }),
            }
        }
    }

    /// How many translations are cached.
    pub fn len(&self) -> usize {
        self.vmids.iter().map(|of| of.entries.len()).sum()
    }
}

fn key(va: u64, shift: u32) -> (u64, u32) {
    (va >> shift << shift, shift)
}

#[cfg(test)]
mod tests {
    use super::super::{Entry, Space};
    use super::*;

    fn leaf(address: u64, shift: u32) -> Leaf {
        Leaf { entry: Entry(address | 1), at: (Space::Vram, 0), shift }
    }

    #[test]
    fn finds_by_any_size() {
        let mut tlb = Tlb::default();
        tlb.fill(3, 0x1234_5000, leaf(0x7000, 12));
        tlb.fill(3, 0x20_0000, leaf(0x40_0000, 21));
        assert!(tlb.lookup(3, 0x1234_5fff).is_some());
        assert!(tlb.lookup(3, 0x1234_6000).is_none());
        assert!(tlb.lookup(3, 0x3f_ffff).is_some());
        assert!(tlb.lookup(4, 0x3f_ffff).is_none());
        assert!(tlb.lookup(99, 0).is_none());
        assert_eq!(tlb.len(), 2);
    }

    #[test]
    fn invalidates_by_vmid_and_by_range() {
        let mut tlb = Tlb::default();
        for vmid in [1, 2] {
            tlb.fill(vmid, 0x20_0000, leaf(0, 21));
            tlb.fill(vmid, 0x80_0000, leaf(0, 12));
        }
        tlb.invalidate(1 << 1, Some((0x3f_f000, 0x3f_ffff)));
        assert!(tlb.lookup(1, 0x20_0000).is_none() && tlb.lookup(1, 0x80_0000).is_some());
        tlb.invalidate(1 << 1, None);
        assert!(tlb.lookup(1, 0x80_0000).is_none());
        assert_eq!(tlb.len(), 2);
        tlb.invalidate(u16::MAX, None);
        assert_eq!(tlb.len(), 0);
    }
}
