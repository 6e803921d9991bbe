// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What migrations are asked for, and what they achieve.

use kernel::time::Delta;

/// How to migrate.
#[derive(Copy, Clone, Debug)]
pub struct MigrateOptions {
    /// CPU faults on what has moved to the device wait until so much time has passed, once each, so
    /// that the device gets something done with it.
    pub timeslice: Option<Delta>,
    /// Make room in the device's memory by eviction.
    pub evict: bool,
    /// Addresses where the process has no memory yet get zeroed device memory.
    pub populate: bool,
}

impl Default for MigrateOptions {
    fn default() -> Self {
        Self {
            timeslice: None,
            evict: true,
            populate: true,
        }
    }
}

/// What a migration achieved, in pages.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Migrated {
    /// Pages that moved.
    pub moved: usize,
    /// Of these, pages in large folios.
    pub moved_large: usize,
    /// Pages that did not: they are there already, cannot be migrated, are in use by somebody else,
    /// or there was no room.
    pub skipped: usize,
}
