// SPDX-License-Identifier: GPL-2.0

//! MMU interval notifiers.
//!
//! A device that mirrors a part of a process' address space must learn about every change of the
//! CPU page tables there, before the pages may be reused. An [`IntervalNotifier`] is told about
//! these changes for one span of addresses. Together with a sequence number it also answers the
//! reverse question, whether what was read from the CPU page tables a moment ago is still true:
//!
//! ```text
//! reader                                  core mm, any task, maybe in memory reclaim
//!
//! seq = notifier.read_begin()
//! read the CPU page tables, sleep,        Invalidate::start:
//! allocate                                    lock for writing, advance the sequence, stop the
//! guard = notifier.read()                     device, unlock
//! guard.retry(seq)? from the start        Invalidate::finish: wait for the device
//! write the device page tables            CPU page tables change, pages are freed
//! drop(guard)
//! ```
//!
//! The types make the rules of the C interface hold: a callback cannot succeed without having
//! advanced the sequence under the lock, can only refuse where that is legal and before anything
//! changed, and a sequence number of one notifier never validates anything under another one.
//!
//! C header: [`include/linux/mmu_notifier.h`](srctree/include/linux/mmu_notifier.h)

use crate::{
    bindings,
    error::to_result,
    mm::{
        Mm,
        MmWithUser, //
    },
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        rwsem::RwSemaphore,
        LockClassKey, //
    },
    types::Opaque, //
};
use core::{
    marker::PhantomPinned,
    ops::Range, //
};

mod event;
mod finish;
mod guard;
mod op;
mod seq;

pub use event::Event;
pub use guard::{
    ReadGuard,
    WriteGuard, //
};
pub use op::{
    Deferred,
    Invalidated,
    Invalidation,
    Locked,
    Started,
    WouldBlock, //
};
pub use seq::Seq;

use finish::FinishSlot;

/// What happens when the CPU page tables change in the span of an [`IntervalNotifier`].
///
/// The data of the notifier, which is the implementer, is shared by all callbacks and users of the
/// notifier. What changes lives in [`Self::State`], behind the lock of the notifier.
///
/// # Examples
///
/// A mirror of one span that is either valid or not, and that stops its device in one pass.
///
/// ```
/// use core::ops::Range;
/// use kernel::{
///     mm::{
///         notifier::{
///             Invalidate,
///             Invalidation,
///             IntervalNotifier,
///             Started,
///             WouldBlock, //
///         },
///         MmWithUser, //
///     },
///     sync::static_lock_class, //
/// };
///
/// struct Mirror;
///
/// impl Invalidate for Mirror {
///     /// Whether the device can use the span.
///     type State = bool;
///
///     fn start<'op>(
///         op: Invalidation<'op, Self>,
///     ) -> Result<Started<'op>, WouldBlock<'op>> {
///         let locked = op.lock()?;
///         let locked = match *locked {
///             // Stopping the device takes time. If that is not allowed, say so before anything
///             // has changed.
///             true => match locked.would_block() {
///                 Ok(would_block) => return Err(would_block),
///                 Err(locked) => locked,
///             },
///             false => locked,
///         };
///
///         let (mut valid, invalidated) = locked.advance();
///         // ... stop the device and wait until it has stopped ...
///         *valid = false;
///         Ok(invalidated.into())
///     }
/// }
///
/// /// Returns whether the mirror has been made valid.
/// fn mirror(mm: &MmWithUser, span: Range<usize>) -> Result<bool> {
///     let notifier = KBox::pin_init(
///         IntervalNotifier::register(
///             mm,
///             span,
///             Mirror,
///             false,
///             c"mirror",
///             static_lock_class!(),
///         ),
///         GFP_KERNEL,
///     )?;
///
///     let seq = notifier.read_begin();
///     // ... read the CPU page tables ...
///     let mut valid = notifier.write();
///     if valid.retry(seq) {
///         return Ok(false);
///     }
///     *valid = true;
///     Ok(true)
/// }
/// ```
pub trait Invalidate: Sized + Send + Sync + 'static {
    /// What the lock of the notifier protects.
    type State: Send + Sync + Unpin;

    /// The first pass of an invalidation: the span of `op` must not be used any more.
    ///
    /// It ends in one of three ways:
    ///
    /// - after [`Locked::advance`] everything has been done: when this returns, no access through
    ///   what was mirrored is in flight;
    /// - after [`Locked::advance`] and [`Invalidated::defer`] the device has been told to stop, and
    ///   [`Self::finish`] will wait for it. All first passes of all notifiers of the address space
    ///   run before the first second pass, so that the waiting overlaps;
    /// - [`WouldBlock`], only if [`Invalidation::blockable`] is false: nothing has changed. This
    ///   happens in the OOM reaper, which tries again later.
    ///
    /// # Context
    ///
    /// It may sleep, unless [`Invalidation::blockable`] is false. The caller is any task that
    /// changes the address space, or memory reclaim, and it holds the mmap lock or locks of the
    /// reverse mapping, maybe folio locks. So an implementation must not allocate memory in a way
    /// that can reclaim, take a lock that is ever held around such an allocation, take the mmap
    /// lock, wait for a page fault, or drop the notifier. Several invalidations of one notifier
    /// run in parallel. The first one may run before [`IntervalNotifier::register`] has returned.
    fn start<'op>(op: Invalidation<'op, Self>) -> Result<Started<'op>, WouldBlock<'op>>;

    /// The second pass of an invalidation that [`Self::start`] has deferred.
    ///
    /// `span` and `event` are those of the first pass. When this returns, no access through what
    /// was mirrored in `span` is in flight.
    ///
    /// # Context
    ///
    /// As for [`Self::start`], with no lock of a notifier held. It may always sleep.
    fn finish(this: &IntervalNotifier<Self>, span: Range<usize>, event: Event) {
        let _ = (this, span, event);
    }
}

