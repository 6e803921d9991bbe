// SPDX-License-Identifier: GPL-2.0

//! Scratch memory of migrations.

use crate::{
    alloc::Flags,
    mm::pagemap::PMD_PAGES,
    prelude::*, //
};

/// Scratch memory for one window of a migration.
///
/// It is used again and again, so that a migration does not allocate. Several windows at the same time
/// need one each.
pub struct Buffer {
    /// What C calls `src` and `dst`.
    pub(super) src: KVVec<usize>,
    pub(super) dst: KVVec<usize>,
    /// References to `struct anon_vma` for what was collected by frame number, 0 for none.
    pub(super) pins: KVVec<usize>,
}

impl Buffer {
    /// Allocates scratch memory.
    pub fn new(flags: Flags) -> Result<Self> {
        Ok(Self {
            src: KVVec::zeroed(PMD_PAGES, flags)?,
            dst: KVVec::zeroed(PMD_PAGES, flags)?,
            pins: KVVec::zeroed(PMD_PAGES, flags)?,
        })
    }

    /// Forgets what an earlier migration has left.
    pub(super) fn clear(&mut self) {
        self.src.fill(0);
        self.dst.fill(0);
        self.pins.fill(0);
    }
}
