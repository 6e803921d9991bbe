// SPDX-License-Identifier: GPL-2.0

//! The only file of this driver with `unsafe` code: what the `kernel` crate does not offer safely.

use core::ptr::NonNull;

use kernel::{
    bindings,
    container_of,
    device::{
        Bound,
        Core,
        Device, //
    },
    devres,
    dma::{
        Device as _,
        DmaAddress,
        DmaMask, //
    },
    drm,
    error::from_err_ptr,
    miscdevice::MiscDeviceRegistration,
    module_param::KernelParam,
    new_srcu,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    pci,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            ordering::{
                Acquire,
                Full,
                Relaxed,
                Release, //
            },
            Atomic, //
        },
        srcu::Srcu,
        Arc, //
    },
    transmute::FromBytes,
    uapi, //
};

use crate::{
    device::VsvmDrm,
    dmirror::{
        Dmirror,
        Node, //
    }, //
};

/// A PCI ID by number, for a vendor that the `pci` module has no name for.
pub(crate) const fn pci_device_id(vendor: u32, device: u32) -> pci::DeviceId {
    let id = bindings::pci_device_id {
        vendor,
        device,
        subvendor: !0,
        subdevice: !0,
        class: 0,
        class_mask: 0,
        driver_data: 0,
        override_only: 0,
    };
    // SAFETY: `pci::DeviceId` is a transparent wrapper of `struct pci_device_id` without further
    // invariants.
    unsafe { core::mem::transmute::<bindings::pci_device_id, pci::DeviceId>(id) }
}

/// Lets the device use 64-bit DMA addresses.
///
/// QEMU's device masks the addresses itself, by 28 bits unless it is started with
/// `dma_mask=0xffffffffffffffff`.
pub(crate) fn set_dma_mask_64(pdev: &pci::Device<Core<'_>>) -> Result {
    // SAFETY: `Core` says that the device is being probed: nobody uses it for DMA yet.
    unsafe { pdev.dma_set_mask_and_coherent(DmaMask::new::<64>()) }
}

/// Registers the DRM device with user space.
///
/// The result belongs into the private data of the PCI device, which is dropped at unbind.
pub(crate) fn register<'bound>(
    pdev: &'bound pci::Device<Bound>,
    drm: drm::UnregisteredDevice<VsvmDrm>,
) -> Result<drm::Registration<'bound, VsvmDrm>> {
    // SAFETY: The only caller is `probe`, which stores the registration in the private data of the
    // device and so drops it at unbind. The registration data is `()` and borrows nothing.
    unsafe { drm::Registration::new(pdev.as_ref(), drm, (), 0) }
}

/// How the engine reaches memory, as chosen by the module parameter `engine`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum EngineKind {
    /// `engine=cpu`.
    Cpu,
    /// `engine=dma`.
    Dma,
}

/// Nonzero for `engine=dma`.
static ENGINE: Atomic<u32> = Atomic::new(0);

/// The value of the module parameter `engine`.
pub(crate) fn engine_kind() -> EngineKind {
    match ENGINE.load(Relaxed) {
        0 => EngineKind::Cpu,
        _ => EngineKind::Dma,
    }
}

/// Sets the module parameter `engine`. `module!` has no parameters that are words.
///
/// # Safety
///
/// `value` must be null or point to a string that is valid during the call.
unsafe extern "C" fn set_engine(
    value: *const c_char,
    _param: *const bindings::kernel_param,
) -> c_int {
    if value.is_null() {
        return EINVAL.to_errno();
    }
    // SAFETY: `value` is not null, hence a valid string by the safety requirement.
    let value = unsafe { CStr::from_char_ptr(value) };
    let kind = match value.to_bytes() {
        b"cpu" => 0,
        b"dma" => 1,
        _ => return EINVAL.to_errno(),
    };

    ENGINE.store(kind, Relaxed);
    0
}

static ENGINE_OPS: bindings::kernel_param_ops = bindings::kernel_param_ops {
    flags: 0,
    set: Some(set_engine),
    get: None,
    free: None,
};

