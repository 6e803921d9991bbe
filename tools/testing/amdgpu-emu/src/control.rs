// SPDX-License-Identifier: GPL-2.0

//! The control socket: a line is a command, the answer is text up to the end of the connection.
//!
//! The first line of the answer is `ok` or `error`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::gpu::Gpu;

/// The longest command.
const LONGEST: u64 = 4096;

/// What a command does; the words are those after its name.
pub type Action = Box<dyn Fn(&Gpu, &[&str]) -> Result<String, String> + Send + Sync>;

/// The commands.
pub struct Registry {
    commands: BTreeMap<&'static str, (&'static str, Action)>,
}

fn number<T: TryFrom<u64>>(word: &str) -> Result<T, String> {
    let value = match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => word.parse(),
    };
    let value = value.map_err(|_| format!("{word} is no number"))?;
    T::try_from(value).map_err(|_| format!("{word} is too large"))
}

fn counters(gpu: &Gpu, _words: &[&str]) -> Result<String, String> {
    let mut text = String::new();
    for (name, value) in gpu.counters.list() {
        let _ = writeln!(text, "{name} {value}");
    }
    Ok(text)
}

fn reports(gpu: &Gpu, words: &[&str]) -> Result<String, String> {
    let mut text = String::new();
    for (kind, what, count) in gpu.report.list() {
        let _ = writeln!(text, "{count} {kind}: {what}");
    }
    match words {
        [] => {}
        ["clear"] => gpu.report.clear(),
        _ => return Err("reports [clear]".into()),
    }
    Ok(text)
}

fn register(gpu: &Gpu, words: &[&str]) -> Result<String, String> {
    let find = |word: &str| amdgpu_regs::find(word).map_or_else(|| number(word), Ok);
    match words {
        [name] => Ok(format!("{:#010x}\n", gpu.reg_read(find(name)?))),
        [name, value] => {
            gpu.reg_write(find(name)?, number(value)?);
            Ok(String::new())
        }
        _ => Err("reg NAME|DWORD [VALUE]".into()),
    }
}

fn stall(gpu: &Gpu, words: &[&str]) -> Result<String, String> {
    match words {
        [] => Ok(gpu.engines().join("\n") + "\n"),
        [engine, state @ ("on" | "off")] if gpu.stall(engine, *state == "on") => Ok(String::new()),
        [engine, "on" | "off"] => Err(format!("there is no engine {engine}")),
        _ => Err("stall [ENGINE on|off]".into()),
    }
}

