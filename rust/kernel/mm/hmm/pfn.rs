// SPDX-License-Identifier: GPL-2.0

//! The entries of HMM's array.

use super::Access;
use crate::{
    bindings,
    io::PhysAddr,
    page::PAGE_SHIFT, //
};

const VALID: usize = bindings::hmm_pfn_flags_HMM_PFN_VALID;
const WRITE: usize = bindings::hmm_pfn_flags_HMM_PFN_WRITE;
const ERROR: usize = bindings::hmm_pfn_flags_HMM_PFN_ERROR;
const FLAGS: usize = bindings::hmm_pfn_flags_HMM_PFN_FLAGS;
const ORDER_SHIFT: usize = bindings::hmm_pfn_flags_HMM_PFN_ORDER_SHIFT;
const ORDER_MASK: usize = 0x1f;

/// Converts what is requested into input flags.
pub(super) fn request_flags(access: Option<Access>) -> usize {
    match access {
        None => 0,
        Some(Access::Read) => bindings::hmm_pfn_flags_HMM_PFN_REQ_FAULT,
        Some(Access::Write) => {
            bindings::hmm_pfn_flags_HMM_PFN_REQ_FAULT | bindings::hmm_pfn_flags_HMM_PFN_REQ_WRITE
        }
    }
}

/// What HMM says about one page.
///
/// Only [`valid`](Self::valid) entries have a number, a permission and an order: HMM leaves, for
/// example, an order in an entry of `hugetlb` memory that is not present.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(super) struct Pfn(usize);

impl Pfn {
    #[inline]
    pub(super) fn from_raw(raw: usize) -> Self {
        Self(raw)
    }

    /// The page is present and can be read.
    #[inline]
    pub(super) fn valid(self) -> bool {
        self.0 & VALID != 0
    }

    /// The page can never be accessed. Without this and [`valid`](Self::valid) it is not present.
    #[inline]
    pub(super) fn error(self) -> bool {
        self.0 & (VALID | ERROR) == ERROR
    }

    /// The page can be written.
    #[inline]
    pub(super) fn write(self) -> bool {
        self.0 & (VALID | WRITE) == VALID | WRITE
    }

    /// Whether `access` to the page is possible.
    #[inline]
    pub(super) fn allows(self, access: Access) -> bool {
        match access {
            Access::Read => self.valid(),
            Access::Write => self.write(),
        }
    }

    /// The page frame number.
    #[inline]
    pub(super) fn number(self) -> usize {
        self.0 & !FLAGS
    }

    /// The order of the CPU mapping that the page is in. It says nothing about what was walked.
    #[inline]
    pub(super) fn order(self) -> u32 {
        // CAST: The mask is less than 32.
        (self.0 >> ORDER_SHIFT & ORDER_MASK) as u32
    }

    #[inline]
    pub(super) fn phys(self) -> PhysAddr {
        to_phys(self.number())
    }
}

/// Returns the physical address of a page frame.
#[inline]
pub(super) fn to_phys(number: usize) -> PhysAddr {
    // CAST: Physical addresses are at least as wide as `usize` wherever HMM exists.
    (number as PhysAddr) << PAGE_SHIFT
}