#[link_section = "__param"]
#[used(compiler)]
static ENGINE_PARAM: KernelParam = KernelParam::new(bindings::kernel_param {
    name: kernel::str::as_char_ptr_in_const_context(if cfg!(MODULE) {
        c"engine"
    } else {
        c"vsvm.engine"
    }),
    #[cfg(MODULE)]
    mod_: (&raw const bindings::__this_module).cast_mut(),
    #[cfg(not(MODULE))]
    mod_: core::ptr::null_mut(),
    ops: &raw const ENGINE_OPS,
    // Not in sysfs: it cannot be changed later.
    perm: 0,
    level: -1,
    flags: 0,
    __bindgen_anon_1: bindings::kernel_param__bindgen_ty_1 {
        arg: core::ptr::null_mut(),
    },
});

/// Calls `f` with the memory that a DMA access of `dev` to `addr..addr + len` would reach, mapped.
///
/// `f` gets a pointer that is valid for reads and writes of `len` bytes; others, in user space too,
/// may access the memory at the same time. It must not sleep. Fails with `EFAULT` if the address
/// does not resolve to memory, as a device would be told by the bus, or if the span crosses a page.
fn with_dma<R>(
    dev: &Device<Bound>,
    addr: DmaAddress,
    len: usize,
    f: impl FnOnce(*mut u8) -> R,
) -> Result<R> {
    // CAST: `Device` is a transparent wrapper of `struct device`.
    let raw = core::ptr::from_ref(dev)
        .cast::<bindings::device>()
        .cast_mut();
    // SAFETY: `raw` is a valid device.
    let domain = unsafe { bindings::iommu_get_domain_for_dev(raw) };
    let phys = if domain.is_null() {
        addr
    } else {
        // SAFETY: A device keeps its domain while a driver is bound to it, and `dev` is bound.
        unsafe { bindings::iommu_iova_to_phys(domain, addr) }
    };
    // CAST: 64-bit only, and the remainder is smaller than a page.
    let offset = phys as usize % PAGE_SIZE;
    let pfn = phys as usize / PAGE_SIZE;

    // Zero is how the IOMMU says that nothing is mapped, and memory is not handed out there.
    if phys == 0 || offset.checked_add(len).is_none_or(|end| end > PAGE_SIZE) {
        return Err(EFAULT);
    }
    // SAFETY: Any number may be asked for.
    if !unsafe { bindings::pfn_valid(pfn) } {
        return Err(EFAULT);
    }
    // SAFETY: The page frame has a page.
    let page = unsafe { bindings::pfn_to_page(pfn) };
    // SAFETY: `page` is valid. That it is memory which the device may access is what the library
    // guarantees for a DMA address that is in the page table, until `wait` has returned, and the
    // callers hold the lock that `wait` takes. The IOMMU's answer above is a second witness.
    let map = unsafe { bindings::kmap_local_page(page) }.cast::<u8>();
    // OVERFLOW: `offset` is inside of the page, and so is the result.
    let result = f(map.wrapping_add(offset));

    // SAFETY: `map` was mapped above, and is the last mapping since `f` makes none that it keeps.
    unsafe { bindings::kunmap_local(map.cast()) };
    Ok(result)
}

/// Copies memory at the DMA address `addr` to `buf`.
///
/// The caller holds the TLB lock under which it translated to `addr`. See [`with_dma`] for errors.
pub(crate) fn read(dev: &Device<Bound>, addr: DmaAddress, buf: &mut [u8]) -> Result {
    let len = buf.len();

    with_dma(dev, addr, len, |mem| {
        // Not a Rust copy: user space may write at the same time.
        // SAFETY: Both are valid for `len` bytes and do not overlap, since `buf` is kernel memory.
        unsafe { bindings::memcpy(buf.as_mut_ptr().cast(), mem.cast(), len) };
    })
}

