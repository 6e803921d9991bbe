// SPDX-License-Identifier: GPL-2.0

//! The DRM device, and what all users of one device share.

use kernel::{
    device::{
        Bound,
        DeviceContext, //
    },
    drm::{
        self,
        gem,
        ioctl, //
    },
    new_mutex,
    pci,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
    uapi, //
};

use crate::{
    edu::Edu,
    ffi::{
        engine_kind,
        BoundDevice,
        EngineKind, //
    },
    file::File,
    gem::NoObject,
    memory::Memory,
    space::Space, //
};

/// The DRM driver.
pub(crate) struct VsvmDrm;

/// Most address spaces that can be open on one device: each has threads, which nobody else limits.
const MAX_SPACES: usize = uapi::VSVM_MAX_FILES as usize;

/// The DRM device of this driver.
pub(crate) type VsvmDevice<Ctx = drm::Normal> = drm::Device<VsvmDrm, Ctx>;

/// What all users of one device share.
#[pin_data]
pub(crate) struct Shared {
    bound: Arc<BoundDevice>,
    memory: Memory,
    /// The address spaces that are open; [`None`] when the device goes away.
    #[pin]
    spaces: Mutex<Option<KVec<Arc<Space>>>>,
}

impl Shared {
    /// Takes the device into use.
    pub(crate) fn new(pdev: &pci::Device<Bound>) -> Result<Arc<Self>> {
        let memory = match engine_kind() {
            EngineKind::Cpu => Memory::Cpu,
            EngineKind::Dma => Memory::Dma(Edu::new(pdev)?),
        };
        let bound = BoundDevice::new(pdev)?;

        Arc::pin_init(
            pin_init!(Self {
                bound,
                memory,
                spaces <- new_mutex!(Some(KVec::new()), "vsvm::Shared::spaces"),
            }),
            GFP_KERNEL,
        )
    }

    /// The device, which may be gone already.
    pub(crate) fn bound(&self) -> &BoundDevice {
        &self.bound
    }

    /// How engines reach memory.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Opens an address space for the current process. Sleeps.
    ///
    /// `EMFILE` if there are too many; for other errors see [`new_svm`](crate::space::new_svm).
    pub(crate) fn open(self: &Arc<Self>) -> Result<Arc<Space>> {
        let space = Space::new(self)?;
        let added = match &mut *self.spaces.lock() {
            Some(spaces) if spaces.len() >= MAX_SPACES => Err(EMFILE),
            Some(spaces) => spaces.push(space.clone(), GFP_KERNEL).map_err(Error::from),
            None => Err(ENODEV),
        };

        // `space` is dropped without the lock if it was not added.
        added.map(|()| space)
    }

    /// Closes an address space, and waits for its engines. Sleeps.
    pub(crate) fn close(&self, space: &Arc<Space>) {
        space.shut_down();
        if let Some(spaces) = &mut *self.spaces.lock() {
            // The caller has a reference too, so this one is not the last.
            spaces.retain(|s| !Arc::ptr_eq(s, space));
        }
    }

    /// The device goes away: ends the work of all engines, and opens no more. Sleeps.
    pub(crate) fn shut_down(&self) {
        let spaces = self.spaces.lock().take();

        // Dropped without the lock, and here, since the last reference to one may be dropped.
        for space in spaces.iter().flatten() {
            space.shut_down();
        }
    }
}

const INFO: drm::DriverInfo = drm::DriverInfo {
    major: 1,
    minor: 0,
    patchlevel: 0,
    name: c"vsvm",
    desc: c"Software GPU with shared virtual memory",
};

#[vtable]
impl drm::Driver for VsvmDrm {
    type Data = Arc<Shared>;
    type RegistrationData<'a> = ();
    type File = File;
    type Object = gem::Object<NoObject>;
    type ParentDevice<Ctx: DeviceContext> = pci::Device<Ctx>;

    const INFO: drm::DriverInfo = INFO;
    const FEAT_RENDER: bool = true;

    kernel::declare_drm_ioctls! {
        (VSVM_SUBMIT, drm_vsvm_submit, ioctl::RENDER_ALLOW, File::submit),
        (VSVM_WAIT, drm_vsvm_wait, ioctl::RENDER_ALLOW, File::wait),
        (VSVM_QUEUE, drm_vsvm_queue, ioctl::RENDER_ALLOW, File::queue),
        (VSVM_MAP_AHEAD, drm_vsvm_map_ahead, ioctl::RENDER_ALLOW, File::map_ahead),
        (VSVM_STATS, drm_vsvm_stats, ioctl::RENDER_ALLOW, File::stats),
        (VSVM_DEBUG, drm_vsvm_debug, ioctl::RENDER_ALLOW, File::debug),
    }
}