fn interrupt(gpu: &Gpu, words: &[&str]) -> Result<String, String> {
    match words {
        ["drop", count] => gpu.ih.inject.drop_next(number(count)?),
        ["duplicate", count] => gpu.ih.inject.duplicate_next(number(count)?),
        ["hold", milliseconds] => {
            gpu.ih.inject.hold(Duration::from_millis(u64::from(number::<u32>(milliseconds)?)));
        }
        ["send"] => {
            gpu.irq.send();
        }
        _ => return Err("irq drop COUNT | duplicate COUNT | hold MILLISECONDS | send".into()),
    }
    Ok(String::new())
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// The commands that every GPU has.
    pub fn new() -> Self {
        let mut registry = Self { commands: BTreeMap::new() };
        registry.add("counters", "what was done so far", Box::new(counters));
        registry.add("reports", "[clear]: what went wrong so far", Box::new(reports));
        registry.add("reg", "NAME|DWORD [VALUE]: read or write a register", Box::new(register));
        registry.add("stall", "[ENGINE on|off]: list, hold or release engines", Box::new(stall));
        registry.add(
            "irq",
            "drop COUNT | duplicate COUNT | hold MILLISECONDS | send: interrupts gone wrong",
            Box::new(interrupt),
        );
        registry
    }

    /// Adds a command.
    pub fn add(&mut self, name: &'static str, help: &'static str, action: Action) {
        self.commands.insert(name, (help, action));
    }

    fn help(&self) -> String {
        let mut text = String::from("[@GPU] COMMAND, with the GPU's number from 0:\n");
        for (name, (help, _)) in &self.commands {
            let _ = writeln!(text, "  {name} {help}");
        }
        text
    }

    /// Carries out a command line for one of the GPUs.
    ///
    /// # Errors
    ///
    /// What is wrong with the line.
    pub fn run(&self, gpus: &[Arc<Gpu>], line: &str) -> Result<String, String> {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        let mut index = 0;
        if let Some(given) = words.first().and_then(|word| word.strip_prefix('@')) {
            index = number(given)?;
            words.remove(0);
        }
        let gpu = gpus.get(index).ok_or_else(|| format!("there is no GPU {index}"))?;
        match words.split_first() {
            None | Some((&"help", _)) => Ok(self.help()),
            Some((name, rest)) => match self.commands.get(name) {
                Some((_, action)) => action(gpu, rest),
                None => Err(format!("unknown command {name}; try help")),
            },
        }
    }

    fn answer(&self, gpus: &[Arc<Gpu>], stream: UnixStream) -> io::Result<()> {
        let mut line = String::new();
        BufReader::new((&stream).take(LONGEST)).read_line(&mut line)?;
        let answer = match self.run(gpus, &line) {
            Ok(text) => format!("ok\n{text}"),
            Err(text) => format!("error\n{text}\n"),
        };
        (&stream).write_all(answer.as_bytes())
    }

    /// Serves the socket for ever, on a thread of its own.
    ///
    /// # Errors
    ///
    /// If the socket or the thread cannot be made.
    pub fn listen(self, gpus: Vec<Arc<Gpu>>, socket: &Path) -> io::Result<()> {
        let listener = UnixListener::bind(socket)?;
        thread::Builder::new().name("control".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                // Who goes away without listening gets no answer.
                let _ = self.answer(&gpus, stream);
            }
        })?;
        Ok(())
    }
}

/// Sends a command to a control socket.
///
/// # Errors
///
/// What the emulator says is wrong with the command, or that it cannot be reached.
pub fn send(socket: &Path, command: &str) -> Result<String, String> {
    let talk = || -> io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        writeln!(stream, "{command}")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = talk().map_err(|error| format!("{}: {error}", socket.display()))?;
    match answer.split_once('\n') {
        Some(("ok", text)) => Ok(text.to_string()),
        Some(("error", text)) => Err(text.trim_end().to_string()),
        _ => Err("no answer".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_do_what_they_say() {
        let gpus = [Gpu::for_tests(), Gpu::for_tests()];
        let registry = Registry::new();
        let run = |line: &str| registry.run(&gpus, line);
        assert_eq!(run("@1 reg SCRATCH_REG0 0x12"), Ok(String::new()));
        assert_eq!(run("@1 reg SCRATCH_REG0"), Ok("0x00000012\n".into()));
        assert_eq!(run("reg SCRATCH_REG0"), Ok("0x00000000\n".into()));
        assert!(run("@2 counters").is_err());
        assert!(run("nonsense").is_err());
        assert!(run("reg 0x1ffffffff").is_err());
        assert!(run("stall nobody on").is_err());
        assert!(run("help").unwrap().contains("irq drop COUNT"));
        assert!(run("counters").unwrap().contains("vectors 0\n"));
    }

    #[test]
    fn answers_come_over_the_socket() {
        let path = std::env::temp_dir().join(format!("amdgpu-emu-{}.sock", std::process::id()));
        Registry::new().listen(vec![Gpu::for_tests()], &path).unwrap();
        assert!(send(&path, "counters").unwrap().contains("walks 0"));
        assert!(send(&path, "nonsense").unwrap_err().contains("nonsense"));
        std::fs::remove_file(&path).unwrap();
        assert!(send(&path, "counters").is_err());
    }
}
