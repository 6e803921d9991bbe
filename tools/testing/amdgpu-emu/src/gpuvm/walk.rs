// SPDX-License-Identifier: GPL-2.0

//! The page table walk of one VMID, a pure function of the tables in memory.
//!
//! The walker knows `depth` levels of directories (`VM_CONTEXTn_CNTL.PAGE_TABLE_DEPTH`), of which
//! the lowest one's entries stand for 2^(9 + `block_size`) pages, and below them one page table
//! block. The driver's `translate_further` layout is: depth 2, block size 9, and a block whose
//! entries stand for 2^9 pages each (the directory entry's block fragment size says so) and are
//! either the mapping of these 2 MiB or, with TF set, point to a table of 4 KiB entries. What the
//! driver calls PDB2, PDB1, PDB0, PTB is therefore directory, directory, block, further table.

use super::{Entry, Space};

/// log2 of the bytes of a GPU page, `AMDGPU_GPU_PAGE_SHIFT`.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes of a GPU page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Bytes of an entry.
pub const ENTRY_SIZE: u64 = 8;
/// log2 of the entries of a directory, and of the pages of the smallest block.
const LEVEL_BITS: u32 = 9;
/// A virtual address has 48 bits; a sign extension above them is ignored.
const VA_MASK: u64 = (1 << 48) - 1;
/// `PAGE_TABLE_DEPTH` values that a walk accepts (PDB3 is the highest there is).
const MAX_DEPTH: u8 = 4;

/// Where the tables of a VMID are, from its context registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// `PAGE_TABLE_BASE_ADDR`: an entry that points to the root.
    pub root: u64,
    /// Levels of directories above the page table block; 0 is one flat table.
    pub depth: u8,
    /// log2 of the pages of a block, minus 9.
    pub block_size: u8,
    /// First page of the address space.
    pub start: u64,
    /// Last page of the address space.
    pub end: u64,
}

/// A mapping that the walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The entry that maps it.
    pub entry: Entry,
    /// Where that entry is.
    pub at: (Space, u64),
    /// log2 of the bytes that it maps.
    pub shift: u32,
}

impl Leaf {
    /// The memory behind `va`: the entry's address plus the offset in the leaf. The address of a
    /// leaf larger than a page need not be aligned to it.
    pub fn resolve(&self, va: u64) -> Option<u64> {
        self.entry.page_address().checked_add(va & ((1 << self.shift) - 1))
    }

    /// First address of the leaf that contains `va`.
    pub fn first(&self, va: u64) -> u64 {
        va & VA_MASK & !((1 << self.shift) - 1)
    }
}

/// Why a walk ended without a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// The address is outside of the context's range.
    Range,
    /// An entry is not valid.
    Invalid {
        /// That entry.
        entry: Entry,
        /// How many levels below the root.
        level: u8,
        /// Where it is.
        at: (Space, u64),
    },
    /// The tables themselves cannot be read, or describe what does not exist.
    Broken {
        /// How many levels below the root.
        level: u8,
        /// Which entry or table.
        at: (Space, u64),
    },
}

/// Finds the mapping of `va`; `load` reads one entry of a table.
pub fn walk<L>(tables: &Tables, va: u64, mut load: L) -> Result<Leaf, WalkError>
where
    L: FnMut(Space, u64) -> Option<u64>,
{
    let page = (va & VA_MASK) >> PAGE_SHIFT;
    if page < tables.start || page > tables.end {
        return Err(WalkError::Range);
    }
    let page = page - tables.start;
    let root = Entry(tables.root);
    let mut table = (root.space(), root.table_address());
    let mut level = 0u8;
    if !root.valid() {
        return Err(WalkError::Invalid { entry: root, level, at: table });
    }
    let mut fetch = |table: (Space, u64), index: u64, level: u8| {
        let at = index.checked_mul(ENTRY_SIZE).and_then(|offset| table.1.checked_add(offset));
        let at = (table.0, at.ok_or(WalkError::Broken { level, at: table })?);
        let entry = load(at.0, at.1).map(Entry).ok_or(WalkError::Broken { level, at })?;
        Ok((entry, at))
    };
    if tables.depth == 0 {
        let (entry, at) = fetch(table, page, level)?;
        return leaf(entry, at, PAGE_SHIFT, level);
    }
    let block_bits = LEVEL_BITS + u32::from(tables.block_size);
    let top = block_bits + LEVEL_BITS * u32::from(tables.depth - 1);
    if tables.depth > MAX_DEPTH || top + PAGE_SHIFT >= u64::BITS {
        return Err(WalkError::Broken { level, at: table });
    }
    // The root is as long as the range needs; each directory below it has 512 entries.
    let mut index = page >> top;
    let mut shift = top;
    let block_fragment = loop {
        let (entry, at) = fetch(table, index, level)?;
        if !entry.valid() {
            return Err(WalkError::Invalid { entry, level, at });
        }
        if entry.is_leaf_of_directory() {
            return leaf(entry, at, shift + PAGE_SHIFT, level);
        }
        table = (entry.space(), entry.table_address());
        level += 1;
        if shift == block_bits {
            break entry.block_fragment_size();
        }
        shift -= LEVEL_BITS;
        index = (page >> shift) & ((1 << LEVEL_BITS) - 1);
    };
    if block_fragment > block_bits {
        return Err(WalkError::Broken { level, at: table });
    }
    let index = (page & ((1 << block_bits) - 1)) >> block_fragment;
    let (entry, at) = fetch(table, index, level)?;
    if !entry.valid() || !entry.translate_further() || block_fragment == 0 {
        return leaf(entry, at, block_fragment + PAGE_SHIFT, level);
    }
    let further = (entry.space(), entry.table_address());
    let (entry, at) = fetch(further, page & ((1 << block_fragment) - 1), level + 1)?;
    leaf(entry, at, PAGE_SHIFT, level + 1)
}

