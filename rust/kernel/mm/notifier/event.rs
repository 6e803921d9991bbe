// SPDX-License-Identifier: GPL-2.0

//! Why the CPU page tables change.

use crate::bindings;

/// Why the CPU page tables change.
///
/// C: `enum mmu_notifier_event`. Whatever the event is, the pages of its span must not be used
/// after the invalidation: the event tells only what a user may do beyond that.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The addresses are not mapped any more: `munmap()`, the old place of an `mremap()`, exit.
    Unmap,
    /// Page table entries are cleared, for many reasons: `madvise()`, reclaim, truncation,
    /// migration, copy on write. Also used for events that this version does not know.
    Clear,
    /// The protection of a whole VMA changes: `mprotect()`, NUMA hints.
    ProtectionVma,
    /// The protection of single pages changes: `fork()`, writeback.
    ProtectionPage,
    /// Soft-dirty tracking is reset; same pages, same protection.
    SoftDirty,
    /// The address space ends; it covers the notifier's whole span.
    Release,
    /// Pages are migrated to or from device memory.
    /// [`is_owner`](super::Invalidation::is_owner) tells whose.
    Migrate,
    /// Pages become exclusive to a device.
    /// [`is_owner`](super::Invalidation::is_owner) tells whose.
    Exclusive,
}

impl Event {
    /// Converts a C event. One that is not known is the most general one.
    pub(super) fn from_raw(event: bindings::mmu_notifier_event) -> Self {
        match event {
            bindings::mmu_notifier_event_MMU_NOTIFY_UNMAP => Self::Unmap,
            bindings::mmu_notifier_event_MMU_NOTIFY_PROTECTION_VMA => Self::ProtectionVma,
            bindings::mmu_notifier_event_MMU_NOTIFY_PROTECTION_PAGE => Self::ProtectionPage,
            bindings::mmu_notifier_event_MMU_NOTIFY_SOFT_DIRTY => Self::SoftDirty,
            bindings::mmu_notifier_event_MMU_NOTIFY_RELEASE => Self::Release,
            bindings::mmu_notifier_event_MMU_NOTIFY_MIGRATE => Self::Migrate,
            bindings::mmu_notifier_event_MMU_NOTIFY_EXCLUSIVE => Self::Exclusive,
            _ => Self::Clear,
        }
    }
}
