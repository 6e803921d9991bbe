// SPDX-License-Identifier: GPL-2.0

//! Shaders: waves of 64 lanes that execute GFX9 instructions.
//!
//! A wave executes in slices. An instruction that faults has no effect, so that the wave can be
//! resumed at it; the state of a wave is all there is to save and restore.

use crate::bus::Bus;
use crate::gpuvm::{Fault, Requester};

mod decode;

use decode::{Compare, Condition, Inst, Operand, ScalarOp, VectorOp, EXEC, M0, VCC};

/// Lanes of a wave.
pub const LANES: usize = 64;
/// Scalar registers, with VCC, M0 and EXEC at their operand numbers.
const SGPRS: usize = 128;
/// Vector registers that a wave can have.
const MAX_VGPRS: usize = 256;
/// Bytes of instructions that are fetched at a time.
const LINE: u64 = 64;

/// How a slice of a wave ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Run {
    /// It can go on.
    More,
    /// It has ended.
    Ended,
    /// The instruction at its program counter faulted.
    Fault(Fault),
    /// It cannot go on.
    Broken(String),
}

/// Where a wave begins.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// The address of its first instruction.
    pub pc: u64,
    /// The scalar registers from 0 on.
    pub sgprs: Vec<u32>,
    /// Each lane's position in its workgroup, in as many dimensions as the wave wants.
    pub lanes: Vec<[u32; 3]>,
    /// How many of the dimensions (1 to 3) are in vector registers.
    pub dimensions: usize,
    /// How many vector registers it has.
    pub vgprs: usize,
}

/// A wave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wave {
    pc: u64,
    sgprs: Vec<u32>,
    /// By register, then lane; those up to the last one that was written.
    vgprs: Vec<[u32; LANES]>,
    /// How many vector registers it may use.
    limit: usize,
    scc: bool,
}

/// A vector register that was never written.
const ZERO: [u32; LANES] = [0; LANES];

/// Instructions that were fetched last. It does not outlive a slice.
struct Line {
    at: u64,
    bytes: Option<[u8; LINE as usize]>,
}

enum Stop {
    Ended,
    Fault(Fault),
    Broken(String),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

fn broken<T>(text: &str) -> Result<T, Stop> {
    Err(Stop::Broken(text.to_string()))
}

impl Wave {
    /// A wave at its first instruction.
    pub fn new(start: &Start) -> Self {
        let mut sgprs = start.sgprs.clone();
        sgprs.resize(SGPRS, 0);
        let limit = start.vgprs.clamp(start.dimensions.max(1), MAX_VGPRS);
        let mut vgprs = vec![ZERO; start.dimensions.min(limit)];
        for (dimension, vgpr) in vgprs.iter_mut().enumerate() {
            for (lane, position) in vgpr.iter_mut().zip(&start.lanes) {
                *lane = position.get(dimension).copied().unwrap_or(0);
            }
        }
        let mut wave = Self { pc: start.pc, sgprs, vgprs, limit, scc: false };
        let lanes = start.lanes.len().min(LANES) as u32;
        wave.set_pair(EXEC, u64::MAX.checked_shr(u64::BITS - lanes).unwrap_or(0));
        wave
    }

    /// The address of the next instruction.
    pub fn pc(&self) -> u64 {
        self.pc
    }

    /// Executes up to `budget` instructions, which is reduced by those that were.
    pub fn run<B: Bus + ?Sized>(&mut self, bus: &B, by: &Requester, budget: &mut u32) -> Run {
        let mut line = Line { at: 0, bytes: None };
        while *budget > 0 {
            *budget -= 1;
            match self.step(bus, by, &mut line) {
                Ok(()) => {}
                Err(Stop::Ended) => return Run::Ended,
                Err(Stop::Fault(fault)) => return Run::Fault(fault),
                Err(Stop::Broken(text)) => return Run::Broken(text),
            }
        }
        Run::More
    }

