// SPDX-License-Identifier: GPL-2.0

//! The encodings of GFX9 instructions, as AMD's "Vega" and "CDNA3" instruction set manuals
//! describe them; only those instructions that the shaders of AMD's SVM tests are made of, and
//! their next relatives.

/// The operand number that says that a literal follows.
const LITERAL: u32 = 255;
/// Operand numbers of vector registers begin here.
const VGPR: u32 = 256;

/// A scalar source or destination, or a vector register, by operand number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// A scalar register, including VCC, M0 and EXEC, by its number.
    Sgpr(u8),
    /// A vector register.
    Vgpr(u8),
    /// A number.
    Constant(u32),
    /// VCC is zero.
    VccZ,
    /// EXEC is zero.
    ExecZ,
    /// The scalar condition code.
    Scc,
}

/// How two numbers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// What a branch depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Always,
    Scc(bool),
    VccZ(bool),
    ExecZ(bool),
}

/// A scalar operation with two sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScalarOp {
    AddU32,
    SubU32,
    AddcU32,
}

/// A vector operation with two sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorOp {
    /// The second source, shifted left by the first.
    LshlRev,
    /// A sum without carry.
    Add,
    /// A sum whose carry goes to a mask.
    AddCo,
    /// A sum with a carry from a mask.
    AddcCo,
}

/// An instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inst {
    /// Nothing that can be seen here: waits, cache writebacks, sleeps.
    Nothing,
    /// The end of the wave.
    EndPgm,
    /// A branch by dwords from the next instruction.
    Branch { condition: Condition, offset: i16 },
    /// A sign extended 16-bit number to a scalar register.
    MovK { dst: u8, value: i16 },
    /// Moves a scalar.
    SMov { dst: u8, src: Operand, wide: bool },
    /// Computes with scalars.
    Scalar { op: ScalarOp, dst: u8, a: Operand, b: Operand },
    /// Compares scalars into SCC.
    SCompare { how: Compare, signed: bool, a: Operand, b: Operand },
    /// Loads scalars.
    SLoad { dst: u8, base: u8, offset: Result<i32, u8>, dwords: u8 },
    /// Moves a vector.
    VMov { dst: u8, src: Operand },
    /// Computes with vectors; carries go to and come from scalar register pairs.
    Vector { op: VectorOp, dst: u8, a: Operand, b: Operand, carry_out: u8, carry_in: Operand },
    /// Compares vectors into a scalar register pair.
    VCompare { how: Compare, signed: bool, dst: u8, a: Operand, b: Operand },
    /// Loads or stores dwords per lane, at a 64-bit address (or a scalar base and 32 bits).
    Memory { load: bool, dwords: u8, data: u8, addr: u8, base: Option<u8>, offset: i32 },
}

/// An instruction and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The instruction.
    pub inst: Inst,
    /// Its length in bytes.
    pub bytes: u64,
}

/// What is not an instruction that the interpreter knows: its encoding and opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// The name of its encoding.
    pub encoding: &'static str,
    /// The opcode within the encoding.
    pub opcode: u32,
    /// The instruction's first dword.
    pub dword: u32,
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} opcode {:#x} (dword {:#010x})", self.encoding, self.opcode, self.dword)
    }
}

/// VCC and EXEC as numbers of scalar registers.
pub const VCC: u8 = 106;
/// See [`VCC`].
pub const EXEC: u8 = 126;
/// M0's number.
pub const M0: u8 = 124;

fn bits(dword: u32, low: u32, count: u32) -> u32 {
    dword >> low & ((1 << count) - 1)
}

