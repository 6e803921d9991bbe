// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A directory in debugfs for each mirror.
//!
//! ```text
//! /sys/kernel/debug/gpusvm/<device>-<number>/
//!     counters    what the mirror did, one "name value" a line
//!     ranges      one line each: span, mapped bytes, segments, "unmapped" if to be collected
//!     segments    one line each: span, device address, "rw" or "ro"
//! ```
//!
//! The number is the one in the tracepoints. The files are for people, not an interface. They show each
//! range at a moment of its own, under its notifier lock, and are made anew for a larger buffer as
//! long as they do not fit: reading those of a large mirror all the time slows it down.

use core::{
    ops::Range,
    ptr::NonNull, //
};

use kernel::{
    debugfs::{
        Dir,
        Scope, //
    },
    device::Device,
    dma::DmaAddress,
    fmt,
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        SetOnce, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
};

use super::{
    trace::Id,
    Driver,
    GpuSvm,
    Stats, //
};

/// What is shown of a range.
pub(super) struct RangeInfo {
    span: Range<usize>,
    segments: usize,
    bytes: usize,
    unmapped: bool,
}

/// What is shown of a segment.
pub(super) struct SegmentInfo {
    span: Range<usize>,
    dma: DmaAddress,
    write: bool,
}

/// What a mirror tells about itself.
///
/// The files of debugfs use it through a table of functions, so that they are code of the kernel and
/// not of the driver: an open file may outlive the driver's module.
pub(super) trait Inspect: Sync {
    /// The counters.
    fn stats(&self) -> Stats;

    /// Calls `show` for each range until it fails. Sleeps.
    fn ranges(&self, show: &mut dyn FnMut(&RangeInfo) -> fmt::Result) -> fmt::Result;

    /// Calls `show` for each mapped segment until it fails. Sleeps.
    fn segments(&self, show: &mut dyn FnMut(&SegmentInfo) -> fmt::Result) -> fmt::Result;
}

impl<T: Driver> Inspect for GpuSvm<T> {
    fn stats(&self) -> Stats {
        GpuSvm::stats(self)
    }

    fn ranges(&self, show: &mut dyn FnMut(&RangeInfo) -> fmt::Result) -> fmt::Result {
        let mut result = Ok(());

        self.for_each_window(|window| {
            self.for_each_range(window, |range| {
                if result.is_err() {
                    return;
                }
                let mut info = RangeInfo {
                    span: range.span(),
                    segments: 0,
                    bytes: 0,
                    unmapped: range.is_unmapped(),
                };
                let lock = window.read();

                if let Some(pages) = range.shared(&lock) {
                    for (_, segment) in pages.mapped(&info.span) {
                        // OVERFLOW: Neither can exceed the size of the range.
                        info.segments += 1;
                        info.bytes += segment.len();
                    }
                }
                drop(lock);
                result = show(&info);
            });
        });
        result
    }

    fn segments(&self, show: &mut dyn FnMut(&SegmentInfo) -> fmt::Result) -> fmt::Result {
        let mut result = Ok(());

        self.for_each_window(|window| {
            self.for_each_range(window, |range| {
                let lock = window.read();
                let Some(pages) = range.shared(&lock) else {
                    return;
                };

                // Formatting neither sleeps nor allocates, so it may be done under the lock.
                for (block, segment) in pages.mapped(&range.span()) {
                    if result.is_err() {
                        return;
                    }
                    result = show(&SegmentInfo {
                        // OVERFLOW: A segment lies in its block, which is a valid span.
                        span: block + segment.offset()..block + segment.end(),
                        dma: segment.dma(),
                        write: segment.write(),
                    });
                }
            });
        });
        result
    }
}

/// The mirror behind the files of a directory.
///
/// # Invariants
///
/// The pointer is valid until the [`Directory`] that this is a part of has been dropped.
struct View(NonNull<dyn Inspect>);

// SAFETY: This is but a shared reference to an `Inspect`, which is `Sync`.
unsafe impl Send for View {}
// SAFETY: As above.
unsafe impl Sync for View {}

impl View {
    fn svm(&self) -> &dyn Inspect {
        // SAFETY: By the type invariants.
        unsafe { self.0.as_ref() }
    }
}

/// The directory of a mirror, removed when dropped.
///
/// Dropping sleeps, until nobody reads the files any more.
pub(super) struct Directory {
    _scope: Pin<KBox<Scope<View>>>,
}

impl Directory {
    /// Creates the directory of mirror `id` of `dev`. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`. A mirror works without its directory.
    ///
    /// # Safety
    ///
    /// `svm` must be valid until the result has been dropped.
    //
    // Neither generic nor inlined, so that the code of the files is a part of the kernel.
    #[inline(never)]
    pub(super) unsafe fn new(svm: NonNull<dyn Inspect>, dev: &Device, id: Id) -> Result<Self> {
        let name = CString::try_from_fmt(fmt!("{}-{}", dev.name(), id.value()))?;
        // INVARIANT: By the safety requirement.
        let view = Ok::<_, Error>(View(svm));
        let scope = root().scope(view, &name, |view, dir| {
            dir.read_callback_file(c"counters", view, &show_counters);
            dir.read_callback_file(c"ranges", view, &show_ranges);
            dir.read_callback_file(c"segments", view, &show_segments);
        });

        Ok(Self {
            _scope: KBox::pin_init(scope, GFP_KERNEL)?,
        })
    }
}

/// The directory of all mirrors. It is created for the first one and stays.
fn root() -> &'static Dir {
    static CLAIMED: Atomic<bool> = Atomic::new(false);
    static ROOT: SetOnce<Dir> = SetOnce::new();

    // Creating it twice would be an error message in the log.
    if !CLAIMED.xchg(true, Relaxed) {
        ROOT.populate(Dir::new(c"gpusvm"));
    }
    loop {
        if let Some(root) = ROOT.as_ref() {
            return root;
        }
        // Another task is just creating it.
        fsleep(Delta::from_millis(1));
    }
}

fn show_counters(view: &View, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Stats {
        faults,
        short_faults,
        walks,
        retries,
        held,
        invalidations,
        blocks_invalidated,
        collected,
        ranges,
        segments,
        mapped_bytes,
        mapped_bytes_total,
    } = view.svm().stats();

    for (name, value) in [
        ("faults", faults),
        ("short_faults", short_faults),
        ("walks", walks),
        ("retries", retries),
        ("held", held),
        ("invalidations", invalidations),
        ("blocks_invalidated", blocks_invalidated),
        ("collected", collected),
        ("ranges", ranges),
        ("segments", segments),
        ("mapped_bytes", mapped_bytes),
        ("mapped_bytes_total", mapped_bytes_total),
    ] {
        writeln!(f, "{name} {value}")?;
    }
    Ok(())
}

fn show_ranges(view: &View, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    view.svm().ranges(&mut |info| {
        writeln!(
            f,
            "{:#x}-{:#x} bytes={} segments={}{}",
            info.span.start,
            info.span.end,
            info.bytes,
            info.segments,
            if info.unmapped { " unmapped" } else { "" },
        )
    })
}

fn show_segments(view: &View, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    view.svm().segments(&mut |info| {
        writeln!(
            f,
            "{:#x}-{:#x} dma={:#x} {}",
            info.span.start,
            info.span.end,
            info.dma,
            if info.write { "rw" } else { "ro" },
        )
    })
}
