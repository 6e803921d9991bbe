// SPDX-License-Identifier: GPL-2.0

//! `/dev/hmm_dmirror0` and `/dev/hmm_dmirror1`: the interface of `lib/test_hmm.c`, for its tests.
//!
//! An open file mirrors the process that opened it, as a file of the render node does, but the
//! caller is the engine: an ioctl reads or writes through the GPU's page table, faults what is
//! missing, and returns when it is done. The semantics are those of
//! [`lib/test_hmm.c`](srctree/lib/test_hmm.c) and
//! [`lib/test_hmm_uapi.h`](srctree/lib/test_hmm_uapi.h), without its device memory: what would
//! migrate, or access exclusively, fails with `EOPNOTSUPP`.

use core::ops::Range;

use kernel::{
    alloc::AllocError,
    drm::gpusvm::{
        Access,
        FaultError,
        FaultOptions,
        GpuSvm, //
    },
    fs::File,
    ioctl::_IOWR,
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    mm::{
        hmm::{
            Kind,
            PageState, //
        },
        virt::VmaNew, //
    },
    page::{
        Page,
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sizes::*,
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        Arc, //
    },
    uaccess::UserSlice, //
};

use crate::{
    device::Shared,
    ffi::{
        self,
        PMD_ORDER, //
    },
    memory::Transfer,
    page_table::SMALL,
    space::new_svm,
    vm::{
        AccessError,
        Vm, //
    }, //
};

/// The nodes, each of which belongs to one PCI device.
const NODES: [&CStr; 2] = [c"hmm_dmirror0", c"hmm_dmirror1"];

/// Bit i is set while node i is in use.
static NODES_IN_USE: Atomic<u32> = Atomic::new(0);

/// The right to use a node.
struct Index(usize);

impl Index {
    /// The first node that is free, if there is one.
    fn claim() -> Option<Self> {
        let mut used = NODES_IN_USE.load(Relaxed);

        loop {
            let index = (0..NODES.len()).find(|i| used & (1 << i) == 0)?;

            match NODES_IN_USE.cmpxchg(used, used | 1 << index, Relaxed) {
                Ok(_) => return Some(Self(index)),
                Err(now) => used = now,
            }
        }
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        NODES_IN_USE.fetch_sub(1 << self.0, Relaxed);
    }
}

/// A device node.
///
/// # Invariants
///
/// Every [`MiscDeviceRegistration`] for [`Dmirror`] is in a `Node`.
#[pin_data]
pub(crate) struct Node {
    // Dropped in this order: nobody opens the node after this.
    #[pin]
    pub(crate) misc: MiscDeviceRegistration<Dmirror>,
    device: Arc<Shared>,
    _index: Index,
}

impl Node {
    /// Makes the node of a device; [`None`] if there are as many as there can be.
    pub(crate) fn new(device: &Arc<Shared>) -> Result<Option<Pin<KBox<Self>>>> {
        let Some(index) = Index::claim() else {
            return Ok(None);
        };
        let name = *NODES.get(index.0).ok_or(EINVAL)?;

        KBox::try_pin_init(
            try_pin_init!(Self {
                _index: index,
                // Before the registration: the node can be opened while that is under way.
                device: device.clone(),
                // INVARIANT: There is no other call of `register` for this type.
                misc <- MiscDeviceRegistration::register(MiscDeviceOptions { name }),
            }),
            GFP_KERNEL,
        )
        .map(Some)
    }
}

/// `struct hmm_dmirror_cmd`, as five 64-bit words.
type RawCommand = [u64; 5];

/// A command whose span was checked.
struct Command {
    /// Address in the opener's memory, page aligned.
    addr: usize,
    /// Bytes, a multiple of the page size.
    size: usize,
    /// Address in the caller's memory.
    ptr: usize,
    npages: u64,
    /// Out: pages copied.
    cpages: u64,
    /// Out: faults raised.
    faults: u64,
}

impl Command {
    fn read(user: UserSlice) -> Result<Self> {
        let [addr, ptr, npages, _, _] = user.reader().read::<RawCommand>()?;
        let addr = usize::try_from(addr)?;
        // Bits are lost here if there are too many pages, as in C.
        let size = usize::try_from(npages << PAGE_SHIFT)?;

        if addr % PAGE_SIZE != 0 || addr >= addr.wrapping_add(size) {
            return Err(EINVAL);
        }
        Ok(Self {
            addr,
            size,
            ptr: usize::try_from(ptr)?,
            npages,
            cpages: 0,
            faults: 0,
        })
    }