    fn fetch<B: Bus + ?Sized>(
        bus: &B,
        by: &Requester,
        line: &mut Line,
        at: u64,
    ) -> Result<u32, Stop> {
        let first = at & !(LINE - 1);
        let bytes = match line.bytes {
            Some(bytes) if line.at == first => bytes,
            _ => {
                let mut bytes = [0; LINE as usize];
                bus.fetch(by, first, &mut bytes)?;
                *line = Line { at: first, bytes: Some(bytes) };
                bytes
            }
        };
        let offset = (at - first) as usize;
        let dword = bytes.get(offset..offset + 4).and_then(|dword| dword.try_into().ok());
        Ok(dword.map_or(0, u32::from_le_bytes))
    }

    fn step<B: Bus + ?Sized>(
        &mut self,
        bus: &B,
        by: &Requester,
        line: &mut Line,
    ) -> Result<(), Stop> {
        let first = Self::fetch(bus, by, line, self.pc)?;
        // A second dword on a page that is not there must not disturb an instruction of one.
        let next = self.pc.wrapping_add(4);
        let decoded = match decode::decode(first, 0) {
            Ok(decoded) if decoded.bytes == 4 => Ok(decoded),
            _ => decode::decode(first, Self::fetch(bus, by, line, next)?),
        };
        let decoded =
            decoded.map_err(|unknown| Stop::Broken(format!("unknown instruction {unknown}")))?;
        let next = self.pc.wrapping_add(decoded.bytes);
        let pc = self.execute(bus, by, decoded.inst, next)?;
        self.pc = pc;
        Ok(())
    }

    fn sgpr(&self, number: u8) -> u32 {
        self.sgprs.get(usize::from(number)).copied().unwrap_or(0)
    }

    fn set_sgpr(&mut self, number: u8, value: u32) {
        if let Some(sgpr) = self.sgprs.get_mut(usize::from(number)) {
            *sgpr = value;
        }
    }

    fn pair(&self, number: u8) -> u64 {
        u64::from(self.sgpr(number)) | u64::from(self.sgpr(number | 1)) << 32
    }

    fn set_pair(&mut self, number: u8, value: u64) {
        self.set_sgpr(number, value as u32);
        self.set_sgpr(number | 1, (value >> 32) as u32);
    }

    fn active(&self) -> impl Iterator<Item = usize> {
        let exec = self.pair(EXEC);
        (0..LANES).filter(move |lane| exec >> lane & 1 != 0)
    }

    fn scalar(&self, operand: Operand) -> Result<u32, Stop> {
        Ok(match operand {
            Operand::Sgpr(number) => self.sgpr(number),
            Operand::Constant(value) => value,
            Operand::VccZ => u32::from(self.pair(VCC) == 0),
            Operand::ExecZ => u32::from(self.pair(EXEC) == 0),
            Operand::Scc => u32::from(self.scc),
            Operand::Vgpr(_) => return broken("a vector register as a scalar"),
        })
    }

    fn scalar64(&self, operand: Operand) -> Result<u64, Stop> {
        Ok(match operand {
            Operand::Sgpr(number) => self.pair(number),
            // A 32-bit constant is sign extended.
            Operand::Constant(value) => i64::from(value as i32) as u64,
            other => u64::from(self.scalar(other)?),
        })
    }

    fn vector(&self, operand: Operand) -> Result<[u32; LANES], Stop> {
        match operand {
            Operand::Vgpr(number) => self.vgpr(number).copied(),
            other => Ok([self.scalar(other)?; LANES]),
        }
    }

    fn vgpr(&self, number: u8) -> Result<&[u32; LANES], Stop> {
        let number = usize::from(number);
        if number >= self.limit {
            return broken("a vector register beyond its own");
        }
        Ok(self.vgprs.get(number).unwrap_or(&ZERO))
    }

    fn vgpr_mut(&mut self, number: u8) -> Result<&mut [u32; LANES], Stop> {
        let number = usize::from(number);
        if number < self.limit && number >= self.vgprs.len() {
            self.vgprs.resize(number + 1, ZERO);
        }
        let found = self.vgprs.get_mut(number);
        found.map_or_else(|| broken("a vector register beyond its own"), Ok)
    }

