// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A GPU without hardware, whose memory is a vector.

use core::ops::{
    Deref,
    Range, //
};

use kernel::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    dma::DmaAddress,
    kunit::mm::attach_mm,
    mm::MmWithUser,
    new_mutex,
    new_spinlock,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex,
        SpinLock, //
    }, //
};

use super::super::{
    super::{
        Access,
        Driver,
        FaultDone,
        FaultError,
        FaultOptions,
        GpuSvm,
        Place,
        Segment,
        ValidPages,
        BLOCK_SIZE,
        DEFAULT_CPU_WINDOW, //
    },
    CopyEngine,
    CopyOp,
    CopyPlan,
    DevMem,
    Fence,
    Group,
    MemoryConfig,
    MemoryKind,
    MigrateOptions,
    Migrated, //
};

/// What makes numbers of pages differ from addresses.
pub(super) const PATTERN: u64 = 0x5a5a_0000_0000_0000;

/// The memory of the device, and what its copy engine is told to do.
#[pin_data]
pub(super) struct Vram {
    #[pin]
    bytes: Mutex<KVVec<u8>>,
    /// Plans until one fails; negative: none does.
    fail_in: Atomic<i32>,
    /// It fails before it starts.
    refuse: Atomic<bool>,
    wakeable: Atomic<bool>,
    awake: Atomic<i32>,
    copies_asleep: Atomic<u32>,
}

impl Vram {
    fn new(size: usize) -> Result<Arc<Self>> {
        // Not zero, as memory is that somebody else has used.
        let bytes = KVVec::from_elem(0xff, size, GFP_KERNEL)?;

        Arc::pin_init(
            pin_init!(Self {
                bytes <- new_mutex!(bytes, "gpusvm::devmem::tests::Vram"),
                fail_in: Atomic::new(-1),
                refuse: Atomic::new(false),
                wakeable: Atomic::new(true),
                awake: Atomic::new(0),
                copies_asleep: Atomic::new(0),
            }),
            GFP_KERNEL,
        )
    }

    /// Has the plan after `nth` others fail, either when it is to start, or when it is under way.
    pub(super) fn fail(&self, nth: i32, refuse: bool) {
        self.refuse.store(refuse, Relaxed);
        self.fail_in.store(nth, Relaxed);
    }

    pub(super) fn fail_none(&self) {
        self.fail_in.store(-1, Relaxed);
    }

    pub(super) fn set_wakeable(&self, wakeable: bool) {
        self.wakeable.store(wakeable, Relaxed);
    }

    pub(super) fn is_asleep(&self) -> bool {
        self.awake.load(Relaxed) == 0
    }

    pub(super) fn copies_asleep(&self) -> u32 {
        self.copies_asleep.load(Relaxed)
    }

    fn execute(&self, op: &CopyOp) -> Option<()> {
        let mut bytes = self.bytes.lock();
        let place = |start: u64, len: usize| {
            let start = usize::try_from(start).ok()?;

            Some(start..start.checked_add(len)?)
        };

        match *op {
            CopyOp::In { src, dst, len } => {
                let dst = bytes.get_mut(place(dst, len)?)?;

                for (i, page) in dst.chunks_mut(PAGE_SIZE).enumerate() {
                    read_phys(src + (i * PAGE_SIZE) as u64, page);
                }
            }
            CopyOp::Out { src, dst, len } => {
                let src = bytes.get(place(src, len)?)?;

                for (i, page) in src.chunks(PAGE_SIZE).enumerate() {
                    write_phys(dst + (i * PAGE_SIZE) as u64, page);
                }
            }
            CopyOp::Zero { dst, len } => bytes.get_mut(place(dst, len)?)?.fill(0),
        }
        Some(())
    }

    fn access(&self, at: u64, value: Option<u64>) -> Result<u64> {
        let mut bytes = self.bytes.lock();
        let at = usize::try_from(at)?;
        let word = bytes.get_mut(at..at + 8).ok_or(EFAULT)?;

        if let Some(value) = value {
            word.copy_from_slice(&value.to_ne_bytes());
        }
        Ok(u64::from_ne_bytes(word.try_into().map_err(|_| EFAULT)?))
    }
}

/// Copies from one page of physical memory.
fn read_phys(phys: u64, to: &mut [u8]) {
    // SAFETY: The page is memory of the system that the library has mapped for the device. It is
    // unmapped in reverse order.
    unsafe {
        let page = bindings::pfn_to_page((phys >> PAGE_SHIFT) as usize);
        let map = bindings::kmap_local_page(page).cast::<u8>();
        let from = map.add(phys as usize % PAGE_SIZE);

        core::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len());
        bindings::kunmap_local(map.cast());
    }
}

/// Copies to one page of physical memory.
fn write_phys(phys: u64, from: &[u8]) {
    // SAFETY: As for `read_phys`.
    unsafe {
        let page = bindings::pfn_to_page((phys >> PAGE_SHIFT) as usize);
        let map = bindings::kmap_local_page(page).cast::<u8>();
        let to = map.add(phys as usize % PAGE_SIZE);

        core::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len());
        bindings::kunmap_local(map.cast());
    }
}

