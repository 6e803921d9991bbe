// SPDX-License-Identifier: GPL-2.0

//! The engine: executes command lists, and raises faults that the library resolves.

use kernel::{
    drm::gpusvm::{
        page_span,
        Access,
        FaultError,
        FaultOptions,
        GpuSvm, //
    },
    prelude::*,
    uapi, //
};

use crate::{
    memory::Transfer,
    page_table::{
        LIMIT,
        SMALL, //
    },
    vm::{
        AccessError,
        Vm, //
    }, //
};

/// What a command does, with addresses and offsets that were checked.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Op {
    /// To the data at this offset.
    Load(usize),
    /// From the data at this offset.
    Store(usize),
    /// From memory at this address.
    Copy(usize),
    /// With this pattern.
    Fill(u64),
    /// This value; the old words go to the data at this offset.
    AtomicAdd(u64, Option<usize>),
}

/// A command.
///
/// # Invariants
///
/// The spans of memory end at or below [`LIMIT`], those of the data inside of the data that the
/// command was checked with.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    op: Op,
    addr: usize,
    len: usize,
}

impl Command {
    /// Checks a command of user space that has `data_size` bytes of data. `EINVAL` if it is wrong.
    pub(crate) fn from_user(raw: &uapi::drm_vsvm_command, data_size: usize) -> Result<Self> {
        let addr = usize::try_from(raw.addr)?;
        let addr2 = usize::try_from(raw.addr2)?;
        let len = usize::try_from(raw.len)?;
        let is_inside =
            |start: usize, limit: usize| start.checked_add(len).is_some_and(|end| end <= limit);
        let data = |start: usize| is_inside(start, data_size).then_some(start).ok_or(EINVAL);

        if raw.pad != 0 || len == 0 || !is_inside(addr, LIMIT) {
            return Err(EINVAL);
        }
        let op = match raw.op {
            uapi::drm_vsvm_op_VSVM_OP_LOAD if raw.value == 0 => Op::Load(data(addr2)?),
            uapi::drm_vsvm_op_VSVM_OP_STORE if raw.value == 0 => Op::Store(data(addr2)?),
            uapi::drm_vsvm_op_VSVM_OP_COPY if raw.value == 0 && is_inside(addr2, LIMIT) => {
                Op::Copy(addr2)
            }
            uapi::drm_vsvm_op_VSVM_OP_FILL if addr2 == 0 => Op::Fill(raw.value),
            uapi::drm_vsvm_op_VSVM_OP_ATOMIC_ADD if addr % 8 == 0 && len % 8 == 0 => {
                let keep = raw.addr2 != NO_DATA;

                Op::AtomicAdd(raw.value, keep.then(|| data(addr2)).transpose()?)
            }
            _ => return Err(EINVAL),
        };

        // INVARIANT: Checked above.
        Ok(Self { op, addr, len })
    }
}

impl Command {
    /// The address where it begins.
    pub(crate) fn addr(&self) -> usize {
        self.addr
    }
}

/// `VSVM_NO_DATA`, whose cast is lost on the way here.
const NO_DATA: u64 = u64::MAX;

/// Why a queue stops.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The library could not resolve a fault.
    Fault(FaultError),
    /// Nothing answered at a DMA address.
    Bus,
    /// The queue was told to end.
    Killed,
}

impl Reason {
    /// The number that user space sees.
    pub(crate) fn to_user(self) -> u32 {
        match self {
            Self::Fault(FaultError::Unmapped | FaultError::Invalid) => {
                uapi::drm_vsvm_reason_VSVM_REASON_UNMAPPED
            }
            Self::Fault(FaultError::Access) => uapi::drm_vsvm_reason_VSVM_REASON_ACCESS,
            Self::Fault(FaultError::Inaccessible) => uapi::drm_vsvm_reason_VSVM_REASON_INACCESSIBLE,
            Self::Fault(FaultError::Conflict | FaultError::Placement) => {
                uapi::drm_vsvm_reason_VSVM_REASON_CONFLICT
            }
            Self::Fault(FaultError::Dma) => uapi::drm_vsvm_reason_VSVM_REASON_DMA,
            Self::Fault(FaultError::NoMemory) => uapi::drm_vsvm_reason_VSVM_REASON_NO_MEMORY,
            Self::Fault(FaultError::Retry | FaultError::Timeout) => {
                uapi::drm_vsvm_reason_VSVM_REASON_TIMEOUT
            }
            Self::Fault(FaultError::Killed) | Self::Killed => {
                uapi::drm_vsvm_reason_VSVM_REASON_KILLED
            }
            Self::Fault(FaultError::Poisoned) => uapi::drm_vsvm_reason_VSVM_REASON_POISONED,
            Self::Fault(FaultError::Driver(_)) => uapi::drm_vsvm_reason_VSVM_REASON_DRIVER,
            Self::Fault(FaultError::Gone) => uapi::drm_vsvm_reason_VSVM_REASON_GONE,
            Self::Bus => uapi::drm_vsvm_reason_VSVM_REASON_BUS,
        }
    }
}