/// Copies `buf` to memory at the DMA address `addr`.
///
/// The caller holds the TLB lock under which it translated to `addr`. See [`with_dma`] for errors.
pub(crate) fn write(dev: &Device<Bound>, addr: DmaAddress, buf: &[u8]) -> Result {
    let len = buf.len();

    with_dma(dev, addr, len, |mem| {
        // Not a Rust copy: user space may read and write at the same time.
        // SAFETY: Both are valid for `len` bytes and do not overlap, since `buf` is kernel memory.
        unsafe { bindings::memcpy(mem.cast(), buf.as_ptr().cast(), len) };
    })
}

/// Adds `value` to each 64-bit word at the DMA address `addr`, atomically; the words as they were
/// before go to `old`, whose length says how many there are.
///
/// The caller holds the TLB lock under which it translated to `addr`. Fails with `EINVAL` if `addr`
/// is not a multiple of 8; see [`with_dma`] for other errors.
pub(crate) fn add(dev: &Device<Bound>, addr: DmaAddress, value: u64, old: &mut [u8]) -> Result {
    if addr % 8 != 0 {
        return Err(EINVAL);
    }
    with_dma(dev, addr, old.len(), |mem| {
        for (i, old) in old.chunks_exact_mut(8).enumerate() {
            // OVERFLOW: Inside of the page.
            let word = mem.wrapping_add(i * 8).cast::<u64>();
            // SAFETY: The word is valid and aligned, since pages are and `addr` is. Everybody in
            // the kernel who accesses it at the same time does it in this way or by `memcpy`.
            let word = unsafe { Atomic::from_ptr(word) };

            old.copy_from_slice(&word.fetch_add(value, Full).to_ne_bytes());
        }
    })
}

/// Order of the CPU's huge pages of the lower size.
pub(crate) const PMD_ORDER: u32 = bindings::PMD_SIZE.ilog2() - PAGE_SHIFT as u32;

/// The node that a registration belongs to.
pub(crate) fn node_of(misc: &MiscDeviceRegistration<Dmirror>) -> &Node {
    // SAFETY: By the invariant of `Node` the registration is in a node, which lives at least as
    // long, and is initialised but for the registration itself when this can be called.
    unsafe { &*container_of!(core::ptr::from_ref(misc), Node, misc) }
}

/// A command as user space writes it.
#[repr(transparent)]
pub(crate) struct UserCommand(uapi::drm_vsvm_command);

// SAFETY: The structure consists of integers without padding between them.
unsafe impl FromBytes for UserCommand {}

impl UserCommand {
    /// The command.
    pub(crate) fn get(&self) -> &uapi::drm_vsvm_command {
        &self.0
    }
}

/// What a [`Thread`] runs.
pub(crate) trait ThreadMain: Send + Sync + 'static {
    /// Runs in a kernel thread until it is told to end, and then returns soon.
    ///
    /// Being told is up to the implementer, [`Thread`] only adds a fatal signal that ends what is
    /// killable.
    fn main(&self);
}

/// A kernel thread on `T`. Dropping it kills it, and sleeps until it has ended.
///
/// # Invariants
///
/// `task` is a kernel thread that was made with a pointer to `_data`, and of which this owns a
/// reference.
pub(crate) struct Thread<T: ThreadMain> {
    task: NonNull<bindings::task_struct>,
    _data: Arc<T>,
}

// SAFETY: A kernel thread can be stopped from any task, and `Arc<T>` is `Send` as `T` is `Send` and
// `Sync`.
unsafe impl<T: ThreadMain> Send for Thread<T> {}

impl<T: ThreadMain> Thread<T> {
    /// Starts a thread. Sleeps.
    pub(crate) fn start(data: Arc<T>) -> Result<Self> {
        // SAFETY: The format takes no arguments. `data` is a valid argument of `enter` while the
        // thread exists, see `drop`.
        let task = from_err_ptr(unsafe {
            bindings::kthread_create_on_node(
                Some(Self::enter),
                Arc::as_ptr(&data).cast_mut().cast(),
                bindings::NUMA_NO_NODE,
                c"vsvm".as_char_ptr(),
            )
        })?;
        let task = NonNull::new(task).ok_or(ENOMEM)?;

        // SAFETY: The thread was made and does not run, hence it exists.
        unsafe { bindings::get_task_struct(task.as_ptr()) };
        // SAFETY: As above.
        unsafe { bindings::wake_up_process(task.as_ptr()) };
        // INVARIANT: The reference is the one that was taken here.
        Ok(Self { task, _data: data })
    }