/// The copy engine: it is done before it returns.
struct Engine(Arc<Vram>);

impl CopyEngine for Engine {
    fn copy(&self, plan: CopyPlan) -> Result<Fence> {
        let vram = &self.0;
        let left = vram.fail_in.load(Relaxed);
        let (fence, signal) = Fence::new()?;

        kernel::task::might_sleep();
        if vram.is_asleep() {
            vram.copies_asleep.fetch_add(1, Relaxed);
        }
        if left >= 0 {
            vram.fail_in.store(left - 1, Relaxed);
        }
        if left == 0 {
            if vram.refuse.load(Relaxed) {
                return Err(EIO);
            }
            // Half of it is done: the first half of the copies.
            for op in plan.ops().iter().take(plan.ops().len() / 2) {
                vram.execute(op).ok_or(EINVAL)?;
            }
            signal.done(Err(EIO));
            return Ok(fence);
        }
        for op in plan.ops() {
            vram.execute(op).ok_or(EINVAL)?;
        }
        signal.done(Ok(()));
        Ok(fence)
    }

    fn wake(&self) -> Result {
        if !self.0.wakeable.load(Relaxed) {
            return Err(EIO);
        }
        self.0.awake.fetch_add(1, Relaxed);
        Ok(())
    }

    fn rest(&self) {
        self.0.awake.fetch_add(-1, Relaxed);
    }
}

/// A GPU whose page table is a list.
#[pin_data]
pub(super) struct Gpu {
    memory: DevMem,
    reach: Atomic<bool>,
    /// The capacity is reserved: `commit` must not allocate.
    #[pin]
    table: SpinLock<KVVec<Segment>>,
}

/// Enough for every page of the tests' mappings.
const CAPACITY: usize = 8192;

impl Gpu {
    fn new(memory: DevMem) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            memory,
            reach: Atomic::new(false),
            table <- {
                let table = KVVec::with_capacity(CAPACITY, GFP_KERNEL)?;

                new_spinlock!(table, "gpusvm::devmem::tests::Gpu")
            },
        })
    }

    /// Whether it can reach the memory of others.
    pub(super) fn set_reach(&self, reach: bool) {
        self.reach.store(reach, Relaxed);
    }

    /// Bytes, and entries, of the span that are mapped in `place`.
    fn mapped(&self, addr: usize, len: usize, place: Option<Place>) -> (usize, usize) {
        let table = self.table.lock();
        let (mut bytes, mut entries) = (0, 0);

        for seg in table.iter() {
            let start = seg.va.start.max(addr);
            let end = seg.va.end.min(addr + len);

            if start < end && place.is_none_or(|place| seg.place == place) {
                bytes += end - start;
                entries += 1;
            }
        }
        (bytes, entries)
    }

    pub(super) fn accessible(&self, addr: usize, len: usize) -> usize {
        self.mapped(addr, len, None).0
    }

    pub(super) fn peer(&self, addr: usize, len: usize) -> usize {
        self.mapped(addr, len, Some(Place::Peer)).0
    }

    fn translate(&self, addr: usize, write: bool) -> Option<(Place, u64)> {
        let table = self.table.lock();
        let seg = table.iter().find(|seg| seg.va.contains(&addr))?;

        (seg.write || !write).then(|| (seg.place, seg.dma + (addr - seg.va.start) as u64))
    }
}

impl Driver for Gpu {
    const NOTIFIER_SIZE: usize = kernel::sizes::SZ_8M;

    fn memory(&self) -> Option<&DevMem> {
        Some(&self.memory)
    }

    fn peer_address(&self, memory: &DevMem, span: Range<u64>) -> Option<DmaAddress> {
        let is_other = !memory.is_same(&self.memory) && span.end <= memory.size();

        (is_other && self.reach.load(Relaxed)).then_some(span.start)
    }

    fn prepare(&self, _span: Range<usize>) -> Result {
        kernel::task::might_sleep();
        Ok(())
    }

    fn commit(&self, pages: &ValidPages<'_>) -> Result {
        let mut table = self.table.lock();

        for seg in pages.iter() {
            table.push_within_capacity(seg).map_err(|_| ENOMEM)?;
        }
        Ok(())
    }

    fn stop(&self, span: Range<usize>) {
        self.table
            .lock()
            .retain(|seg| seg.va.end <= span.start || span.end <= seg.va.start);
    }

    fn wait(&self) {}
}

/// A mirror of the test's own address space, for a device with memory.
pub(super) struct Fixture {
    pub(super) svm: Arc<GpuSvm<Gpu>>,
    pub(super) memory: DevMem,
    pub(super) engine: Arc<Vram>,
    _mm: ARef<MmWithUser>,
    dev: *mut bindings::device,
}

/// A fixture on the heap: a failed assertion ends the thread without unwinding.
pub(super) struct Held(KBox<Fixture>);

impl Deref for Held {
    type Target = Fixture;

