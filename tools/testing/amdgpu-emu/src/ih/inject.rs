// SPDX-License-Identifier: GPL-2.0

//! Mistakes that the interrupt handler makes on purpose, as the control socket asks.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use amdgpu_regs::ih;

use super::Iv;

#[derive(Default)]
struct State {
    drop: u32,
    duplicate: u32,
    until: Option<Instant>,
}

/// What to do wrong.
#[derive(Default)]
pub struct Inject(Mutex<State>);

/// Is it a fault that the driver may get more than once?
fn is_fault(iv: &Iv) -> bool {
    [ih::SOC15_IH_CLIENTID_VMC, ih::SOC15_IH_CLIENTID_UTCL2].contains(&u32::from(iv.client))
}

impl Inject {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the next `count` vectors.
    pub fn drop_next(&self, count: u32) {
        self.state().drop = count;
    }

    /// Sends each of the next `count` faults twice.
    pub fn duplicate_next(&self, count: u32) {
        self.state().duplicate = count;
    }

    /// Holds all vectors back for a time.
    pub fn hold(&self, time: Duration) {
        self.state().until = Instant::now().checked_add(time);
    }

    /// How often this vector is to be sent.
    pub(super) fn copies(&self, iv: &Iv) -> u32 {
        let mut state = self.state();
        if let Some(left) = state.drop.checked_sub(1) {
            state.drop = left;
            return 0;
        }
        match state.duplicate.checked_sub(1) {
            Some(left) if is_fault(iv) => {
                state.duplicate = left;
                2
            }
            _ => 1,
        }
    }

    /// Are vectors held back now?
    pub(super) fn held(&self) -> bool {
        let mut state = self.state();
        if state.until.is_some_and(|until| Instant::now() >= until) {
            state.until = None;
        }
        state.until.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_goes_wrong() {
        let inject = Inject::default();
        let fault = Iv { client: ih::SOC15_IH_CLIENTID_VMC as u8, ..Iv::default() };
        assert_eq!(inject.copies(&fault), 1);
        inject.drop_next(1);
        inject.duplicate_next(1);
        assert_eq!(inject.copies(&fault), 0);
        assert_eq!(inject.copies(&Iv::default()), 1);
        assert_eq!(inject.copies(&fault), 2);
        assert_eq!(inject.copies(&fault), 1);
    }

    #[test]
    fn vectors_are_held_for_a_time() {
        let inject = Inject::default();
        inject.hold(Duration::from_millis(5));
        assert!(inject.held());
        std::thread::sleep(Duration::from_millis(10));
        assert!(!inject.held());
    }
}
