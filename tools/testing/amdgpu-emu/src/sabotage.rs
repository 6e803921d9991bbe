// SPDX-License-Identifier: GPL-2.0

//! Mistakes with data, made on purpose: a test that checks data must notice them.

use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::gpu::Gpu;

/// What becomes of the data that users' copies, fills and shaders write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It is written.
    #[default]
    Off,
    /// It is lost.
    Drop,
    /// Every byte is one too large, so that a second copy does not undo the first.
    Corrupt,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "off" => Ok(Self::Off),
            "drop" => Ok(Self::Drop),
            "corrupt" => Ok(Self::Corrupt),
            _ => Err(format!("{word} is not off, drop or corrupt")),
        }
    }
}

/// The mode of a GPU.
#[derive(Default)]
pub struct Sabotage(AtomicU8);

impl Sabotage {
    /// The mode now.
    pub fn mode(&self) -> Mode {
        match self.0.load(Ordering::Relaxed) {
            1 => Mode::Drop,
            2 => Mode::Corrupt,
            _ => Mode::Off,
        }
    }

    /// Changes the mode.
    pub fn set(&self, mode: Mode) {
        self.0.store(mode as u8, Ordering::Relaxed);
    }
}

/// The control command `sabotage`.
pub(crate) fn command(gpu: &Gpu, words: &[&str]) -> Result<String, String> {
    match words {
        [] => return Ok(format!("{:?}\n", gpu.sabotage.mode()).to_lowercase()),
        [word] => gpu.sabotage.set(word.parse()?),
        _ => return Err("sabotage [off|drop|corrupt]".into()),
    }
    Ok(String::new())
}
