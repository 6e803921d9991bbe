// SPDX-License-Identifier: GPL-2.0

//! A bus for tests: flat memory of some MiB at any address, pages that fault on demand.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};

use super::*;
use crate::gpuvm::{Access, Cause};

const PAGE: u64 = 4096;

/// All that happened, and the memory.
#[derive(Default)]
pub struct State {
    /// Bytes by page; a page that nobody wrote is zero.
    pub pages: HashMap<(u8, u64), Vec<u8>>,
    /// Pages (vmid, address) that fault, and whether with a retry.
    pub missing: HashMap<(u8, u64), bool>,
    /// Faults that the engine told about.
    pub faults: Vec<Fault>,
    /// Registers.
    pub regs: HashMap<u32, u32>,
    /// Register writes in their order.
    pub writes: Vec<(u32, u32)>,
    /// Interrupt vectors.
    pub ivs: Vec<Iv>,
    /// Errors.
    pub errors: Vec<(Kind, String)>,
    /// Invalidations.
    pub invalidations: Vec<(u16, bool)>,
    /// VMIDs of address spaces.
    pub pasids: HashMap<u8, u16>,
    /// Pages that were touched.
    pub touched: HashSet<(u8, u64)>,
}

/// The bus.
#[derive(Default)]
pub struct FakeBus(Mutex<State>);

impl FakeBus {
    /// What happened so far.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Writes dwords without a fault.
    pub fn put(&self, vmid: u8, va: u64, dwords: &[u32]) {
        let mut state = self.state();
        for (at, dword) in (va..).step_by(4).zip(dwords) {
            let page = state.pages.entry((vmid, at & !(PAGE - 1))).or_insert_with(|| vec![0; 4096]);
            page[(at % PAGE) as usize..][..4].copy_from_slice(&dword.to_le_bytes());
        }
    }

    /// Reads dwords without a fault.
    pub fn get(&self, vmid: u8, va: u64, count: u64) -> Vec<u32> {
        let state = self.state();
        let byte = |at: u64| {
            state.pages.get(&(vmid, at & !(PAGE - 1))).map_or(0, |page| page[(at % PAGE) as usize])
        };
        (0..count).map(|n| u32::from_le_bytes([0, 1, 2, 3].map(|i| byte(va + 4 * n + i)))).collect()
    }

    fn check(&self, by: &Requester, va: u64, len: usize, access: Access) -> Result<usize, Fault> {
        let mut state = self.state();
        state.touched.insert((by.vmid, va & !(PAGE - 1)));
        if let Some(retry) = state.missing.get(&(by.vmid, va & !(PAGE - 1))) {
            let retry = *retry && !by.no_retry;
            let cause = Cause::Invalid;
            return Err(Fault { hub: by.hub, vmid: by.vmid, addr: va, access, retry, cause });
        }
        Ok(len.min((PAGE - va % PAGE) as usize))
    }

    fn load(
        &self,
        by: &Requester,
        mut va: u64,
        mut to: &mut [u8],
        access: Access,
    ) -> Result<(), Fault> {
        while !to.is_empty() {
            let len = self.check(by, va, to.len(), access)?;
            let state = self.state();
            if let Some(page) = state.pages.get(&(by.vmid, va & !(PAGE - 1))) {
                to[..len].copy_from_slice(&page[(va % PAGE) as usize..][..len]);
            } else {
                to[..len].fill(0);
            }
            va = va.wrapping_add(len as u64);
            to = &mut to[len..];
        }
        Ok(())
    }
}

impl Bus for FakeBus {
    fn read(&self, by: &Requester, va: u64, to: &mut [u8]) -> Result<(), Fault> {
        self.load(by, va, to, Access::Read)
    }

    fn fetch(&self, by: &Requester, va: u64, to: &mut [u8]) -> Result<(), Fault> {
        self.load(by, va, to, Access::Execute)
    }

    fn write(&self, by: &Requester, mut va: u64, mut from: &[u8]) -> Result<(), Fault> {
        while !from.is_empty() {
            let len = self.check(by, va, from.len(), Access::Write)?;
            let mut state = self.state();
            let page =
                state.pages.entry((by.vmid, va & !(PAGE - 1))).or_insert_with(|| vec![0; 4096]);
            page[(va % PAGE) as usize..][..len].copy_from_slice(&from[..len]);
            va = va.wrapping_add(len as u64);
            from = &from[len..];
        }
        Ok(())
    }

    fn reg_read(&self, reg: u32) -> u32 {
        self.state().regs.get(&reg).copied().unwrap_or(0)
    }

    fn reg_write(&self, reg: u32, value: u32) {
        let mut state = self.state();
        state.regs.insert(reg, value);
        state.writes.push((reg, value));
    }

    fn interrupt(&self, iv: Iv) {
        self.state().ivs.push(iv);
    }

    fn fault(&self, fault: &Fault) {
        self.state().faults.push(*fault);
    }

    fn pasid(&self, vmid: u8) -> u16 {
        self.state().pasids.get(&vmid).copied().unwrap_or(0)
    }

    fn vmids(&self, pasid: u16) -> u16 {
        let state = self.state();
        state
            .pasids
            .iter()
            .filter(|(_, p)| **p == pasid)
            .fold(0, |mask, (vmid, _)| mask | 1 << vmid)
    }

    fn invalidate(&self, vmids: u16, both_hubs: bool) {
        self.state().invalidations.push((vmids, both_hubs));
    }

    fn map_process(&self, vmid: u8, _root: u64, pasid: u16) {
        self.state().pasids.insert(vmid, pasid);
    }

    fn clock(&self) -> u64 {
        0x1234_5678_9abc
    }

    fn error(&self, kind: Kind, _engine: &str, text: String) {
        self.state().errors.push((kind, text));
    }
}