/// A notifier for changes of the CPU page tables in one span of addresses.
///
/// It is registered as long as it exists. It keeps the `mm_struct` alive (`mmgrab`), but not the
/// memory in it.
///
/// Dropping it waits for running invalidations of the same address space. This sleeps, and it must
/// not happen in a callback, or with a lock held that a callback takes (the lock of a notifier,
/// or the mmap lock).
///
/// C: `struct mmu_interval_notifier`.
///
/// # Invariants
///
/// - `inner` is registered for `span` of the mm that it names, with `Self::OPS`.
/// - `span` is page aligned and not empty, and does not wrap.
/// - `inner` holds an `mmgrab` reference to that mm.
#[pin_data(PinnedDrop)]
pub struct IntervalNotifier<T: Invalidate> {
    #[pin]
    data: T,

    /// The lock under which the sequence is advanced and checked.
    #[pin]
    lock: RwSemaphore<T::State>,

    /// Identifies this notifier in a [`Seq`].
    id: u64,

    span: Range<usize>,

    #[pin]
    finish: FinishSlot,

    #[pin]
    inner: Opaque<bindings::mmu_interval_notifier>,

    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: `T` and its state may be sent to another thread, and it is allowed to remove an interval
// notifier on another thread than the one that inserted it.
unsafe impl<T: Invalidate> Send for IntervalNotifier<T> {}

// SAFETY: `T` may be shared, the state is behind a lock and may be sent and shared, and all methods
// on `inner` may be called from several threads at the same time.
unsafe impl<T: Invalidate> Sync for IntervalNotifier<T> {}

impl<T: Invalidate> IntervalNotifier<T> {
    /// The callbacks. There is no single-pass `invalidate`: a first pass that does not defer is the
    /// same.
    const OPS: bindings::mmu_interval_notifier_ops = bindings::mmu_interval_notifier_ops {
        invalidate: None,
        invalidate_start: Some(Self::start_callback),
        invalidate_finish: Some(Self::finish_callback),
    };

