// SPDX-License-Identifier: GPL-2.0

//! A kernel reader/writer semaphore.
//!
//! This module allows Rust code to use the kernel's `struct rw_semaphore`. It is a type of its own
//! rather than a [`lock::Backend`], because that trait models exclusive locks only.
//!
//! C header: [`include/linux/rwsem.h`](srctree/include/linux/rwsem.h)
//!
//! [`lock::Backend`]: super::lock::Backend

use super::LockClassKey;
use crate::{
    bindings,
    prelude::*,
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};
use core::{
    cell::UnsafeCell,
    marker::PhantomPinned,
    ops::{
        Deref,
        DerefMut, //
    }, //
};
use pin_init::Wrapper;

/// Creates a [`RwSemaphore`] initialiser with the given name and a newly-created lock class.
///
/// It uses the name if one is given, otherwise it generates one based on the file name and line
/// number.
#[macro_export]
macro_rules! new_rwsem {
    ($inner:expr $(, $name:literal)? $(,)?) => {
        $crate::sync::rwsem::RwSemaphore::new(
            $inner, $crate::optional_name!($($name)?), $crate::static_lock_class!())
    };
}
pub use new_rwsem;

/// A reader/writer semaphore with the data it protects.
///
/// Exposes the kernel's [`struct rw_semaphore`]. Any number of readers may hold it at the same
/// time, or one writer. Acquiring it may sleep, and so may a holder. It is not recursive: a task
/// that holds it, even for reading, must not acquire it again, since a waiting writer blocks new
/// readers.
///
/// A guard must be released by the task that acquired it, which is why guards are not [`Send`].
///
/// # Examples
///
/// ```
/// use kernel::sync::rwsem::{new_rwsem, RwSemaphore};
///
/// struct Inner {
///     a: u32,
///     b: u32,
/// }
///
/// #[pin_data]
/// struct Example {
///     c: u32,
///     #[pin]
///     d: RwSemaphore<Inner>,
/// }
///
/// impl Example {
///     fn new() -> impl PinInit<Self> {
///         pin_init!(Self {
///             c: 10,
///             d <- new_rwsem!(Inner { a: 20, b: 30 }, "Example::d"),
///         })
///     }
/// }
///
/// let e = KBox::pin_init(Example::new(), GFP_KERNEL)?;
/// assert_eq!(e.c, 10);
///
/// {
///     let reader = e.d.read();
///     assert_eq!(reader.a, 20);
///     // A reader does not exclude other readers, but every writer.
///     assert!(e.d.try_read().is_some());
///     assert!(e.d.try_write().is_none());
/// }
///
/// e.d.write().b += 1;
/// assert_eq!(e.d.read().b, 31);
/// # Ok::<(), Error>(())
/// ```
///
/// [`struct rw_semaphore`]: srctree/include/linux/rwsem.h
#[pin_data]
pub struct RwSemaphore<T: ?Sized> {
    /// The kernel lock object.
    #[pin]
    sem: Opaque<bindings::rw_semaphore>,

    /// A semaphore has a list of waiters, and lockdep and `CONFIG_DEBUG_RWSEMS` remember its
    /// address.
    #[pin]
    _pin: PhantomPinned,

    /// The data protected by the lock.
    #[pin]
    data: UnsafeCell<T>,
}

// SAFETY: `RwSemaphore` can be transferred across thread boundaries iff the data it protects can.
unsafe impl<T: ?Sized + Send> Send for RwSemaphore<T> {}

// SAFETY: Several readers on different threads may have a shared reference to the data at the same
// time, hence `T: Sync`; and any of them may, as a writer, replace it, hence `T: Send`.
unsafe impl<T: ?Sized + Send + Sync> Sync for RwSemaphore<T> {}

impl<T> RwSemaphore<T> {
    /// Constructs a new reader/writer semaphore initialiser.
    ///
    /// C: `__init_rwsem()`.
    pub fn new(
        t: impl PinInit<T>,
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            data <- UnsafeCell::pin_init(t),
            _pin: PhantomPinned,
            // SAFETY: `slot` is valid while the closure is called and both `name` and `key` have
            // static lifetimes so they live indefinitely.
            sem <- Opaque::ffi_init(|slot| unsafe {
                bindings::__init_rwsem(slot, name.as_char_ptr(), key.as_ptr())
            }),
        })
    }
}

