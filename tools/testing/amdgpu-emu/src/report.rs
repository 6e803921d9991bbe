// SPDX-License-Identifier: GPL-2.0

//! What went wrong, said once and counted; the exit status depends on it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// How many different texts are kept.
const LIMIT: usize = 1000;

/// What kind of mistake it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A translation was used that the page tables no longer have: a flush is missing.
    StaleTlb,
    /// A page was used that the guest had taken away from the device.
    LostPage,
    /// A packet that the emulator does not know.
    UnknownPacket,
    /// An instruction that the emulator does not know.
    UnknownOpcode,
    /// A physical access outside of any memory.
    BadDma,
    /// Something of the hardware that the emulator does not have.
    Unimplemented,
    /// The driver did what hardware forbids.
    Driver,
    /// Something failed that the emulator needs: a thread, a file, the connection.
    Internal,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StaleTlb => "stale translation",
            Self::LostPage => "lost page",
            Self::UnknownPacket => "unknown packet",
            Self::UnknownOpcode => "unknown instruction",
            Self::BadDma => "bad DMA",
            Self::Unimplemented => "not implemented",
            Self::Driver => "driver mistake",
            Self::Internal => "internal",
        })
    }
}

/// All that was reported.
#[derive(Default)]
pub struct Reports {
    seen: Mutex<BTreeMap<(Kind, String), u64>>,
    verbose: AtomicBool,
    end: OnceLock<String>,
}

impl Reports {
    /// Nothing reported so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// Prints notes from now on.
    pub fn set_verbose(&self, verbose: bool) {
        self.verbose.store(verbose, Ordering::Relaxed);
    }

    /// Are notes printed? Then texts for them are worth being made.
    pub fn verbose(&self) -> bool {
        self.verbose.load(Ordering::Relaxed)
    }

    /// Reports a mistake: it is printed when it happens first, and the run counts as failed.
    pub fn error(&self, kind: Kind, engine: &str, text: impl fmt::Display) {
        let text = format!("{engine}: {text}");
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let full = seen.len() >= LIMIT;
        let key = (kind, text);
        if let Some(count) = seen.get_mut(&key) {
            *count = count.saturating_add(1);
        } else if !full {
            eprintln!("amdgpu-emu: error: {kind}: {}", key.1);
            seen.insert(key, 1);
        }
    }

    /// Reports something after which nothing that follows means anything: the program ends at once.
    pub fn fatal(&self, engine: &str, text: impl fmt::Display) {
        let text = text.to_string();
        self.error(Kind::Internal, engine, &text);
        // The first is the cause of those that may follow.
        let _ = self.end.set(format!("{engine}: {text}"));
    }

    /// What ends the program, if anything does.
    pub fn end(&self) -> Option<&str> {
        self.end.get().map(String::as_str)
    }

    /// Says what happens, with --verbose.
    pub fn note(&self, engine: &str, text: impl fmt::Display) {
        if self.verbose() {
            eprintln!("amdgpu-emu: {engine}: {text}");
        }
    }

    /// All mistakes and how often each happened.
    pub fn list(&self) -> Vec<(Kind, String, u64)> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().map(|((kind, text), count)| (*kind, text.clone(), *count)).collect()
    }

    /// Was any mistake reported?
    pub fn failed(&self) -> bool {
        !self.seen.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Forgets all mistakes, as a test does that made some on purpose.
    pub fn clear(&self) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_counted_and_bounded() {
        let reports = Reports::new();
        assert!(!reports.failed());
        for _ in 0..3 {
            reports.error(Kind::BadDma, "test", "the same");
        }
        assert_eq!(reports.list(), [(Kind::BadDma, "test: the same".to_string(), 3)]);
        for n in 0..LIMIT + 10 {
            reports.error(Kind::Driver, "test", n);
        }
        assert_eq!(reports.list().len(), LIMIT);
        reports.clear();
        assert!(!reports.failed());
    }

    #[test]
    fn the_first_fatal_mistake_is_kept() {
        let reports = Reports::new();
        reports.error(Kind::BadDma, "test", "only a mistake");
        assert_eq!(reports.end(), None);
        reports.fatal("test", "the cause");
        reports.fatal("test", "what followed");
        assert_eq!(reports.end(), Some("test: the cause"));
        reports.clear();
        assert!(reports.end().is_some(), "forgotten with the other mistakes");
    }
}
