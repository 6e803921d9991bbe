// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Devices that may reach each other's memory.

use core::ptr::NonNull;

use kernel::{
    io::PhysAddr,
    mm::pagemap::Owner,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    }, //
};

use super::{
    DevMem,
    Inner, //
};

/// Devices whose mirrors see each other's private memory.
///
/// The core mm shows private memory only to who knows its owner; to all others it is as if it were
/// swapped out. The members of a group have one owner in common. Whether a device can in fact reach a
/// page of another one is for [`Driver::peer_address`](super::super::Driver::peer_address) to say.
///
/// `drm_pagemap_acquire_owner()` in
/// [`drivers/gpu/drm/drm_pagemap_util.c`](srctree/drivers/gpu/drm/drm_pagemap_util.c) makes groups out
/// of a predicate instead, which have to be cliques.
#[pin_data]
pub struct Group {
    owner: Arc<Owner>,
    /// Names the events of passes that take system memory only: see [`Self::token`].
    token: Arc<Owner>,
    #[pin]
    members: Mutex<KVec<Arc<Inner>>>,
}

impl Group {
    /// A group without members. Sleeps.
    pub fn new() -> Result<Arc<Self>> {
        let owner = Owner::new(GFP_KERNEL)?;
        let token = Owner::new(GFP_KERNEL)?;

        Arc::pin_init(
            pin_init!(Self {
                owner,
                token,
                members <- new_mutex!(KVec::new(), "gpusvm::devmem::Group"),
            }),
            GFP_KERNEL,
        )
    }

    pub(super) fn owner(&self) -> &Arc<Owner> {
        &self.owner
    }

    /// What walks have to name to see the members' memory.
    pub(in super::super) fn owner_ptr(&self) -> NonNull<c_void> {
        self.owner.as_ptr()
    }

    /// What a pass to a device names in its events instead of the owner.
    ///
    /// Such a pass selects system memory only, so its owner selects nothing, and is but a name. From it
    /// an invalidation learns that this pass leaves the group's device memory where it is (PM-1).
    pub(super) fn token(&self) -> &Arc<Owner> {
        &self.token
    }

    pub(in super::super) fn token_ptr(&self) -> NonNull<c_void> {
        self.token.as_ptr()
    }

    /// Whether there is anybody but one.
    pub(super) fn is_shared(&self) -> bool {
        self.members.lock().len() > 1
    }

    /// The member whose memory contains `phys`. Sleeps.
    pub(in super::super) fn find(&self, phys: PhysAddr) -> Option<DevMem> {
        let members = self.members.lock();
        let member = members
            .iter()
            .find(|member| member.map.offset_of_phys(phys).is_some())?;

        Some(DevMem(member.clone()))
    }

    pub(super) fn join(&self, member: Arc<Inner>) -> Result {
        Ok(self.members.lock().push(member, GFP_KERNEL)?)
    }

    pub(super) fn leave(&self, member: &Inner) {
        let mut members = self.members.lock();
        let at = members.iter().position(|m| core::ptr::eq(&**m, member));
        let gone = at.and_then(|at| members.remove(at).ok());

        drop(members);
        // Perhaps the last reference but the caller's.
        drop(gone);
    }
}