    fn deref(&self) -> &Fixture {
        &self.0
    }
}

impl Fixture {
    /// A device with so many chunks of memory.
    pub(super) fn create(chunks: usize) -> Result<Held> {
        Self::with(chunks, None, c"gpusvm-memory")
    }

    /// Two devices of one group.
    pub(super) fn pair(chunks: usize) -> Result<(Held, Held)> {
        let group = Group::new()?;

        Ok((
            Self::with(chunks, Some(group.clone()), c"gpusvm-memory0")?,
            Self::with(chunks, Some(group), c"gpusvm-memory1")?,
        ))
    }

    fn with(chunks: usize, group: Option<Arc<Group>>, name: &'static CStr) -> Result<Held> {
        let mm = attach_mm()?;
        // SAFETY: This runs in a test; the device is unregistered when it ends, or before.
        let dev = unsafe {
            let test = bindings::kunit_get_current_test();

            bindings::kunit_device_register(test, name.as_char_ptr())
        };
        let dev = kernel::error::from_err_ptr(dev)?;
        // Only now the DMA core finds out that the device needs no syncs.
        //
        // SAFETY: It was just registered, and has a DMA mask.
        kernel::error::to_result(unsafe { bindings::dma_set_mask(dev, u64::MAX) })?;
        // SAFETY: It was just registered and is bound to KUnit's driver.
        let bound: &Device<Bound> = unsafe { <Device>::from_raw(dev).as_bound() };
        let size = chunks * BLOCK_SIZE;
        let engine = Vram::new(size)?;
        let memory = DevMem::new(
            bound,
            MemoryConfig {
                kind: MemoryKind::Private,
                size: size as u64,
                group,
                cpu_window: DEFAULT_CPU_WINDOW,
            },
            Engine(engine.clone()),
        )?;
        let svm = GpuSvm::new(bound, &mm, Gpu::new(memory.clone()))?;
        let this = KBox::new(
            Self {
                svm,
                memory,
                engine,
                _mm: mm,
                dev,
            },
            GFP_KERNEL,
        )?;

        Ok(Held(this))
    }

    /// Unbinds the device while the mirror is alive.
    pub(super) fn unbind(&self) {
        // SAFETY: The device was registered by this test and is unregistered once.
        unsafe {
            let test = bindings::kunit_get_current_test();

            bindings::kunit_device_unregister(test, self.dev);
        }
    }

    pub(super) fn migrate_in(&self, addr: usize, len: usize) -> Result<Migrated> {
        self.svm
            .migrate_to_device(addr..addr + len, &MigrateOptions::default())
    }

    pub(super) fn migrate_out(&self, addr: usize, len: usize) -> Result<Migrated> {
        self.svm
            .migrate_to_system(addr..addr + len, &MigrateOptions::default())
    }

    pub(super) fn fault(
        &self,
        addr: usize,
        len: usize,
        access: Access,
    ) -> Result<FaultDone, FaultError> {
        self.svm
            .fault(addr..addr + len, access, &FaultOptions::default())
            .map_err(|failed| failed.error)
    }

    /// Bytes and entries in the device's own memory.
    pub(super) fn own(&self, addr: usize, len: usize) -> (usize, usize) {
        self.svm.driver().mapped(addr, len, Some(Place::Own))
    }

    fn gpu_access(&self, addr: usize, value: Option<u64>) -> Result<u64> {
        let access = if value.is_some() {
            Access::Write
        } else {
            Access::Read
        };
        let page = addr & !(PAGE_SIZE - 1);

        if self.svm.driver().translate(addr, value.is_some()).is_none() {
            self.fault(page, PAGE_SIZE, access)?;
        }
        match self.svm.driver().translate(addr, value.is_some()) {
            Some((Place::Own, at)) => self.engine.access(at, value),
            Some((Place::System, at)) => {
                let mut word = [0; 8];

                if let Some(value) = value {
                    write_phys(at, &value.to_ne_bytes());
                }
                read_phys(at, &mut word);
                Ok(u64::from_ne_bytes(word))
            }
            _ => Err(EFAULT),
        }
    }

    /// The device reads a word, after a fault if need be.
    pub(super) fn gpu_read(&self, addr: usize) -> Result<u64> {
        self.gpu_access(addr, None)
    }

    /// The device writes a word, after a fault if need be.
    pub(super) fn gpu_write(&self, addr: usize, value: u64) -> Result {
        self.gpu_access(addr, Some(value)).map(|_| ())
    }

    /// The device reads a word in the memory of `other`.
    pub(super) fn gpu_read_peer(&self, addr: usize, other: &Fixture) -> Result<u64> {
        match self.svm.driver().translate(addr, false) {
            Some((Place::Peer, at)) => other.engine.access(at, None),
            _ => Err(EFAULT),
        }
    }

    /// Nothing is left in the device's memory, and the device sleeps.
    pub(super) fn is_clean(&self) -> bool {
        let _ = self.memory.evict_all();
        self.memory.stats().used == 0 && self.engine.is_asleep()
    }
}