    fn write(&self, user: UserSlice) -> Result {
        let raw: RawCommand = [
            self.addr as u64,
            self.ptr as u64,
            self.npages,
            self.cpages,
            self.faults,
        ];

        user.writer().write(&raw)
    }

    fn end(&self) -> usize {
        // OVERFLOW: `read` has checked it.
        self.addr + self.size
    }

    /// A buffer as large as the span.
    fn bounce(&self) -> Result<VVec<u8>> {
        /// More than that is not worth trying, and the allocator would complain.
        const MAX: usize = SZ_1G;

        if self.size > MAX {
            return Err(ENOMEM);
        }
        Ok(VVec::from_elem(0, self.size, GFP_KERNEL | __GFP_NOWARN)?)
    }

    /// The caller's memory of `len` bytes.
    fn user(&self, len: usize) -> UserSlice {
        UserSlice::new(UserPtr::from_addr(self.ptr), len)
    }
}

/// The ioctls.
mod cmds {
    use super::*;

    const fn nr(nr: u32) -> u32 {
        _IOWR::<RawCommand>(b'H' as u32, nr)
    }

    pub(super) const READ: u32 = nr(0x00);
    pub(super) const WRITE: u32 = nr(0x01);
    pub(super) const MIGRATE_TO_DEV: u32 = nr(0x02);
    pub(super) const MIGRATE_TO_SYS: u32 = nr(0x03);
    pub(super) const SNAPSHOT: u32 = nr(0x04);
    pub(super) const EXCLUSIVE: u32 = nr(0x05);
    pub(super) const CHECK_EXCLUSIVE: u32 = nr(0x06);
    pub(super) const RELEASE: u32 = nr(0x07);
    pub(super) const FLAGS: u32 = nr(0x08);
    pub(super) const READ_UNLOCKED: u32 = nr(0x09);
}

/// What SNAPSHOT says of a page.
mod prot {
    pub(super) const ERROR: u8 = 0xff;
    pub(super) const NONE: u8 = 0x00;
    pub(super) const READ: u8 = 0x01;
    pub(super) const WRITE: u8 = 0x02;
    pub(super) const PMD: u8 = 0x04;
    pub(super) const PUD: u8 = 0x08;
    pub(super) const ZERO: u8 = 0x10;
    pub(super) const DEV_PRIVATE_REMOTE: u8 = 0x30;
    pub(super) const DEV_COHERENT_REMOTE: u8 = 0x50;
}

/// Order of the CPU's huge pages of the upper size: a table has as many entries on each level.
const PUD_ORDER: u32 = 2 * PMD_ORDER;

/// The byte that SNAPSHOT gives for a page.
fn prot_byte(state: PageState) -> u8 {
    match state {
        PageState::None => prot::NONE,
        PageState::Error => prot::ERROR,
        PageState::Mapped {
            order,
            write,
            kind,
            zero,
            ..
        } => {
            // No device memory is this device's own, since it has none.
            let kind = match kind {
                Kind::DevicePrivate => prot::DEV_PRIVATE_REMOTE,
                Kind::DeviceCoherent => prot::DEV_COHERENT_REMOTE,
                _ if zero => prot::ZERO,
                _ => prot::NONE,
            };
            let permission = if write { prot::WRITE } else { prot::READ };
            let size = match order {
                PMD_ORDER => prot::PMD,
                PUD_ORDER => prot::PUD,
                _ => 0,
            };

            kind | permission | size
        }
        _ => prot::NONE,
    }
}

/// The errno that `lib/test_hmm.c` would give.
fn errno(err: FaultError) -> Error {
    match err {
        FaultError::Retry | FaultError::Timeout => EBUSY,
        FaultError::Gone | FaultError::Invalid => EFAULT,
        err => err.into(),
    }
}

/// An error for the caller of an ioctl.
struct Errno(Error);

impl From<FaultError> for Errno {
    fn from(err: FaultError) -> Self {
        Self(errno(err))
    }
}

impl From<Error> for Errno {
    fn from(err: Error) -> Self {
        Self(err)
    }
}

impl From<AllocError> for Errno {
    fn from(err: AllocError) -> Self {
        Self(err.into())
    }
}

/// An open file.
pub(crate) struct Dmirror {
    svm: Arc<GpuSvm<Vm>>,
}

