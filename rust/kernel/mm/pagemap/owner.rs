// SPDX-License-Identifier: GPL-2.0

//! To whom device memory belongs.

use crate::{
    alloc::Flags,
    prelude::*,
    sync::Arc, //
};
use core::ptr::NonNull;

/// An identity that device memory is marked with.
///
/// Walks and migrations find the memory of one owner only. Devices that can reach each other's memory
/// share one. Every page map holds a reference, so that no owner has the identity of an earlier one
/// whose pages still exist.
pub struct Owner {
    // An `Arc` of a type without a size need not have an address of its own.
    _identity: u8,
}

impl Owner {
    /// Creates an owner that differs from all others.
    pub fn new(flags: Flags) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { _identity: 0 }, flags)?)
    }

    /// Returns the identity, for [`hmm::Request::owner`] and [`Invalidation::is_owner`].
    ///
    /// [`hmm::Request::owner`]: crate::mm::hmm::Request::owner
    /// [`Invalidation::is_owner`]: crate::mm::notifier::Invalidation::is_owner
    pub fn as_ptr(&self) -> NonNull<c_void> {
        NonNull::from(self).cast()
    }
}