    /// Executes one instruction; `next` is the address after it. Says where to go on.
    fn execute<B: Bus + ?Sized>(
        &mut self,
        bus: &B,
        by: &Requester,
        inst: Inst,
        next: u64,
    ) -> Result<u64, Stop> {
        match inst {
            Inst::Nothing => {}
            Inst::EndPgm => return Err(Stop::Ended),
            Inst::Branch { condition, offset } => {
                let taken = match condition {
                    Condition::Always => true,
                    Condition::Scc(set) => self.scc == set,
                    Condition::VccZ(zero) => (self.pair(VCC) == 0) == zero,
                    Condition::ExecZ(zero) => (self.pair(EXEC) == 0) == zero,
                };
                if taken {
                    return Ok(next.wrapping_add((i64::from(offset) * 4) as u64));
                }
            }
            Inst::MovK { dst, value } => self.set_sgpr(dst, i32::from(value) as u32),
            Inst::SMov { dst, src, wide: false } => {
                let value = self.scalar(src)?;
                self.set_sgpr(dst, value);
            }
            Inst::SMov { dst, src, wide: true } => {
                let value = self.scalar64(src)?;
                self.set_pair(dst, value);
            }
            Inst::Scalar { op, dst, a, b } => {
                let (a, b) = (u64::from(self.scalar(a)?), u64::from(self.scalar(b)?));
                let (value, carry) = match op {
                    ScalarOp::AddU32 => (a + b, a + b > u64::from(u32::MAX)),
                    ScalarOp::SubU32 => (a.wrapping_sub(b), b > a),
                    ScalarOp::AddcU32 => {
                        let sum = a + b + u64::from(self.scc);
                        (sum, sum > u64::from(u32::MAX))
                    }
                };
                self.set_sgpr(dst, value as u32);
                self.scc = carry;
            }
            Inst::SCompare { how, signed, a, b } => {
                self.scc = compare(how, signed, self.scalar(a)?, self.scalar(b)?);
            }
            Inst::SLoad { dst, base, offset, dwords } => {
                let offset = match offset {
                    Ok(immediate) => i64::from(immediate) as u64,
                    Err(sgpr) => u64::from(self.sgpr(sgpr)),
                };
                let from = self.pair(base).wrapping_add(offset) & !3;
                let mut bytes = [0; 64];
                let bytes = bytes.get_mut(..usize::from(dwords) * 4).unwrap_or_default();
                bus.read(by, from, bytes)?;
                for (n, dword) in (0u8..).zip(bytes.chunks_exact(4)) {
                    let value = dword.try_into().map_or(0, u32::from_le_bytes);
                    let dst = dst.saturating_add(n);
                    if dst >= M0 || (dst >= VCC && dwords > 2) {
                        return broken("a scalar load beyond the scalar registers");
                    }
                    self.set_sgpr(dst, value);
                }
            }
            Inst::VMov { dst, src } => {
                let value = self.vector(src)?;
                self.store(dst, &value)?;
            }
            Inst::Vector { op, dst, a, b, carry_out, carry_in } => {
                let (a, b) = (self.vector(a)?, self.vector(b)?);
                let carry_in = self.scalar64(carry_in)?;
                let mut value = [0; LANES];
                let mut carries = 0;
                for lane in self.active() {
                    let (x, y) = (lane_of(&a, lane), lane_of(&b, lane));
                    let (sum, carry) = match op {
                        VectorOp::LshlRev => (u64::from(y) << (x & 31), false),
                        VectorOp::Add | VectorOp::AddCo => {
                            let sum = u64::from(x) + u64::from(y);
                            (sum, sum > u64::from(u32::MAX))
                        }
                        VectorOp::AddcCo => {
                            let sum = u64::from(x) + u64::from(y) + (carry_in >> lane & 1);
                            (sum, sum > u64::from(u32::MAX))
                        }
                    };
                    if let Some(value) = value.get_mut(lane) {
                        *value = sum as u32;
                    }
                    carries |= u64::from(carry) << lane;
                }
                self.store(dst, &value)?;
                if matches!(op, VectorOp::AddCo | VectorOp::AddcCo) {
                    self.set_pair(carry_out, carries);
                }
            }
            Inst::VCompare { how, signed, dst, a, b } => {
                let (a, b) = (self.vector(a)?, self.vector(b)?);
                let mask = self.active().fold(0, |mask, lane| {
                    let holds = compare(how, signed, lane_of(&a, lane), lane_of(&b, lane));
                    mask | u64::from(holds) << lane
                });
                self.set_pair(dst, mask);
            }
            Inst::Memory { load, dwords, data, addr, base, offset } => {
                self.memory(bus, by, load, dwords, data, addr, base, offset)?;
            }
        }
        Ok(next)
    }