    /// Returns an initialiser that registers a notifier for `span` of `mm`.
    ///
    /// `name` and `key` are those of the lock; lockdep is told that it is taken during memory
    /// reclaim. Callbacks may run before the initialiser returns.
    ///
    /// The initialiser sleeps and may take the mmap lock for writing, so the mmap lock must not be
    /// held. C: `mmu_interval_notifier_insert()`.
    ///
    /// # Errors
    ///
    /// - `EINVAL` if `span` is empty or not page aligned;
    /// - `ENOMEM`, or `EINTR` if a signal is pending, if this is the first notifier of `mm`.
    pub fn register<'a, E, I>(
        mm: &'a MmWithUser,
        span: Range<usize>,
        data: I,
        state: T::State,
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self, Error> + use<'a, T, E, I>
    where
        I: PinInit<T, E>,
        Error: From<E>,
    {
        // The initialisers run in this order. `inner` is the last one since from then on callbacks
        // use all the others. It captures the reference and not only the pointer, so that the mm
        // cannot lose its last user before the initialiser runs.
        try_pin_init!(Self {
            _: { check_span(&span)? },
            data <- data,
            lock <- RwSemaphore::new(state, name, key),
            _: { lock.prime_reclaim() },
            id: seq::next_id(),
            finish <- FinishSlot::new(),
            span: span.clone(),
            _pin: PhantomPinned,
            // INVARIANT: If this succeeds, then `inner` is registered and holds a reference to the
            // mm; the span has been checked.
            inner <- Opaque::try_ffi_init(move |slot| {
                // SAFETY:
                // - `slot` is valid for writes, and stays where it is until it is removed by
                //   `PinnedDrop`, since `Self` is pinned.
                // - `mm` is valid and has a user for the duration of this call.
                // - `OPS` is a constant, so that the reference to it is static, and its callbacks
                //   expect a notifier that is embedded in a `Self`.
                // - `check_span` says that the subtraction does not wrap.
                to_result(unsafe {
                    bindings::mmu_interval_notifier_insert(
                        slot,
                        mm.as_raw(),
                        span.start,
                        span.end - span.start,
                        const { &Self::OPS },
                    )
                })
            }),
        }? Error)
    }

    /// Returns the data that the notifier was registered with.
    #[inline]
    pub fn data(&self) -> &T {
        &self.data
    }

    /// Returns the address space that the notifier watches.
    ///
    /// It may have lost its last user.
    #[inline]
    pub fn mm(&self) -> &Mm {
        // SAFETY: By the type invariants `inner` holds a reference to its mm. The field does not
        // change while the notifier is registered.
        unsafe { Mm::from_raw((*self.inner.get()).mm) }
    }

    /// Returns the span of addresses that the notifier watches; page aligned and half open.
    #[inline]
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Begins to read the CPU page tables in the span of this notifier.
    ///
    /// If an invalidation that concerns this notifier is running, this sleeps until it has ended.
    /// So it must not be called in a callback, or with a lock held that a callback takes. Take it
    /// before the mmap lock. C: `mmu_interval_read_begin()`.
    #[inline]
    pub fn read_begin(&self) -> Seq {
        // SAFETY: By the type invariants `inner` is registered.
        let seq = unsafe { bindings::mmu_interval_read_begin(self.inner.get()) };
        Seq::new(self.id, seq)
    }

    /// Returns whether an invalidation is known to have collided with what began at `seq`.
    ///
    /// This is a hint to give up early. Without the lock `false` means nothing; ask
    /// [`ReadGuard::retry`] before using what was read. C: `mmu_interval_check_retry()`.
    #[inline]
    pub fn check_retry(&self, seq: Seq) -> bool {
        // SAFETY: By the type invariants `inner` is registered. It is allowed to call this without
        // a lock.
        seq.is_foreign(self.id)
            || unsafe { bindings::mmu_interval_check_retry(self.inner.get(), seq.raw()) }
    }

    /// Takes the lock for reading.
    ///
    /// May sleep. Nothing under it may allocate memory in a way that can reclaim.
    #[inline]
    pub fn read(&self) -> ReadGuard<'_, T> {
        ReadGuard::new(self, self.lock.read())
    }

