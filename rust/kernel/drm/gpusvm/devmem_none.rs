// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Device memory in a kernel without `CONFIG_DEVICE_PRIVATE`: there can be none.

use core::{
    ops::Range,
    ptr::NonNull, //
};

use kernel::{
    io::PhysAddr,
    mm::MmWithUser,
    prelude::*, //
};

#[path = "devmem/options.rs"]
mod options;

pub use self::options::{
    MigrateOptions,
    Migrated, //
};

/// A device's memory, of which there is none in this kernel.
#[derive(Clone)]
pub enum DevMem {}

/// Devices that may reach each other's memory, of which there are none in this kernel.
pub(super) enum Group {}

impl DevMem {
    pub(super) fn group(&self) -> &Group {
        match *self {}
    }

    pub(super) fn size(&self) -> u64 {
        match *self {}
    }

    pub(super) fn offset_of(&self, _phys: PhysAddr) -> Option<u64> {
        match *self {}
    }

    pub(super) fn touch(&self, _offset: u64) {
        match *self {}
    }

    pub(super) fn migrate_in(
        &self,
        _mm: &MmWithUser,
        _span: Range<usize>,
        _options: &MigrateOptions,
    ) -> Result<Migrated> {
        match *self {}
    }

    pub(super) fn migrate_out(
        &self,
        _mm: &MmWithUser,
        _span: Range<usize>,
        _options: &MigrateOptions,
    ) -> Result<Migrated> {
        match *self {}
    }
}

impl Group {
    pub(super) fn owner_ptr(&self) -> NonNull<c_void> {
        match *self {}
    }

    pub(super) fn token_ptr(&self) -> NonNull<c_void> {
        match *self {}
    }

    pub(super) fn find(&self, _phys: PhysAddr) -> Option<DevMem> {
        match *self {}
    }
}