/// The source that an operand number means; `literal` is the dword after the instruction.
fn operand(number: u32, literal: u32) -> Option<Operand> {
    Some(match number {
        0..=101 | 106 | 107 | 124 | 126 | 127 => Operand::Sgpr(number as u8),
        128..=192 => Operand::Constant(number - 128),
        193..=208 => Operand::Constant(192u32.wrapping_sub(number)),
        240 => Operand::Constant(0.5f32.to_bits()),
        241 => Operand::Constant((-0.5f32).to_bits()),
        242 => Operand::Constant(1.0f32.to_bits()),
        243 => Operand::Constant((-1.0f32).to_bits()),
        244 => Operand::Constant(2.0f32.to_bits()),
        245 => Operand::Constant((-2.0f32).to_bits()),
        246 => Operand::Constant(4.0f32.to_bits()),
        247 => Operand::Constant((-4.0f32).to_bits()),
        251 => Operand::VccZ,
        252 => Operand::ExecZ,
        253 => Operand::Scc,
        LITERAL => Operand::Constant(literal),
        VGPR..=511 => Operand::Vgpr((number - VGPR) as u8),
        _ => return None,
    })
}

/// A scalar register that can be written.
fn destination(number: u32) -> Option<u8> {
    match operand(number, 0) {
        Some(Operand::Sgpr(sgpr)) => Some(sgpr),
        _ => None,
    }
}

/// Decodes the instruction that begins with `first`; `second` is the dword after it.
///
/// # Errors
///
/// If the interpreter does not know it.
pub fn decode(first: u32, second: u32) -> Result<Decoded, Unknown> {
    let (encoding, opcode, decoded) = if bits(first, 31, 1) == 0 {
        vop(first, second)
    } else if bits(first, 30, 2) == 0b10 {
        sop(first, second)
    } else {
        match bits(first, 26, 6) {
            0b110000 => ("SMEM", bits(first, 18, 8), smem(first, second)),
            0b110100 => ("VOP3", bits(first, 16, 10), vop3(first, second)),
            0b110111 => ("FLAT", bits(first, 18, 7), flat(first, second)),
            other => ("encoding", other, None),
        }
    };
    decoded.ok_or(Unknown { encoding, opcode, dword: first })
}