    /// Takes the lock for writing.
    ///
    /// May sleep. Nothing under it may allocate memory in a way that can reclaim.
    #[inline]
    pub fn write(&self) -> WriteGuard<'_, T> {
        WriteGuard::new(self, self.lock.write())
    }

    /// Returns the C structure, which is registered.
    #[allow(dead_code)] // For walks alone.
    #[inline]
    pub(super) fn as_raw(&self) -> *mut bindings::mmu_interval_notifier {
        self.inner.get()
    }

    /// Returns what identifies this notifier in a [`Seq`].
    #[allow(dead_code)] // For walks alone.
    #[inline]
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// # Safety
    ///
    /// `sub` must be the `inner` of a `Self`, all other fields of which are initialised, and that
    /// lives for `'a`.
    #[inline]
    unsafe fn from_inner<'a>(sub: *mut bindings::mmu_interval_notifier) -> &'a Self {
        // SAFETY: By the safety requirements. `inner` itself is opaque, so that it does not matter
        // whether `mmu_interval_notifier_insert` is still writing to it.
        unsafe { &*kernel::container_of!(Opaque::cast_from(sub), Self, inner) }
    }

    /// # Safety
    ///
    /// To be called as `mmu_interval_notifier_ops::invalidate_start` of a notifier that was
    /// registered with `Self::OPS`: `range` describes a running invalidation that overlaps `sub`,
    /// `cur_seq` is its sequence number and `finish` points to a null pointer.
    unsafe extern "C" fn start_callback(
        sub: *mut bindings::mmu_interval_notifier,
        range: *const bindings::mmu_notifier_range,
        cur_seq: c_ulong,
        finish: *mut *mut bindings::mmu_interval_notifier_finish,
    ) -> bool {
        // SAFETY: `OPS` is only used for the `inner` of a `Self`, the other fields of which are
        // initialised before it is registered. It is not freed before `PinnedDrop` has removed the
        // notifier, which waits for this callback.
        let this = unsafe { Self::from_inner(sub) };
        // SAFETY: By the safety requirements `range` is valid for the duration of the callback,
        // and nobody changes it meanwhile.
        let range = unsafe { &*range };
        // SAFETY: By the safety requirements, `range` and `cur_seq` are of a running invalidation
        // of this notifier, and it is the only `Invalidation` that is made for it.
        let op = unsafe { Invalidation::new(this, range, cur_seq) };

        match T::start(op) {
            Ok(started) => {
                if let Some(slot) = started.into_finish() {
                    // SAFETY: By the safety requirements `finish` is valid for writes.
                    unsafe { *finish = slot };
                }
                true
            }
            // The token exists only if the invalidation is not blockable.
            Err(WouldBlock { .. }) => false,
        }
    }

    /// # Safety
    ///
    /// To be called as `mmu_interval_notifier_ops::invalidate_finish`, once, with the pointer that
    /// `start_callback` returned in `finish`, the `notifier` of which has been set.
    unsafe extern "C" fn finish_callback(finish: *mut bindings::mmu_interval_notifier_finish) {
        // SAFETY: By the safety requirements `finish` is valid, and core has set `notifier` to the
        // notifier of which the first pass returned it.
        let sub = unsafe { (*finish).notifier };
        // SAFETY: As in `start_callback`: removal waits for the second pass too.
        let this = unsafe { Self::from_inner(sub) };
        // SAFETY: `start_callback` returned the pointer, so that the slot is claimed, and core
        // calls this once per claim.
        let (span, event) = unsafe { this.finish.pending() };

        T::finish(this, span, event);

        // SAFETY: As above. Core does not use `finish` any more when it calls this.
        unsafe { this.finish.release() };
    }
}

#[pinned_drop]
impl<T: Invalidate> PinnedDrop for IntervalNotifier<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants the notifier is registered, and this is the only place
        // that removes it. After this no callback runs or will run.
        unsafe { bindings::mmu_interval_notifier_remove(self.inner.get()) };
    }
}

/// Checks that `span` is not empty, page aligned and does not wrap.
fn check_span(span: &Range<usize>) -> Result {
    if span.start >= span.end || span.start % PAGE_SIZE != 0 || span.end % PAGE_SIZE != 0 {
        return Err(EINVAL);
    }
    Ok(())
}

#[cfg(CONFIG_DRM_GPUSVM_RUST_KUNIT_TEST)]
pub(in crate::mm) mod tests;
