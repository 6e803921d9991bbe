// SPDX-License-Identifier: GPL-2.0

//! The GPU's side of an address space: page table, TLBs, and the access of one engine to memory.

use core::ops::Range;

use kernel::{
    fmt,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
    uapi, //
};

use crate::{
    counters::Counters,
    device::Shared,
    inject::{
        Injector,
        Point, //
    },
    memory::Transfer,
    page_table::{
        PageTable,
        SMALL, //
    },
    tlb::{
        Flushes,
        Spans,
        Tlb, //
    }, //
};

/// Where one engine is connected to an address space.
#[pin_data]
struct Port {
    /// Held while the engine translates an address and accesses the memory there: to a flush, an
    /// access of one page is atomic. Taken in reclaim, so nothing is allocated under it.
    #[pin]
    tlb: Mutex<Tlb>,
}

/// Why an access did not happen.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum AccessError {
    /// A page fault: there is no translation, or it does not allow the access.
    Fault,
    /// Nothing answers at the DMA address that is in the page table.
    Bus,
    /// The device is gone.
    Gone,
}

/// The GPU's side of an address space.
#[pin_data]
pub(crate) struct Vm {
    device: Arc<Shared>,
    #[pin]
    page_table: PageTable,
    #[pin]
    flushes: Flushes,
    ports: KVec<Pin<KBox<Port>>>,
    counters: Counters,
    #[pin]
    injector: Injector,
}

impl Vm {
    /// An empty address space of `device` to which `ports` engines are connected.
    pub(crate) fn new(device: Arc<Shared>, ports: usize) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            device,
            page_table <- PageTable::new(),
            flushes <- Flushes::new(),
            ports: {
                let mut all = KVec::with_capacity(ports, GFP_KERNEL)?;

                for _ in 0..ports {
                    let tlb = Tlb::new()?;

                    all.push(
                        KBox::pin_init(
                            pin_init!(Port { tlb <- new_mutex!(tlb, "vsvm::Port::tlb") }),
                            GFP_KERNEL,
                        )?,
                        GFP_KERNEL,
                    )?;
                }
                all
            },
            counters: Counters::default(),
            injector <- Injector::new(),
        })
    }

    pub(crate) fn device(&self) -> &Arc<Shared> {
        &self.device
    }

    pub(crate) fn page_table(&self) -> &PageTable {
        &self.page_table
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) fn injector(&self) -> &Injector {
        &self.injector
    }

    /// Injects what user space asks for.
    pub(crate) fn inject(&self, args: &uapi::drm_vsvm_debug) -> Result {
        let dropped = self.injector.drops();

        self.injector.configure(args)?;
        if dropped && !self.injector.drops() {
            self.wait_flushed();
            // The translations that should have been flushed are not to be met later.
            for port in self.ports.iter() {
                port.tlb.lock().flush(&(0..usize::MAX));
            }
        }
        Ok(())
    }

    /// Flushes that were completed.
    pub(crate) fn flushes_done(&self) -> u64 {
        self.flushes.count.get()
    }

    /// An engine accesses memory at `va`, within one page of the GPU. Sleeps.
    ///
    /// With [`AccessError::Fault`] nothing was accessed.
    pub(crate) fn access(
        &self,
        port: usize,
        va: usize,
        transfer: Transfer<'_>,
    ) -> Result<(), AccessError> {
        let port = self.ports.get(port).ok_or(AccessError::Gone)?;
        let len = transfer.len();
        let writes = transfer.writes();
        let reads = !matches!(transfer, Transfer::Write(_));

        if len == 0 || va % SMALL + len > SMALL {
            return Err(AccessError::Bus);
        }
        let mut tlb = port.tlb.lock();
        let leaf = match tlb.lookup(va).filter(|leaf| leaf.write || !writes) {
            Some(leaf) => {
                self.counters.tlb_hits.add(1);
                // What hardware cannot do: see whether this is still true.
                if !self
                    .page_table
                    .translate(va)
                    .is_some_and(|now| leaf.agrees(&now, va))
                {
                    self.check_late_use(va);
                }
                leaf
            }
            None => {
                self.counters.tlb_misses.add(1);
                let leaf = self
                    .page_table
                    .translate(va)
                    .filter(|leaf| leaf.write || !writes)
                    .ok_or(AccessError::Fault)?;

                tlb.insert(leaf);
                leaf
            }
        };

        // Only a delay.
        let _ = self.injector.pass(Point::Access);
        let result = self
            .device
            .bound()
            .with(|pdev| self.device.memory().transfer(pdev, leaf.dma(va), transfer))
            .ok_or(AccessError::Gone)?;

        drop(tlb);
        if let Err(err) = result {
            self.counters.bus_errors.add(1);
            self.complain(format_args!(
                "no memory at DMA address {:#x} of address {:#x} ({:?})",
                leaf.dma(va),
                va,
                err
            ));
            return Err(AccessError::Bus);
        }
        if reads {
            self.counters.bytes_read.add(len as u64);
        }
        if writes {
            self.counters.bytes_written.add(len as u64);
        }
        Ok(())
    }

    /// A translation is used that the page table does not have. That is fine while a flush is
    /// under way, and a bug otherwise.
    fn check_late_use(&self, va: usize) {
        if self.flushes.allows_old(va) {
            self.counters.late_uses.add(1);
        } else {
            self.counters.stale_uses.add(1);
            self.complain(format_args!("stale translation of address {va:#x} used"));
        }
    }

    /// Somebody relies on no translation of `span` being in use. That is a bug if nobody has waited for
    /// the flush that makes it so.
    pub(crate) fn check_flushed(&self, span: &Range<usize>, what: &str) {
        if self.flushes.is_unfinished(span) {
            self.counters.stale_uses.add(1);
            self.complain(format_args!(
                "{what} of {:#x}..{:#x} before the end of its flush",
                span.start, span.end
            ));
        }
    }

    /// Reports what only a bug in the library or in this driver can cause, unless a test wanted it.
    fn complain(&self, what: fmt::Arguments<'_>) {
        if !self.injector.drops() {
            pr_err!("BUG: {}\n", what);
        }
    }

    /// Takes the leaves of `span` out of the page table and submits the flush, without waiting.
    pub(crate) fn zap(&self, span: Range<usize>) {
        self.flushes
            .submit(&span, || self.page_table.unmap(span.clone()));
    }

    /// Waits until the flushes are complete that were submitted before, and until no access through
    /// an old translation is in flight.
    pub(crate) fn wait_flushed(&self) {
        if self.injector.drops_wait() {
            return;
        }
        self.flushes.complete(|spans: &Spans| {
            // Only a delay.
            let _ = self.injector.pass(Point::Flush);
            for port in self.ports.iter() {
                // The lock waits for the access that is in flight.
                let mut tlb = port.tlb.lock();

                if !self.injector.drops_flush() {
                    spans.iter().for_each(|span| tlb.flush(&span));
                }
            }
        });
    }
}