    /// The first function of the thread.
    ///
    /// # Safety
    ///
    /// `data` must point to a `T` that lives until the thread has ended.
    unsafe extern "C" fn enter(data: *mut c_void) -> c_int {
        // The value 3 is what `allow_kernel_signal()` passes: take signals of the kernel only.
        // SAFETY: A handler of a kernel thread is a mark, it is never called. An `Option` of a
        // function pointer may have any value but null for `Some`.
        unsafe {
            bindings::kernel_sigaction(
                bindings::SIGKILL as c_int,
                core::mem::transmute::<usize, bindings::__sighandler_t>(3),
            )
        };
        // SAFETY: By the safety requirement.
        unsafe { &*data.cast::<T>() }.main();
        0
    }
}

impl<T: ThreadMain> Drop for Thread<T> {
    fn drop(&mut self) {
        let task = self.task.as_ptr();

        // SAFETY: By the type invariant `task` is valid. A signal sent to a thread that has ended,
        // or that has not begun to take it, is lost, and then it is not needed.
        unsafe { bindings::send_sig(bindings::SIGKILL as c_int, task, 1) };
        // Waits for the end of the thread; if it had not begun to run yet it never will. After it
        // nobody uses `data` any more.
        // SAFETY: `task` is a kernel thread that only this stops, and the reference keeps it.
        unsafe { bindings::kthread_stop(task) };
        // SAFETY: This is the reference of the type invariant, and not used any more.
        unsafe { bindings::put_task_struct(task) };
    }
}

/// A PCI device that may be unbound at any time, and access to it while it is not.
///
/// The `kernel` crate's [`Devres`](devres::Devres) does the same, but lets its users not sleep.
///
/// # Invariants
///
/// While `open` is true, and until an SRCU grace period has passed since it became false, `pdev`
/// is bound to this driver.
#[pin_data]
pub(crate) struct BoundDevice {
    pdev: ARef<pci::Device>,
    open: Atomic<bool>,
    #[pin]
    srcu: Srcu,
}

/// Closes a [`BoundDevice`] when devres lets go of it.
struct Closer(Arc<BoundDevice>);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl BoundDevice {
    /// Gives access to `pdev` until it is unbound.
    pub(crate) fn new(pdev: &pci::Device<Bound>) -> Result<Arc<Self>> {
        let this = Arc::pin_init(
            try_pin_init!(Self {
                pdev: pdev.into(),
                // INVARIANT: `pdev` is bound now, and the `Closer` below is dropped by devres
                // before unbinding is complete; if it cannot be registered it is dropped at once.
                open: Atomic::new(true),
                srcu <- new_srcu!(),
            }),
            GFP_KERNEL,
        )?;
        devres::register(pdev.as_ref(), Closer(this.clone()), GFP_KERNEL)?;
        Ok(this)
    }

    /// Calls `f` with the bound device; [`None`] if it is unbound.
    ///
    /// `f` may sleep; unbinding waits for it.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&pci::Device<Bound>) -> R) -> Option<R> {
        let _guard = self.srcu.read_lock();
        if !self.open.load(Acquire) {
            return None;
        }
        let dev: &Device = (*self.pdev).as_ref();
        // SAFETY: `open` was true inside this SRCU read section, which `close` waits for. By the
        // type invariant the device is bound until then.
        let dev = unsafe { dev.as_bound() };
        let pdev: &pci::Device<Bound> = dev.try_into().ok()?;
        Some(f(pdev))
    }

    fn close(&self) {
        // INVARIANT: The device is still bound for the grace period, since devres calls this
        // before it is unbound.
        self.open.store(false, Release);
        self.srcu.synchronize();
    }
}
