// SPDX-License-Identifier: GPL-2.0

//! One entry of a page table, as `gmc_v9_0.c` describes it ("PTE format on VEGA 10").

use amdgpu_regs::pte;

use super::Space;

/// Address bits of an entry that describes a page (47:12).
const PAGE_ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// Address bits of an entry that points to a table (47:6).
const TABLE_ADDRESS: u64 = 0x0000_ffff_ffff_ffc0;
/// `AMDGPU_PTE_FRAG()`: log2 of the pages that a TLB may cache as one.
const FRAGMENT_SHIFT: u32 = 7;
const FRAGMENT_MASK: u64 = 0x1f;
/// `AMDGPU_PDE_BFS()`: log2 of the pages that an entry of the table below stands for.
const BLOCK_FRAGMENT_SHIFT: u32 = 59;

/// A page table entry or page directory entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry(pub u64);

impl Entry {
    fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    /// It points somewhere.
    pub fn valid(self) -> bool {
        self.has(pte::AMDGPU_PTE_VALID)
    }

    /// Which memory its address is of.
    pub fn space(self) -> Space {
        if self.has(pte::AMDGPU_PTE_SYSTEM) {
            Space::System
        } else {
            Space::Vram
        }
    }

    /// Reads are allowed.
    pub fn readable(self) -> bool {
        self.has(pte::AMDGPU_PTE_READABLE)
    }

    /// Writes are allowed.
    pub fn writable(self) -> bool {
        self.has(pte::AMDGPU_PTE_WRITEABLE)
    }

    /// Shaders may be fetched.
    pub fn executable(self) -> bool {
        self.has(pte::AMDGPU_PTE_EXECUTABLE)
    }

    /// Partially resident: if not valid, reads give zeroes and writes go nowhere.
    pub fn partially_resident(self) -> bool {
        self.has(pte::AMDGPU_PTE_PRT)
    }

    /// A directory entry that is itself the mapping ("P").
    pub fn is_leaf_of_directory(self) -> bool {
        self.has(pte::AMDGPU_PDE_PTE)
    }

    /// An entry of a page table block that points to one more table ("translate further").
    pub fn translate_further(self) -> bool {
        self.has(pte::AMDGPU_PTE_TF)
    }

    /// log2 of the pages of the fragment.
    pub fn fragment(self) -> u32 {
        ((self.0 >> FRAGMENT_SHIFT) & FRAGMENT_MASK) as u32
    }

    /// log2 of the pages that each entry of the table below stands for.
    pub fn block_fragment_size(self) -> u32 {
        (self.0 >> BLOCK_FRAGMENT_SHIFT) as u32
    }

    /// The address of the mapped memory.
    pub fn page_address(self) -> u64 {
        self.0 & PAGE_ADDRESS
    }

    /// The address of the table below.
    pub fn table_address(self) -> u64 {
        self.0 & TABLE_ADDRESS
    }

    /// The combination by which the driver forbids a retry: `AMDGPU_VM_NORETRY_FLAGS_TF`.
    pub fn forbids_retry(self) -> bool {
        let flags = pte::AMDGPU_PTE_VALID | pte::AMDGPU_PTE_SYSTEM | pte::AMDGPU_PTE_PRT;
        self.0 & flags == flags && !self.readable() && !self.writable()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        let entry = Entry(pte::AMDGPU_PTE_VALID | pte::AMDGPU_PTE_READABLE | 9 << 7 | 0x1234_5000);
        assert!(entry.valid() && entry.readable() && !entry.writable());
        assert_eq!(entry.space(), Space::Vram);
        assert_eq!(entry.fragment(), 9);
        assert_eq!(entry.page_address(), 0x1234_5000);
        assert_eq!(Entry(9 << 59).block_fragment_size(), 9);
        assert_eq!(Entry(0xffff_0000_0000_0040).table_address(), 0x40);
    }

    #[test]
    fn no_retry_needs_all_three_flags_and_no_right() {
        let flags = pte::AMDGPU_PTE_VALID | pte::AMDGPU_PTE_SYSTEM | pte::AMDGPU_PTE_PRT;
        assert!(Entry(flags).forbids_retry());
        assert!(!Entry(flags | pte::AMDGPU_PTE_READABLE).forbids_retry());
        assert!(!Entry(flags | pte::AMDGPU_PTE_WRITEABLE).forbids_retry());
        assert!(!Entry(flags & !pte::AMDGPU_PTE_PRT).forbids_retry());
    }
}
