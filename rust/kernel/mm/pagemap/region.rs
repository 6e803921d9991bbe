// SPDX-License-Identifier: GPL-2.0

//! The physical addresses of device memory.

use crate::{
    bindings,
    error::from_err_ptr,
    io::PhysAddr,
    prelude::*,
    sizes::SZ_2M, //
};
use core::ops::Range;

/// What the memory map can be extended by: sub-sections.
const GRANULE: usize = SZ_2M;

/// Where the physical addresses of device memory come from.
#[derive(Clone, Debug)]
pub enum Place {
    /// So many bytes anywhere where there is nothing, for memory that the CPU cannot access.
    Free(usize),
    /// Where the memory is.
    At(Range<PhysAddr>),
}

/// Physical addresses that are reserved for us.
///
/// # Invariants
///
/// `start` and `reserved` describe a region that we have requested from the memory resource.
pub(super) struct Region {
    start: PhysAddr,
    /// How many bytes are used, which is at most [`Self::reserved`].
    len: usize,
    reserved: PhysAddr,
}

impl Region {
    /// Reserves `place`, named `name` in `/proc/iomem`.
    ///
    /// - `EINVAL`: it is empty or not made of whole sub-sections of 2 MiB;
    /// - `EBUSY`: it is in use;
    /// - `ENOMEM`, `ERANGE`: no place was found.
    pub(super) fn new(place: &Place, name: &'static CStr) -> Result<Self> {
        match place {
            Place::Free(len) => Self::free(*len, name),
            Place::At(range) => Self::at(range, name),
        }
    }

    fn free(len: usize, name: &'static CStr) -> Result<Self> {
        if len == 0 || len % GRANULE != 0 {
            return Err(EINVAL);
        }

        // SAFETY: `name` lives as long as the resource: it is static, and what it is in stays while
        // there is a `Region`.
        let resource = from_err_ptr(unsafe {
            bindings::request_free_mem_region(
                &raw mut bindings::iomem_resource,
                len,
                name.as_char_ptr(),
            )
        })?;
        // SAFETY: The resource is ours until we release it.
        let (start, end) = unsafe { ((*resource).start, (*resource).end) };

        // INVARIANT: This is what we have got.
        Ok(Self {
            start,
            len,
            reserved: end - start + 1,
        })
    }

    fn at(range: &Range<PhysAddr>, name: &'static CStr) -> Result<Self> {
        let len = range.end.checked_sub(range.start).ok_or(EINVAL)?;
        // CAST: A page map exists on 64 bit only.
        let (start, size) = (range.start as usize, len as usize);
        if size == 0 || start % GRANULE != 0 || size % GRANULE != 0 {
            return Err(EINVAL);
        }

        // SAFETY: As in `free`.
        let resource = unsafe {
            bindings::__request_region(
                &raw mut bindings::iomem_resource,
                range.start,
                len,
                name.as_char_ptr(),
                0,
            )
        };
        if resource.is_null() {
            return Err(EBUSY);
        }

        // INVARIANT: This is what we have got.
        Ok(Self {
            start: range.start,
            len: size,
            reserved: len,
        })
    }

    pub(super) fn start(&self) -> PhysAddr {
        self.start
    }

    /// The number of bytes in use.
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, this is a region that we have requested.
        unsafe {
            bindings::__release_region(&raw mut bindings::iomem_resource, self.start, self.reserved)
        };
    }
}
