// SPDX-License-Identifier: GPL-2.0

//! The CAM of retry faults: one vector for each page until the driver acknowledges it by the
//! doorbell `IH_DOORBELL_RETRY_CAM` (`amdgpu_gmc_handle_retry_fault()`).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many faults the CAM holds. A vector has 10 bits for the number.
const ENTRIES: u16 = 256;
/// A page that faults again right after its acknowledgement waits so long before it says so again.
/// The driver's software ring is small; a page that it cannot map yet would fill it.
const PAUSE: Duration = Duration::from_millis(1);
/// After this time without an acknowledgement the fault is sent again, as hardware does too. A guest
/// with emulated CPUs may need many seconds for all faults that the CAM holds; sent once more
/// meanwhile they overflow the driver's software ring (`IH_SW_RING_SIZE`), and are lost then.
const AGAIN: Duration = Duration::from_secs(60);

/// What faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FaultKey {
    /// Of the MMHUB (the SDMA engines), else of the GFXHUB?
    pub mmhub: bool,
    /// The address space.
    pub vmid: u8,
    /// The page's address.
    pub page: u64,
}

/// What becomes of a fault that is raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raise {
    /// A vector with this number must be sent.
    Fresh(u16),
    /// A vector with this number is on its way.
    Pending(u16),
    /// It is too early to send one, or there is no room: try again in a millisecond.
    Later,
}

struct Entry {
    key: FaultKey,
    raised: Instant,
}

#[derive(Default)]
struct State {
    /// By number.
    entries: BTreeMap<u16, Entry>,
    /// The numbers, by what faulted.
    index: BTreeMap<FaultKey, u16>,
    /// What was acknowledged, and when.
    recent: BTreeMap<FaultKey, Instant>,
    next: u16,
}

/// Retry faults without an acknowledgement.
#[derive(Default)]
pub struct Cam(Mutex<State>);

impl Cam {
    /// An empty CAM.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A fault happened, perhaps not for the first time.
    pub fn raise(&self, key: FaultKey) -> Raise {
        let mut state = self.state();
        let now = Instant::now();
        if let Some(number) = state.index.get(&key).copied() {
            return match state.entries.get_mut(&number) {
                Some(entry) if now.duration_since(entry.raised) > AGAIN => {
                    entry.raised = now;
                    Raise::Fresh(number)
                }
                _ => Raise::Pending(number),
            };
        }
        state.recent.retain(|_, when| now.duration_since(*when) < PAUSE);
        if state.recent.contains_key(&key) {
            return Raise::Later;
        }
        let next = state.next;
        let free = (next..ENTRIES).chain(0..next).find(|n| !state.entries.contains_key(n));
        let Some(number) = free else { return Raise::Later };
        state.next = (number + 1) % ENTRIES;
        state.entries.insert(number, Entry { key, raised: now });
        state.index.insert(key, number);
        Raise::Fresh(number)
    }

    /// The driver has handled the fault with this number; an unknown one is ignored.
    pub fn acknowledge(&self, number: u32) {
        let mut state = self.state();
        let entry = u16::try_from(number).ok().and_then(|n| state.entries.remove(&n));
        if let Some(entry) = entry {
            state.index.remove(&entry.key);
            state.recent.insert(entry.key, Instant::now());
        }
    }

    /// How many faults wait for an acknowledgement.
    pub fn waiting(&self) -> usize {
        self.state().entries.len()
    }

    /// Forgets all faults.
    pub fn clear(&self) {
        *self.state() = State::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(page: u64) -> FaultKey {
        FaultKey { mmhub: false, vmid: 8, page }
    }

    #[test]
    fn a_page_that_faults_again_waits() {
        let cam = Cam::new();
        let Raise::Fresh(first) = cam.raise(key(0x1000)) else { panic!("not fresh") };
        cam.acknowledge(u32::from(first));
        assert_eq!(cam.raise(key(0x1000)), Raise::Later);
        assert!(matches!(cam.raise(key(0x2000)), Raise::Fresh(_)), "another page waits");
        std::thread::sleep(2 * PAUSE);
        assert!(matches!(cam.raise(key(0x1000)), Raise::Fresh(_)));
    }

    #[test]
    fn a_full_cam_makes_faults_wait() {
        let cam = Cam::new();
        for page in 0..u64::from(ENTRIES) {
            assert!(matches!(cam.raise(key(page << 12)), Raise::Fresh(_)));
        }
        assert_eq!(cam.raise(key(u64::MAX)), Raise::Later);
        cam.acknowledge(7);
        assert_eq!(cam.raise(key(u64::MAX)), Raise::Fresh(7));
        cam.acknowledge(u32::MAX);
        assert_eq!(cam.waiting(), usize::from(ENTRIES));
    }
}