/// An access that failed for good.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) address: usize,
    pub(crate) write: bool,
    pub(crate) reason: Reason,
}

/// How the library is asked to resolve a fault: like hardware, which waits as long as it takes.
const FAULT_OPTIONS: FaultOptions = FaultOptions {
    timeout: Some(0),
    killable: true,
    around: true,
};

/// A pattern repeats after so many bytes.
const PATTERN: usize = 8;

/// One engine. It has a buffer of a page, and a bit, for what is on the way.
pub(crate) struct Engine<'a, F: Fn() -> bool> {
    svm: &'a GpuSvm<Vm>,
    port: usize,
    buffer: KVec<u8>,
    /// Whether to give up.
    shall_end: F,
}

impl<'a, F: Fn() -> bool> Engine<'a, F> {
    /// An engine at `port` of the address space. It gives up when `shall_end` says so.
    pub(crate) fn new(svm: &'a GpuSvm<Vm>, port: usize, shall_end: F) -> Result<Self> {
        Ok(Self {
            svm,
            port,
            buffer: KVec::from_elem(0, SMALL + PATTERN, GFP_KERNEL)?,
            shall_end,
        })
    }

    /// Executes a command that was checked with the length of `data`. Sleeps.
    pub(crate) fn execute(&mut self, command: &Command, data: &mut [u8]) -> Result<(), Failure> {
        // Taken out, so that the rest of the engine can be used at the same time.
        let mut buffer = core::mem::take(&mut self.buffer);
        let result = self.pieces(command, data, &mut buffer);

        self.buffer = buffer;
        result
    }

    /// Executes a command in pieces, each of which is in one page.
    fn pieces(&self, command: &Command, data: &mut [u8], buffer: &mut [u8]) -> Result<(), Failure> {
        if let Op::Fill(value) = command.op {
            for (slot, byte) in buffer.iter_mut().zip(value.to_le_bytes().iter().cycle()) {
                *slot = *byte;
            }
        }
        let mut done = 0;

        while done < command.len {
            // OVERFLOW: By the invariant of `Command`, this and what follows.
            let addr = command.addr + done;
            let mut len = (command.len - done).min(SMALL - addr % SMALL);

            if let Op::Copy(from) = command.op {
                len = len.min(SMALL - (from + done) % SMALL);
            }
            self.piece(command, addr, done, len, data, buffer)?;
            done += len;
        }
        Ok(())
    }

    /// Executes `len` bytes of a command, from its byte `done` on.
    fn piece(
        &self,
        command: &Command,
        addr: usize,
        done: usize,
        len: usize,
        data: &mut [u8],
        buffer: &mut [u8],
    ) -> Result<(), Failure> {
        let phase = done % PATTERN;
        // By the invariant of `Command` the data is there, and the buffer is large enough.
        let missing = Failure {
            address: addr,
            write: true,
            reason: Reason::Bus,
        };
        let at = match command.op {
            Op::Load(at) | Op::Store(at) | Op::AtomicAdd(_, Some(at)) => at + done..at + done + len,
            _ => 0..0,
        };
        let data = data.get_mut(at).ok_or(missing)?;
        let bounce = buffer.get_mut(phase..phase + len).ok_or(missing)?;

        match command.op {
            Op::Load(_) => self.access(addr, Transfer::Read(data)),
            Op::Store(_) => self.access(addr, Transfer::Write(data)),
            Op::Copy(from) => {
                self.access(from + done, Transfer::Read(bounce))?;
                self.access(addr, Transfer::Write(bounce))
            }
            Op::Fill(_) => self.access(addr, Transfer::Write(bounce)),
            Op::AtomicAdd(value, at) => {
                let old = if at.is_some() { data } else { bounce };

                self.access(addr, Transfer::Add { value, old })
            }
        }
    }