    #[allow(clippy::too_many_arguments)]
    fn memory<B: Bus + ?Sized>(
        &mut self,
        bus: &B,
        by: &Requester,
        load: bool,
        dwords: u8,
        data: u8,
        addr: u8,
        base: Option<u8>,
        offset: i32,
    ) -> Result<(), Stop> {
        let low = *self.vgpr(addr)?;
        let high = match base {
            None => *self.vgpr(addr.saturating_add(1))?,
            Some(_) => [0; LANES],
        };
        let base = base.map_or(0, |base| self.pair(base));
        let count = usize::from(dwords);
        // Check that the registers are there before anything happens.
        self.vgpr(data.saturating_add(dwords - 1))?;
        let mut loaded = vec![[0u32; LANES]; count];
        let lanes: Vec<usize> = self.active().collect();
        for lane in lanes {
            let at = u64::from(lane_of(&low, lane)) | u64::from(lane_of(&high, lane)) << 32;
            let at = at.wrapping_add(base).wrapping_add(i64::from(offset) as u64) & !3;
            let mut bytes = [0; 16];
            let bytes = bytes.get_mut(..count * 4).unwrap_or_default();
            if load {
                bus.read(by, at, bytes)?;
                for (register, dword) in loaded.iter_mut().zip(bytes.chunks_exact(4)) {
                    if let Some(value) = register.get_mut(lane) {
                        *value = dword.try_into().map_or(0, u32::from_le_bytes);
                    }
                }
            } else {
                for (n, dword) in (0u8..).zip(bytes.chunks_exact_mut(4)) {
                    let value = lane_of(self.vgpr(data.saturating_add(n))?, lane);
                    dword.copy_from_slice(&value.to_le_bytes());
                }
                bus.store(by, at, bytes)?;
            }
        }
        if load {
            for (n, value) in (0u8..).zip(&loaded) {
                self.store(data.saturating_add(n), value)?;
            }
        }
        Ok(())
    }

    /// Writes the active lanes of a vector register.
    fn store(&mut self, dst: u8, value: &[u32; LANES]) -> Result<(), Stop> {
        let exec = self.pair(EXEC);
        let vgpr = self.vgpr_mut(dst)?;
        for (lane, (to, from)) in vgpr.iter_mut().zip(value).enumerate() {
            if exec >> lane & 1 != 0 {
                *to = *from;
            }
        }
        Ok(())
    }
}

fn lane_of(vector: &[u32; LANES], lane: usize) -> u32 {
    vector.get(lane).copied().unwrap_or(0)
}

fn compare(how: Compare, signed: bool, a: u32, b: u32) -> bool {
    let order = if signed { (a as i32).cmp(&(b as i32)) } else { a.cmp(&b) };
    match how {
        Compare::Eq => order.is_eq(),
        Compare::Ne => order.is_ne(),
        Compare::Lt => order.is_lt(),
        Compare::Le => order.is_le(),
        Compare::Gt => order.is_gt(),
        Compare::Ge => order.is_ge(),
    }
}

#[cfg(test)]
mod tests;
