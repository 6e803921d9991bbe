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