    /// Accesses memory, and raises a fault as often as the access faults.
    fn access(&self, va: usize, mut transfer: Transfer<'_>) -> Result<(), Failure> {
        let write = transfer.writes();
        let fail = |reason| Failure {
            address: va,
            write,
            reason,
        };

        loop {
            if (self.shall_end)() {
                return Err(fail(Reason::Killed));
            }
            match self.svm.driver().access(self.port, va, transfer.reborrow()) {
                Ok(()) => return Ok(()),
                Err(AccessError::Bus) => return Err(fail(Reason::Bus)),
                Err(AccessError::Gone) => return Err(fail(Reason::Fault(FaultError::Gone))),
                Err(AccessError::Fault) => {
                    raise(self.svm, va, write).map_err(|err| fail(Reason::Fault(err)))?
                }
            }
        }
    }
}

/// Has a fault at `va` resolved. Afterwards the access can be tried again.
fn raise(svm: &GpuSvm<Vm>, va: usize, write: bool) -> Result<(), FaultError> {
    let span = page_span(va).ok_or(FaultError::Unmapped)?;
    let access = if write { Access::Write } else { Access::Read };

    svm.driver().counters().gpu_faults.add(1);
    match svm.fault(span, access, &FAULT_OPTIONS) {
        Ok(_) => Ok(()),
        Err(failed) => match failed.error {
            // What was lost in a race is replayed, like everything else.
            FaultError::Retry => Ok(()),
            error => Err(error),
        },
    }
}

#[cfg(CONFIG_DRM_GPUSVM_RUST_KUNIT_TEST)]
#[kunit_tests(vsvm_engine)]
mod tests {
    use super::*;

    fn raw(op: u32, addr: u64, addr2: u64, len: u64, value: u64) -> uapi::drm_vsvm_command {
        uapi::drm_vsvm_command {
            op,
            pad: 0,
            addr,
            addr2,
            len,
            value,
        }
    }

    const LOAD: u32 = uapi::drm_vsvm_op_VSVM_OP_LOAD;
    const STORE: u32 = uapi::drm_vsvm_op_VSVM_OP_STORE;
    const COPY: u32 = uapi::drm_vsvm_op_VSVM_OP_COPY;
    const FILL: u32 = uapi::drm_vsvm_op_VSVM_OP_FILL;
    const ADD: u32 = uapi::drm_vsvm_op_VSVM_OP_ATOMIC_ADD;

    #[test]
    fn good_commands() {
        let limit = LIMIT as u64;

        assert!(Command::from_user(&raw(LOAD, 1, 0, 10, 0), 10).is_ok());
        assert!(Command::from_user(&raw(STORE, limit - 1, 9, 1, 0), 10).is_ok());
        assert!(Command::from_user(&raw(COPY, 0, limit - 5, 5, 0), 0).is_ok());
        assert!(Command::from_user(&raw(FILL, 0, 0, limit, u64::MAX), 0).is_ok());
        assert!(Command::from_user(&raw(ADD, 8, 0, 16, 1), 16).is_ok());
        assert!(Command::from_user(&raw(ADD, 8, u64::MAX, 16, 1), 0).is_ok());
    }

    #[test]
    fn bad_commands() {
        let limit = LIMIT as u64;
        let padded = uapi::drm_vsvm_command {
            pad: 1,
            ..raw(LOAD, 0, 0, 1, 0)
        };
        let bad = [
            // Op, padding, operands that do not belong there.
            raw(0, 0, 0, 1, 0),
            raw(ADD + 1, 0, 0, 8, 0),
            padded,
            raw(LOAD, 0, 0, 1, 1),
            raw(STORE, 0, 0, 1, 1),
            raw(COPY, 0, 0, 1, 1),
            raw(FILL, 0, 1, 1, 0),
            // Spans of memory.
            raw(LOAD, 0, 0, 0, 0),
            raw(FILL, limit, 0, 1, 0),
            raw(FILL, limit - 1, 0, 2, 0),
            raw(FILL, u64::MAX, 0, 2, 0),
            raw(FILL, 2, 0, u64::MAX, 0),
            raw(COPY, 0, limit, 1, 0),
            raw(COPY, 0, u64::MAX, 2, 0),
            // Spans of data, of which there are ten bytes.
            raw(LOAD, 0, 0, 11, 0),
            raw(STORE, 0, 10, 1, 0),
            raw(STORE, 0, u64::MAX, 2, 0),
            raw(ADD, 8, 8, 8, 0),
            // Alignment.
            raw(ADD, 4, 0, 8, 0),
            raw(ADD, 8, 0, 4, 0),
        ];

        for command in &bad {
            assert_eq!(Command::from_user(command, 10).err(), Some(EINVAL));
        }
    }
}