impl<T: ?Sized> RwSemaphore<T> {
    /// Acquires the lock for reading and gives the caller shared access to the data.
    ///
    /// May sleep, not interruptible. C: `down_read()`.
    #[inline]
    pub fn read(&self) -> ReadGuard<'_, T> {
        // SAFETY: The constructor of the type initialises `sem`, so the existence of the object
        // proves that it is initialised.
        unsafe { bindings::down_read(self.sem.get()) };

        // SAFETY: The lock was just acquired for reading.
        unsafe { ReadGuard::new(self) }
    }

    /// Tries to acquire the lock for reading, without sleeping.
    ///
    /// C: `down_read_trylock()`.
    #[must_use = "if unused, the lock will be immediately unlocked"]
    #[inline]
    pub fn try_read(&self) -> Option<ReadGuard<'_, T>> {
        // SAFETY: As in `read`.
        if unsafe { bindings::down_read_trylock(self.sem.get()) } == 0 {
            return None;
        }

        // SAFETY: The lock was just acquired for reading.
        Some(unsafe { ReadGuard::new(self) })
    }

    /// Acquires the lock for writing and gives the caller exclusive access to the data.
    ///
    /// May sleep, not interruptible. C: `down_write()`.
    #[inline]
    pub fn write(&self) -> WriteGuard<'_, T> {
        // SAFETY: As in `read`.
        unsafe { bindings::down_write(self.sem.get()) };

        // SAFETY: The lock was just acquired for writing.
        unsafe { WriteGuard::new(self) }
    }

    /// Tries to acquire the lock for writing, without sleeping.
    ///
    /// C: `down_write_trylock()`.
    #[must_use = "if unused, the lock will be immediately unlocked"]
    #[inline]
    pub fn try_write(&self) -> Option<WriteGuard<'_, T>> {
        // SAFETY: As in `read`.
        if unsafe { bindings::down_write_trylock(self.sem.get()) } == 0 {
            return None;
        }

        // SAFETY: The lock was just acquired for writing.
        Some(unsafe { WriteGuard::new(self) })
    }

    /// Tells lockdep that this lock is taken during memory reclaim.
    ///
    /// A lock that an MMU notifier callback takes must not be held around an allocation that can
    /// reclaim memory: reclaim calls the notifier. Without this call lockdep learns about the
    /// callback only when reclaim really hits a mirrored page; with it, the first allocation under
    /// the lock is reported. Call it once after initialisation, in process context and without
    /// holding a lock of the same class. It does not acquire anything and does nothing without
    /// `CONFIG_LOCKDEP`.
    ///
    /// It follows what [`drm_gpusvm_init()`] does for its notifier lock.
    ///
    /// [`drm_gpusvm_init()`]: srctree/drivers/gpu/drm/drm_gpusvm.c
    pub fn prime_reclaim(&self) {
        // SAFETY: This only records lock dependencies for the current task, and each `acquire` is
        // paired with a `release` below.
        unsafe { bindings::fs_reclaim_acquire(bindings::GFP_KERNEL) };
        // SAFETY: As in `read`, `sem` is initialised. This only records a dependency.
        unsafe { bindings::rwsem_might_lock(self.sem.get()) };
        // SAFETY: Pairs with `fs_reclaim_acquire` above.
        unsafe { bindings::fs_reclaim_release(bindings::GFP_KERNEL) };
    }
}

/// Shared access to the data of a [`RwSemaphore`].
///
/// # Invariants
///
/// The current task holds `lock` for reading, and this guard owns that.
#[must_use = "the lock unlocks immediately when the guard is unused"]
pub struct ReadGuard<'a, T: ?Sized> {
    lock: &'a RwSemaphore<T>,
    _not_send: NotThreadSafe,
}

// SAFETY: A shared reference to the guard gives shared access to the data, which needs `T: Sync`,
// and to the lock, which needs `RwSemaphore<T>: Sync`.
unsafe impl<T: ?Sized + Send + Sync> Sync for ReadGuard<'_, T> {}