type Answer = (&'static str, u32, Option<Decoded>);

/// Of an instruction with 9-bit or 8-bit sources: 8 bytes if one of them is a literal.
fn length(sources: &[u32]) -> u64 {
    if sources.contains(&LITERAL) {
        8
    } else {
        4
    }
}

fn sop(first: u32, second: u32) -> Answer {
    let (a, b) = (bits(first, 0, 8), bits(first, 8, 8));
    match bits(first, 23, 9) {
        0b1_0111_1111 => {
            let opcode = bits(first, 16, 7);
            ("SOPP", opcode, sopp(opcode, bits(first, 0, 16)))
        }
        0b1_0111_1110 => {
            let opcode = bits(first, 16, 7);
            let decoded = || {
                let (how, signed) = match opcode {
                    0..=5 => (compare_sop(opcode)?, true),
                    6..=11 => (compare_sop(opcode - 6)?, false),
                    _ => return None,
                };
                let (x, y) = (operand(a, second)?, operand(b, second)?);
                let inst = Inst::SCompare { how, signed, a: x, b: y };
                Some(Decoded { inst, bytes: length(&[a, b]) })
            };
            ("SOPC", opcode, decoded())
        }
        0b1_0111_1101 => {
            let opcode = bits(first, 8, 8);
            let decoded = || {
                let wide = match opcode {
                    0 => false,
                    1 => true,
                    _ => return None,
                };
                let dst = destination(bits(first, 16, 7))?;
                let inst = Inst::SMov { dst, src: operand(a, second)?, wide };
                Some(Decoded { inst, bytes: length(&[a]) })
            };
            ("SOP1", opcode, decoded())
        }
        _ if bits(first, 28, 4) == 0b1011 => {
            let opcode = bits(first, 23, 5);
            let decoded = || {
                let dst = destination(bits(first, 16, 7))?;
                let inst = Inst::MovK { dst, value: bits(first, 0, 16) as u16 as i16 };
                (opcode == 0).then_some(Decoded { inst, bytes: 4 })
            };
            ("SOPK", opcode, decoded())
        }
        _ => {
            let opcode = bits(first, 23, 7);
            let decoded = || {
                let op = match opcode {
                    0 => ScalarOp::AddU32,
                    1 => ScalarOp::SubU32,
                    4 => ScalarOp::AddcU32,
                    _ => return None,
                };
                let dst = destination(bits(first, 16, 7))?;
                let inst = Inst::Scalar { op, dst, a: operand(a, second)?, b: operand(b, second)? };
                Some(Decoded { inst, bytes: length(&[a, b]) })
            };
            ("SOP2", opcode, decoded())
        }
    }
}

fn compare_sop(opcode: u32) -> Option<Compare> {
    Some(match opcode {
        0 => Compare::Eq,
        1 => Compare::Ne,
        2 => Compare::Gt,
        3 => Compare::Ge,
        4 => Compare::Lt,
        5 => Compare::Le,
        _ => return None,
    })
}

fn sopp(opcode: u32, immediate: u32) -> Option<Decoded> {
    let offset = immediate as u16 as i16;
    let branch = |condition| Inst::Branch { condition, offset };
    let inst = match opcode {
        // s_nop, s_waitcnt, s_sleep, s_icache_inv.
        0 | 12 | 14 | 19 => Inst::Nothing,
        1 => Inst::EndPgm,
        2 => branch(Condition::Always),
        4 => branch(Condition::Scc(false)),
        5 => branch(Condition::Scc(true)),
        6 => branch(Condition::VccZ(true)),
        7 => branch(Condition::VccZ(false)),
        8 => branch(Condition::ExecZ(true)),
        9 => branch(Condition::ExecZ(false)),
        _ => return None,
    };
    Some(Decoded { inst, bytes: 4 })
}

fn smem(first: u32, second: u32) -> Option<Decoded> {
    let opcode = bits(first, 18, 8);
    let dwords = match opcode {
        0..=4 => 1 << opcode,
        // s_dcache_inv, s_dcache_wb and their volatile variants.
        0x20..=0x23 => return Some(Decoded { inst: Inst::Nothing, bytes: 8 }),
        _ => return None,
    };
    // One of an immediate and a register offset; both at once is not known here.
    let immediate = bits(first, 17, 1) != 0;
    if bits(first, 14, 1) != 0 {
        return None;
    }
    let offset = if immediate {
        Ok((bits(second, 0, 21) << 11) as i32 >> 11)
    } else {
        Err(destination(bits(second, 0, 7))?)
    };
    let inst = Inst::SLoad {
        dst: destination(bits(first, 6, 7))?,
        base: destination(bits(first, 0, 6) << 1)?,
        offset,
        dwords,
    };
    Some(Decoded { inst, bytes: 8 })
}

fn vop(first: u32, second: u32) -> Answer {
    let a = bits(first, 0, 9);
    let b = VGPR + bits(first, 9, 8);
    let dst = bits(first, 17, 8) as u8;
    match bits(first, 25, 6) {
        0b111111 => {
            let opcode = bits(first, 9, 8);
            let decoded = || match opcode {
                0 => Some(Inst::Nothing),
                1 => Some(Inst::VMov { dst, src: operand(a, second)? }),
                _ => None,
            };
            ("VOP1", opcode, decoded().map(|inst| Decoded { inst, bytes: length(&[a]) }))
        }
        0b111110 => {
            let opcode = bits(first, 17, 8);
            let decoded = vcompare(opcode, VCC, operand(a, second), operand(b, second));
            ("VOPC", opcode, decoded.map(|inst| Decoded { inst, bytes: length(&[a]) }))
        }
        opcode => {
            let decoded = || {
                let op = vector_op(opcode)?;
                let (a, b) = (operand(a, second)?, operand(b, second)?);
                Some(Inst::Vector { op, dst, a, b, carry_out: VCC, carry_in: Operand::Sgpr(VCC) })
            };
            ("VOP2", opcode, decoded().map(|inst| Decoded { inst, bytes: length(&[a]) }))
        }
    }
}

/// By opcode of VOP2.
fn vector_op(opcode: u32) -> Option<VectorOp> {
    Some(match opcode {
        0x12 => VectorOp::LshlRev,
        0x19 => VectorOp::AddCo,
        0x1c => VectorOp::AddcCo,
        0x34 => VectorOp::Add,
        _ => return None,
    })
}

/// By opcode of VOPC.
fn vcompare(opcode: u32, dst: u8, a: Option<Operand>, b: Option<Operand>) -> Option<Inst> {
    let how = match opcode & 7 {
        1 => Compare::Lt,
        2 => Compare::Eq,
        3 => Compare::Le,
        4 => Compare::Gt,
        5 => Compare::Ne,
        6 => Compare::Ge,
        _ => return None,
    };
    let signed = match opcode & !7 {
        0xc0 => true,
        0xc8 => false,
        _ => return None,
    };
    Some(Inst::VCompare { how, signed, dst, a: a?, b: b? })
}

fn vop3(first: u32, second: u32) -> Option<Decoded> {
    /// VOPC, VOP2 and VOP1 opcodes in VOP3.
    const VOP2: u32 = 0x100;
    const VOP1: u32 = 0x140;
    let opcode = bits(first, 16, 10);
    // Modifiers (absolute value, clamp, output modifier, negation) are not for integers.
    let carry = matches!(
        opcode.checked_sub(VOP2).and_then(vector_op),
        Some(VectorOp::AddCo | VectorOp::AddcCo)
    );
    let modifiers = if carry { bits(first, 15, 1) } else { bits(first, 8, 8) };
    if modifiers != 0 || bits(second, 27, 5) != 0 {
        return None;
    }
    let dst = bits(first, 0, 8);
    let a = operand(bits(second, 0, 9), 0);
    let b = operand(bits(second, 9, 9), 0);
    if [0, 9, 18].iter().any(|low| bits(second, *low, 9) == LITERAL) {
        return None;
    }
    let inst = if opcode < VOP2 {
        vcompare(opcode, destination(dst)?, a, b)?
    } else if opcode < VOP1 {
        let op = vector_op(opcode - VOP2)?;
        let (mut carry_out, mut carry_in) = (VCC, Operand::Sgpr(VCC));
        if carry {
            carry_out = destination(bits(first, 8, 7))?;
            carry_in = match operand(bits(second, 18, 9), 0)? {
                Operand::Sgpr(sgpr) => Operand::Sgpr(sgpr),
                _ if op == VectorOp::AddCo => carry_in,
                _ => return None,
            };
        }
        Inst::Vector { op, dst: dst as u8, a: a?, b: b?, carry_out, carry_in }
    } else if opcode == VOP1 + 1 {
        Inst::VMov { dst: dst as u8, src: a? }
    } else {
        return None;
    };
    Some(Decoded { inst, bytes: 8 })
}

fn flat(first: u32, second: u32) -> Option<Decoded> {
    /// Segments: flat and global.
    const FLAT: u32 = 0;
    const GLOBAL: u32 = 2;
    /// No scalar base.
    const OFF: u32 = 0x7f;
    let (load, dwords) = match bits(first, 18, 7) {
        0x14 => (true, 1),
        0x15 => (true, 2),
        0x16 => (true, 3),
        0x17 => (true, 4),
        0x1c => (false, 1),
        0x1d => (false, 2),
        0x1e => (false, 3),
        0x1f => (false, 4),
        _ => return None,
    };
    let lds = bits(first, 13, 1) != 0;
    // Accumulation registers are other registers.
    if lds || bits(second, 23, 1) != 0 {
        return None;
    }
    let saddr = bits(second, 16, 7);
    let (base, offset) = match bits(first, 14, 2) {
        FLAT => (None, bits(first, 0, 12) as i32),
        GLOBAL => {
            let base = if saddr == OFF { None } else { Some(destination(saddr)?) };
            (base, (bits(first, 0, 13) << 19) as i32 >> 19)
        }
        _ => return None,
    };
    let data = if load { bits(second, 24, 8) } else { bits(second, 8, 8) } as u8;
    let addr = bits(second, 0, 8) as u8;
    Some(Decoded { inst: Inst::Memory { load, dwords, data, addr, base, offset }, bytes: 8 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inst(bytes: &[u8]) -> Inst {
        let dword =
            |n: usize| bytes.get(n..n + 4).map_or(0, |b| u32::from_le_bytes(b.try_into().unwrap()));
        let decoded = decode(dword(0), dword(4)).unwrap();
        assert_eq!(decoded.bytes as usize, bytes.len());
        decoded.inst
    }

    const S: fn(u8) -> Operand = Operand::Sgpr;
    const V: fn(u8) -> Operand = Operand::Vgpr;

    /// As `llvm-mc -arch=amdgcn -mcpu=gfx942` encodes them.
    #[test]
    fn encodings_of_the_assembler() {
        assert_eq!(inst(&[0x03, 0x02, 0x0a, 0x7e]), Inst::VMov { dst: 5, src: S(3) });
        assert_eq!(
            inst(&[0xff, 0x02, 0x10, 0x7e, 0x78, 0x56, 0, 0]),
            Inst::VMov { dst: 8, src: Operand::Constant(0x5678) }
        );
        assert_eq!(
            inst(&[0xf2, 0x02, 0x02, 0x7e]),
            Inst::VMov { dst: 1, src: Operand::Constant(0x3f80_0000) }
        );
        assert_eq!(inst(&[0x70, 0x00, 0x8c, 0xbf]), Inst::Nothing);
        assert_eq!(inst(&[0x00, 0x00, 0x84, 0xc0, 0, 0, 0, 0]), Inst::Nothing);
        assert_eq!(inst(&[0x00, 0x00, 0x81, 0xbf]), Inst::EndPgm);
        let vector =
            |op, dst, a, b, carry_out| Inst::Vector { op, dst, a, b, carry_out, carry_in: S(VCC) };
        assert_eq!(
            inst(&[0x82, 0x00, 0x00, 0x24]),
            vector(VectorOp::LshlRev, 0, Operand::Constant(2), V(0), VCC)
        );
        assert_eq!(
            inst(&[0x01, 0x00, 0x12, 0xd1, 0x03, 0x04, 0x02, 0x00]),
            vector(VectorOp::LshlRev, 1, S(3), V(2), VCC)
        );
        assert_eq!(inst(&[0x02, 0x00, 0x08, 0x32]), vector(VectorOp::AddCo, 4, S(2), V(0), VCC));
        assert_eq!(
            inst(&[0x05, 0x6a, 0x1c, 0xd1, 0x05, 0x01, 0xa9, 0x01]),
            vector(VectorOp::AddcCo, 5, V(5), Operand::Constant(0), VCC)
        );
        assert_eq!(inst(&[0x05, 0x01, 0x0a, 0x38]), vector(VectorOp::AddcCo, 5, V(5), V(0), VCC));
        assert_eq!(inst(&[0x02, 0x07, 0x02, 0x68]), vector(VectorOp::Add, 1, V(2), V(3), VCC));
        let less = |dst| Inst::VCompare { how: Compare::Lt, signed: false, dst, a: V(9), b: V(11) };
        assert_eq!(inst(&[0x09, 0x17, 0x92, 0x7d]), less(VCC));
        assert_eq!(inst(&[0x04, 0x00, 0xc9, 0xd0, 0x09, 0x17, 0x02, 0x00]), less(4));
        assert_eq!(inst(&[0x78, 0x56, 0x08, 0xb0]), Inst::MovK { dst: 8, value: 0x5678 });
        assert_eq!(
            inst(&[0xff, 0x00, 0x85, 0xbe, 0x78, 0x56, 0x34, 0x12]),
            Inst::SMov { dst: 5, src: Operand::Constant(0x1234_5678), wide: false }
        );
        assert_eq!(
            inst(&[0x7e, 0x01, 0x84, 0xbe]),
            Inst::SMov { dst: 4, src: S(EXEC), wide: true }
        );
        assert_eq!(
            inst(&[0x01, 0x85, 0x80, 0x80]),
            Inst::Scalar { op: ScalarOp::SubU32, dst: 0, a: S(1), b: Operand::Constant(5) }
        );
        assert_eq!(
            inst(&[0x10, 0x08, 0x00, 0xbf]),
            Inst::SCompare { how: Compare::Eq, signed: true, a: S(16), b: S(8) }
        );
        assert_eq!(
            inst(&[0x00, 0x01, 0x07, 0xbf]),
            Inst::SCompare { how: Compare::Ne, signed: false, a: S(0), b: S(1) }
        );
    }

    #[test]
    fn branches() {
        let branch = |condition, offset| Inst::Branch { condition, offset };
        assert_eq!(inst(&[0x08, 0x00, 0x85, 0xbf]), branch(Condition::Scc(true), 8));
        assert_eq!(inst(&[0xf0, 0xff, 0x87, 0xbf]), branch(Condition::VccZ(false), -16));
        assert_eq!(inst(&[0xff, 0xff, 0x82, 0xbf]), branch(Condition::Always, -1));
        assert_eq!(inst(&[0x04, 0x00, 0x88, 0xbf]), branch(Condition::ExecZ(true), 4));
    }

    #[test]
    fn memory() {
        let sload = |dst, offset, dwords| Inst::SLoad { dst, base: 0, offset, dwords };
        assert_eq!(inst(&[0x00, 0x04, 0x03, 0xc0, 0, 0, 0, 0]), sload(16, Ok(0), 1));
        assert_eq!(inst(&[0x00, 0x01, 0x06, 0xc0, 0xf8, 0xff, 0x1f, 0]), sload(4, Ok(-8), 2));
        assert_eq!(inst(&[0x00, 0x01, 0x08, 0xc0, 0x09, 0, 0, 0]), sload(4, Err(9), 4));
        let memory = |load, dwords, data, addr, base, offset| Inst::Memory {
            load,
            dwords,
            data,
            addr,
            base,
            offset,
        };
        assert_eq!(inst(&[0x10, 0x00, 0x5c, 0xdc, 0, 0, 0, 4]), memory(true, 4, 4, 0, None, 16));
        assert_eq!(
            inst(&[0xf0, 0x9f, 0x50, 0xdc, 2, 0, 0x7f, 1]),
            memory(true, 1, 1, 2, None, -16)
        );
        assert_eq!(inst(&[0x10, 0x80, 0x50, 0xdc, 2, 0, 4, 1]), memory(true, 1, 1, 2, Some(4), 16));
        assert_eq!(inst(&[0x00, 0x80, 0x70, 0xdc, 2, 1, 0x7f, 0]), memory(false, 1, 1, 2, None, 0));
    }

    #[test]
    fn unknown_instructions_are_named() {
        // s_barrier, s_and_b64, v_cndmask_b32.
        for (dword, encoding, opcode) in
            [(0xbf8a_0000, "SOPP", 10), (0x8680_7e02, "SOP2", 13), (0x0002_0702, "VOP2", 0)]
        {
            assert_eq!(decode(dword, 0), Err(Unknown { encoding, opcode, dword }));
        }
        assert_eq!(decode(0xffff_ffff, 0).unwrap_err().encoding, "encoding");
    }

    #[test]
    fn any_dword_has_an_answer() {
        let mut state = 1u32;
        for _ in 0..200_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let _ = decode(state, state.rotate_left(13));
        }
    }
}