fn leaf(entry: Entry, at: (Space, u64), shift: u32, level: u8) -> Result<Leaf, WalkError> {
    if entry.valid() || entry.partially_resident() {
        Ok(Leaf { entry, at, shift })
    } else {
        Err(WalkError::Invalid { entry, level, at })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;

    use amdgpu_regs::pte;

    use super::*;

    const V: u64 = pte::AMDGPU_PTE_VALID;
    const S: u64 = pte::AMDGPU_PTE_SYSTEM;
    const RW: u64 = pte::AMDGPU_PTE_READABLE | pte::AMDGPU_PTE_WRITEABLE;
    const TF: u64 = pte::AMDGPU_PTE_TF;
    const P: u64 = pte::AMDGPU_PDE_PTE;
    const BFS9: u64 = 9 << 59;

    /// The driver's layout of gfx 9.4.3: 48 bits, depth 2, block size 9.
    pub(crate) const DRIVER: Tables =
        Tables { root: 0x10_0000 | V, depth: 2, block_size: 9, start: 0, end: (1 << 36) - 1 };

    struct Memory(HashMap<(Space, u64), u64>);

    impl Memory {
        fn new(entries: &[(Space, u64, u64)]) -> Self {
            Self(entries.iter().map(|&(space, at, value)| ((space, at), value)).collect())
        }

        fn walk(&self, tables: &Tables, va: u64) -> Result<Leaf, WalkError> {
            walk(tables, va, |space, at| self.0.get(&(space, at)).copied())
        }
    }

    /// Directories for the first GiB of `va`s at 0x7f00_0000_0000.
    const VA: u64 = 0x7f00_0000_0000;
    fn upper() -> Vec<(Space, u64, u64)> {
        vec![
            (Space::Vram, 0x10_0000 + (VA >> 39) * 8, 0x20_0000 | V),
            (Space::Vram, 0x20_0000 + ((VA >> 30) & 511) * 8, 0x30_0000 | V | BFS9),
        ]
    }

    #[test]
    fn four_levels_down_to_a_page() {
        let mut entries = upper();
        entries.push((Space::Vram, 0x30_0000 + 3 * 8, 0x40_0000 | V | TF));
        entries.push((Space::Vram, 0x40_0000 + 5 * 8, 0x1_2345_6000 | V | S | RW));
        let memory = Memory::new(&entries);
        let va = VA + 3 * (2 << 20) + 5 * 4096 + 0x123;
        let leaf = memory.walk(&DRIVER, va).unwrap();
        assert_eq!(leaf.shift, 12);
        assert_eq!(leaf.entry.space(), Space::System);
        assert_eq!(leaf.resolve(va), Some(0x1_2345_6123));
        assert_eq!(leaf.at, (Space::Vram, 0x40_0000 + 5 * 8));
        // Sign extended addresses of the upper half are the same 48 bits.
        assert_eq!(memory.walk(&DRIVER, va | 0xffff << 48), Ok(leaf));
    }

    #[test]
    fn table_in_system_memory() {
        let mut entries = upper();
        entries.push((Space::Vram, 0x30_0000, 0x40_0000 | V | S | TF));
        entries.push((Space::System, 0x40_0000, 0x7000 | V | RW));
        assert_eq!(Memory::new(&entries).walk(&DRIVER, VA).unwrap().entry.space(), Space::Vram);
    }

    #[test]
    fn leaf_of_two_mib_need_not_be_aligned() {
        let mut entries = upper();
        entries.push((Space::Vram, 0x30_0000 + 8, 0x0765_4000 | V | RW));
        let va = VA + (2 << 20) + 0x1f_f678;
        let leaf = Memory::new(&entries).walk(&DRIVER, va).unwrap();
        assert_eq!(leaf.shift, 21);
        assert_eq!(leaf.resolve(va), Some(0x0765_4000 + 0x1f_f678));
        assert_eq!(leaf.first(va), VA + (2 << 20));
    }

    #[test]
    fn leaf_directories() {
        let entries = [
            (Space::Vram, 0x10_0000 + (VA >> 39) * 8, 0x20_0000 | V),
            (Space::Vram, 0x20_0000 + ((VA >> 30) & 511) * 8, 0x4000_0000 | V | RW | P),
        ];
        assert_eq!(Memory::new(&entries).walk(&DRIVER, VA + 0x1234_5678).unwrap().shift, 30);
        let entries = [(Space::Vram, 0x10_0000 + (VA >> 39) * 8, V | RW | P)];
        assert_eq!(Memory::new(&entries).walk(&DRIVER, VA).unwrap().shift, 39);
    }

    #[test]
    fn what_the_driver_writes_to_clear_is_invalid() {
        // gmc_v9_0_get_vm_pde() at PDB0 for a cleared leaf: address bit 12, no flag.
        let mut entries = upper();
        entries.push((Space::Vram, 0x30_0000, 0x1000));
        // ... and TF without VALID does not lead on.
        entries.push((Space::Vram, 0x30_0000 + 8, 0x40_0000 | TF));
        // EXECUTABLE alone is the cleared 4 KiB entry.
        entries.push((Space::Vram, 0x30_0000 + 16, 0x50_0000 | V | TF));
        entries.push((Space::Vram, 0x50_0000, pte::AMDGPU_PTE_EXECUTABLE));
        let memory = Memory::new(&entries);
        for index in 0..3 {
            let error = memory.walk(&DRIVER, VA + index * (2 << 20)).unwrap_err();
            assert!(matches!(error, WalkError::Invalid { .. }), "{index}: {error:?}");
        }
    }

    #[test]
    fn flat_table_of_vmid_0() {
        let tables =
            Tables { root: 0x50_0000 | V, depth: 0, block_size: 0, start: 0x100, end: 0x1ff };
        let memory = Memory::new(&[(Space::Vram, 0x50_0000 + 8, 0x9000 | V | S | RW)]);
        assert_eq!(memory.walk(&tables, 0x10_1abc).unwrap().resolve(0x10_1abc), Some(0x9abc));
        assert_eq!(memory.walk(&tables, 0xf_f000), Err(WalkError::Range));
        assert_eq!(memory.walk(&tables, 0x20_0000), Err(WalkError::Range));
    }

    #[test]
    fn without_translate_further() {
        // Depth 3 and block size 0, as other gfx9 chips: the block's entries are 4 KiB.
        let tables = Tables { root: 0x1000 | V, depth: 3, block_size: 0, start: 0, end: u64::MAX };
        let memory = Memory::new(&[
            (Space::Vram, 0x1000, 0x2000 | V),
            (Space::Vram, 0x2000, 0x3000 | V),
            (Space::Vram, 0x3000 + 8, 0x4000 | V),
            (Space::Vram, 0x4000 + 16, 0xabc_d000 | V | RW | TF),
        ]);
        let leaf = memory.walk(&tables, (2 << 20) + 0x2000).unwrap();
        assert_eq!((leaf.shift, leaf.entry.page_address()), (12, 0xabc_d000));
    }

    #[test]
    fn hostile_tables_end_in_an_error() {
        let broken = |tables: Tables, memory: &Memory| {
            matches!(memory.walk(&tables, 0), Err(WalkError::Broken { .. }))
        };
        assert!(broken(DRIVER, &Memory::new(&[])));
        assert!(broken(Tables { depth: 200, ..DRIVER }, &Memory::new(&[])));
        assert!(broken(Tables { block_size: 255, ..DRIVER }, &Memory::new(&[])));
        // A block fragment size larger than the block.
        let memory = Memory::new(&[
            (Space::Vram, 0x10_0000, 0x20_0000 | V),
            (Space::Vram, 0x20_0000, 0x30_0000 | V | 31 << 59),
        ]);
        assert!(broken(DRIVER, &memory));
        assert!(matches!(
            Memory::new(&[]).walk(&Tables { root: 0, ..DRIVER }, 0),
            Err(WalkError::Invalid { level: 0, .. })
        ));
    }
}