impl<'a, T: ?Sized> ReadGuard<'a, T> {
    /// # Safety
    ///
    /// The current task must hold `lock` for reading and hands that over to the guard.
    #[inline]
    unsafe fn new(lock: &'a RwSemaphore<T>) -> Self {
        // SAFETY: `sem` is initialised since `lock` exists.
        unsafe { bindings::rwsem_assert_held(lock.sem.get()) };

        // INVARIANT: By the safety requirements.
        Self {
            lock,
            _not_send: NotThreadSafe,
        }
    }

    /// Returns the lock that this guard originates from.
    #[inline]
    pub fn lock_ref(&self) -> &'a RwSemaphore<T> {
        self.lock
    }
}

impl<T: ?Sized> Deref for ReadGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: By the type invariants the lock is held for reading, so there is no writer and
        // hence no mutable reference to the data.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T: ?Sized> Drop for ReadGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariants this guard owns the lock for reading, and as it is not
        // `Send`, this is the task that acquired it.
        unsafe { bindings::up_read(self.lock.sem.get()) };
    }
}

/// Exclusive access to the data of a [`RwSemaphore`].
///
/// # Invariants
///
/// The current task holds `lock` for writing, and this guard owns that.
#[must_use = "the lock unlocks immediately when the guard is unused"]
pub struct WriteGuard<'a, T: ?Sized> {
    lock: &'a RwSemaphore<T>,
    _not_send: NotThreadSafe,
}

// SAFETY: As for `ReadGuard`; mutable access needs a mutable reference to the guard.
unsafe impl<T: ?Sized + Send + Sync> Sync for WriteGuard<'_, T> {}

impl<'a, T: ?Sized> WriteGuard<'a, T> {
    /// # Safety
    ///
    /// The current task must hold `lock` for writing and hands that over to the guard.
    #[inline]
    unsafe fn new(lock: &'a RwSemaphore<T>) -> Self {
        // SAFETY: `sem` is initialised since `lock` exists.
        unsafe { bindings::rwsem_assert_held_write(lock.sem.get()) };

        // INVARIANT: By the safety requirements.
        Self {
            lock,
            _not_send: NotThreadSafe,
        }
    }

    /// Returns the lock that this guard originates from.
    #[inline]
    pub fn lock_ref(&self) -> &'a RwSemaphore<T> {
        self.lock
    }

    /// Returns a pinned mutable reference to the protected data.
    ///
    /// The guard implements [`DerefMut`] when `T: Unpin`, which should be preferred then.
    #[inline]
    pub fn as_mut(&mut self) -> Pin<&mut T> {
        // SAFETY: The data is structurally pinned in the lock. By the type invariants this guard
        // is the only owner of the lock, and the reference borrows the guard mutably.
        unsafe { Pin::new_unchecked(&mut *self.lock.data.get()) }
    }
}

impl<T: ?Sized> Deref for WriteGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: By the type invariants the lock is held for writing by this guard, which is
        // borrowed, so there is no mutable reference to the data.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T: ?Sized + Unpin> DerefMut for WriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: By the type invariants this guard is the only owner of the lock, and it is
        // borrowed mutably. `T: Unpin`, so pinning does not restrict the access.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T: ?Sized> Drop for WriteGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariants this guard owns the lock for writing, and as it is not
        // `Send`, this is the task that acquired it.
        unsafe { bindings::up_write(self.lock.sem.get()) };
    }
}

#[cfg(CONFIG_DRM_GPUSVM_RUST_KUNIT_TEST)]
#[macros::kunit_tests(rust_rwsem)]
mod tests {
    use super::*;
    use crate::{
        sync::{
            atomic::{
                Atomic,
                Relaxed, //
            },
            Arc,
            Completion, //
        },
        time::{
            delay::fsleep,
            Delta, //
        },
        workqueue, //
    };

    /// Two counters that a writer must keep equal.
    struct Pair {
        a: usize,
        b: usize,
    }

    type Shared = Arc<RwSemaphore<Pair>>;

    fn shared() -> Result<Shared> {
        Arc::pin_init(new_rwsem!(Pair { a: 0, b: 0 }, "rust_rwsem"), GFP_KERNEL)
    }