impl Dmirror {
    /// Accesses the whole span of `command`, a page at a time, and faults what is missing.
    fn access(
        &self,
        command: &mut Command,
        options: &FaultOptions,
        access: Access,
        mut page: impl FnMut(usize, Range<usize>) -> Result<(), AccessError>,
    ) -> Result {
        let mut done = 0;

        loop {
            while done < command.size {
                // OVERFLOW: Inside of the span of the command, whose size is a multiple of this.
                match page(command.addr + done, done..done + SMALL) {
                    Ok(()) => done += SMALL,
                    Err(AccessError::Fault) => break,
                    Err(AccessError::Bus) => return Err(EIO),
                    Err(AccessError::Gone) => return Err(ENODEV),
                }
            }
            command.cpages = (done / PAGE_SIZE) as u64;
            if done == command.size {
                return Ok(());
            }
            // The whole rest at once, so that one fault is enough if nobody interferes.
            let missing = (command.addr + done) & !(PAGE_SIZE - 1);

            self.svm.driver().counters().gpu_faults.add(1);
            self.svm
                .fault(missing..command.end(), access, options)
                .map_err(|failed| errno(failed.error))?;
            command.faults += 1;
        }
    }

    fn read(&self, command: &mut Command, options: &FaultOptions) -> Result {
        let mut bounce = command.bounce()?;
        let vm = self.svm.driver();

        self.access(command, options, Access::Read, |va, at| {
            let page = bounce.get_mut(at).ok_or(AccessError::Gone)?;

            vm.access(0, va, Transfer::Read(page))
        })?;
        command.user(bounce.len()).writer().write_slice(&bounce)
    }

    fn write(&self, command: &mut Command, options: &FaultOptions) -> Result {
        let mut bounce = command.bounce()?;
        let vm = self.svm.driver();

        command
            .user(bounce.len())
            .reader()
            .read_slice(&mut bounce)?;
        self.access(command, options, Access::Write, |va, at| {
            let page = bounce.get(at).ok_or(AccessError::Gone)?;

            vm.access(0, va, Transfer::Write(page))
        })
    }

    fn snapshot(&self, command: &mut Command) -> Result {
        /// Pages that are handed out at a time.
        const STEP: usize = 512;

        let pages = command.size / PAGE_SIZE;
        let mut bytes = KVec::with_capacity(STEP.min(pages), GFP_KERNEL)?;
        let mut user = command.user(pages).writer();

        self.svm
            .snapshot(command.addr..command.end(), |_, state| {
                bytes.push(prot_byte(state), GFP_KERNEL)?;
                command.cpages += 1;
                if bytes.len() == STEP || command.cpages == command.npages {
                    user.write_slice(&bytes)?;
                    bytes.clear();
                }
                Ok(())
            })
            .map_err(|err: Errno| err.0)
    }
}

#[vtable]
impl MiscDevice for Dmirror {
    type Ptr = KBox<Self>;

    fn open(_file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        let node = ffi::node_of(misc);

        Ok(KBox::new(
            Self {
                svm: new_svm(&node.device, 1)?,
            },
            GFP_KERNEL,
        )?)
    }

    fn ioctl(this: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        let user = || UserSlice::new(UserPtr::from_addr(arg), size_of::<RawCommand>());
        let mut command = Command::read(user())?;
        // As in C: a second of lost races, or none in which user space may take part.
        let hurried = FaultOptions {
            timeout: None,
            killable: true,
            around: false,
        };
        let patient = FaultOptions {
            timeout: Some(0),
            ..hurried
        };

        match cmd {
            cmds::READ => this.read(&mut command, &hurried)?,
            cmds::READ_UNLOCKED => this.read(&mut command, &patient)?,
            cmds::WRITE => this.write(&mut command, &hurried)?,
            cmds::SNAPSHOT => this.snapshot(&mut command)?,
            // The only flag concerns allocations of device memory, which do not happen.
            cmds::FLAGS => (),
            cmds::MIGRATE_TO_DEV
            | cmds::MIGRATE_TO_SYS
            | cmds::EXCLUSIVE
            | cmds::CHECK_EXCLUSIVE
            | cmds::RELEASE => return Err(EOPNOTSUPP),
            _ => return Err(EINVAL),
        }
        command.write(user())?;
        Ok(0)
    }

    fn mmap(_this: &Self, _file: &File, vma: &VmaNew) -> Result {
        let vma = vma.set_mixedmap();

        for addr in (vma.start()..vma.end()).step_by(PAGE_SIZE) {
            let page = Page::alloc_page(GFP_KERNEL | __GFP_ZERO)?;

            // The mapping takes a reference of its own.
            vma.vm_insert_page(addr, &page)?;
        }
        Ok(())
    }
}