    fn in_thread(f: impl FnOnce() + Send + 'static) -> Result<Arc<Completion>> {
        let done = Arc::pin_init(Completion::new(), GFP_KERNEL)?;
        let theirs = done.clone();

        workqueue::system_unbound().try_spawn(GFP_KERNEL, move || {
            f();
            theirs.complete_all();
        })?;
        Ok(done)
    }

    #[test]
    fn readers_share_writers_exclude() -> Result {
        let lock = shared()?;

        let first = lock.read();
        let second = lock.try_read();
        let third = lock.try_write();
        let (shares, excluded) = (second.is_some(), third.is_none());
        drop(third);
        drop(second);
        drop(first);
        assert!(shares);
        assert!(excluded);

        let writer = lock.write();
        let (read, write) = (lock.try_read().is_none(), lock.try_write().is_none());
        drop(writer);
        assert!(read);
        assert!(write);

        // Nothing is left behind.
        let writer = lock.try_write();
        let free = writer.is_some();
        drop(writer);
        assert!(free);
        Ok(())
    }

    #[test]
    fn guards_give_access() -> Result {
        let lock = shared()?;

        lock.write().a = 7;
        lock.write().as_mut().b = 8;
        let (a, b) = {
            let guard = lock.read();
            (guard.a, guard.b)
        };
        assert_eq!(a, 7);
        assert_eq!(b, 8);

        let guard = lock.read();
        let same = core::ptr::eq(guard.lock_ref(), &*lock);
        drop(guard);
        assert!(same);
        Ok(())
    }

    #[test]
    fn prime_reclaim_takes_nothing() -> Result {
        // A lock class of its own: other tests allocate under theirs.
        let lock = KBox::pin_init(new_rwsem!(0u32, "rust_rwsem_primed"), GFP_KERNEL)?;

        lock.prime_reclaim();
        lock.prime_reclaim();
        let writer = lock.try_write();
        let free = writer.is_some();
        drop(writer);
        assert!(free);
        Ok(())
    }

    #[test]
    fn reader_waits_for_the_writer() -> Result {
        let lock = shared()?;
        let seen = Arc::new(Atomic::new(0usize), GFP_KERNEL)?;

        let mut writer = lock.write();
        let (theirs, result) = (lock.clone(), seen.clone());
        // Allocates, which is allowed here as this lock is not taken in reclaim.
        let done = in_thread(move || result.store(theirs.read().a, Relaxed));
        fsleep(Delta::from_millis(20));
        writer.a = 42;
        drop(writer);
        done?.wait_for_completion();

        assert_eq!(seen.load(Relaxed), 42);
        Ok(())
    }

    /// Two readers are inside at the same time: each waits there for the other one.
    #[test]
    fn readers_are_inside_together() -> Result {
        let lock = shared()?;
        let here = Arc::pin_init(Completion::new(), GFP_KERNEL)?;
        let there = Arc::pin_init(Completion::new(), GFP_KERNEL)?;

        let (theirs, our_side, their_side) = (lock.clone(), here.clone(), there.clone());
        let done = in_thread(move || {
            let _guard = theirs.read();
            their_side.complete_all();
            our_side.wait_for_completion();
        })?;
        let guard = lock.read();
        here.complete_all();
        there.wait_for_completion();
        drop(guard);
        done.wait_for_completion();
        Ok(())
    }

    #[test]
    fn readers_never_see_half_a_write() -> Result {
        const ROUNDS: usize = 2000;

        let lock = shared()?;
        let torn = Arc::new(Atomic::new(0usize), GFP_KERNEL)?;
        let mut threads = KVec::new();

        for _ in 0..2 {
            let (lock, torn) = (lock.clone(), torn.clone());
            let thread = in_thread(move || {
                for round in 0..ROUNDS {
                    if round % 4 == 0 {
                        let mut guard = lock.write();
                        guard.a += 1;
                        guard.b += 1;
                    } else {
                        let guard = lock.read();
                        if guard.a != guard.b {
                            torn.fetch_add(1, Relaxed);
                        }
                    }
                }
            })?;
            threads.push(thread, GFP_KERNEL)?;
        }
        for thread in &threads {
            thread.wait_for_completion();
        }

        let total = lock.read().a;
        assert_eq!(torn.load(Relaxed), 0);
        assert_eq!(total, 2 * ROUNDS / 4);
        Ok(())
    }
}
