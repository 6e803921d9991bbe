// SPDX-License-Identifier: GPL-2.0

//! The program: see `amdgpu-emu --help` and README.md.

use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{mpsc, Arc};
use std::thread;
use std::time::Duration;

use amdgpu_emu::control::{self, Registry};
use amdgpu_emu::gpu::Gpu;
use amdgpu_emu::mem::{GuestRam, Vram};
use amdgpu_emu::sabotage::Mode;
use amdgpu_emu::vfio::Device;
use amdgpu_emu::{assembly, firmware};
use clap::{Parser, Subcommand};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// An emulated GC 9.4.3 GPU for QEMU, on which the unmodified amdgpu driver runs
///
/// Start it before QEMU, then give QEMU the same socket:
///
///   -object memory-backend-memfd,id=m,size=4G,share=on -machine q35,memory-backend=m
///   -device '{"driver":"vfio-user-pci","socket":{"path":"gpu0.sock","type":"unix"}}'
///
/// The guest needs the files that `amdgpu-emu firmware` writes in /lib/firmware/amdgpu, and
/// amdgpu.fw_load_type=0 amdgpu.dpm=0 amdgpu.ras_enable=0 on its command line.
#[derive(Parser)]
#[command(version, verbatim_doc_comment)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Be one or more GPUs until QEMU has gone or SIGTERM comes
    ///
    /// The exit status is 1 if anything was reported: a stale translation that was used, a page
    /// that was used after it was taken away, a packet or instruction that is not known, and so on.
    Run {
        /// The socket for QEMU; once for each GPU
        #[arg(long, required = true)]
        socket: Vec<PathBuf>,
        /// The size of each GPU's memory: a power of two, at least 512M
        #[arg(long, default_value = "1G", value_parser = size)]
        vram: u64,
        /// The socket for commands, see `amdgpu-emu control`
        #[arg(long)]
        control: Option<PathBuf>,
        /// Do users' copies and shaders wrong: off, drop or corrupt
        #[arg(long, default_value = "off", value_name = "MODE")]
        sabotage: Mode,
        /// Say every register access, doorbell and interrupt
        #[arg(long)]
        verbose: bool,
    },
    /// Write the firmware files that the driver asks for into a folder
    Firmware {
        /// The folder, amdgpu below lib/firmware of the guest
        folder: PathBuf,
    },
    /// Send a command to a running emulator; `help` lists them
    Control {
        /// The socket that `run --control` made
        socket: PathBuf,
        /// The command and its words
        #[arg(required = true)]
        command: Vec<String>,
    },
}

/// The smallest VRAM: the driver reserves about 280 MiB at its end.
const SMALLEST: u64 = 512 << 20;

/// Reads a size such as `512M` or `2G`.
fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.strip_suffix('G') {
        Some(digits) => (digits, 30),
        None => (text.strip_suffix('M').ok_or("a size ends with M or G")?, 20),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{digits} is no number"))?;
    let size = number.checked_mul(1 << shift).ok_or("too large")?;
    if size < SMALLEST || !size.is_power_of_two() {
        return Err("it must be a power of two and at least 512M".into());
    }
    Ok(size)
}

/// Sends what the vfio-user library says to the standard error.
struct Messages;

impl log::Log for Messages {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("amdgpu-emu: {}: {}", record.target(), record.args());
        }
    }

    fn flush(&self) {}
}

/// How often what waits for a while is looked at.
const TICK: Duration = Duration::from_millis(5);

/// Why the program ends.
enum End {
    /// A client has gone.
    Client(Result<(), String>),
    /// A signal came.
    Signal,
    /// A GPU reported something fatal.
    Fatal(String),
}

/// What all GPUs said at the end; whether any reported a mistake.
fn summary(gpus: &[Arc<Gpu>]) -> bool {
    let mut failed = false;
    for (number, gpu) in gpus.iter().enumerate() {
        let counters: Vec<String> =
            gpu.counters.list().iter().map(|(name, value)| format!("{name} {value}")).collect();
        eprintln!("amdgpu-emu: GPU {number}: {}", counters.join(", "));
        for (kind, text, count) in gpu.report.list() {
            eprintln!("amdgpu-emu: GPU {number}: error, {count} times: {kind}: {text}");
            failed = true;
        }
    }
    failed
}

fn run(
    sockets: &[PathBuf],
    vram: u64,
    control: Option<&Path>,
    sabotage: Mode,
    verbose: bool,
) -> Result<bool, String> {
    let said = |what: &Path, error: std::io::Error| format!("{}: {error}", what.display());
    let (ends, end) = mpsc::channel();
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(|error| error.to_string())?;
    let mut gpus = Vec::new();
    let mut registry = Registry::new();
    for socket in sockets {
        let ram = Arc::new(GuestRam::new());
        let memory = Arc::new(Vram::new(vram).map_err(|error| said(Path::new("VRAM"), error))?);
        let gpu = assembly::gpu(ram.clone(), memory.clone(), vram, &mut registry)
            .map_err(|error| error.to_string())?;
        gpu.report.set_verbose(verbose);
        gpu.sabotage.set(sabotage);
        gpus.push(gpu.clone());
        let mut device = Device::new(gpu, ram, memory);
        let server = device.listen(socket).map_err(|error| said(socket, error))?;
        let ends = ends.clone();
        thread::spawn(move || {
            let served = panic::catch_unwind(AssertUnwindSafe(|| device.serve(&server)));
            let ended = match served {
                Ok(ended) => ended.map_err(|error| error.to_string()),
                Err(_) => Err("the thread of a device panicked".into()),
            };
            let _ = ends.send(End::Client(ended));
        });
    }
    if let Some(control) = control {
        registry.listen(gpus.clone(), control).map_err(|error| said(control, error))?;
    }
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            let _ = ends.send(End::Signal);
        }
    });
    let ended = loop {
        match end.recv_timeout(TICK) {
            Err(mpsc::RecvTimeoutError::Timeout) => gpus.iter().for_each(|gpu| gpu.ih.poll(gpu)),
            other => break other,
        }
        if let Some(text) = gpus.iter().find_map(|gpu| gpu.report.end()) {
            break Ok(End::Fatal(text.into()));
        }
    };
    gpus.iter().for_each(|gpu| gpu.stop());
    for path in sockets.iter().map(PathBuf::as_path).chain(control) {
        // The library removes its socket itself, if it comes to that.
        let _ = std::fs::remove_file(path);
    }
    let failed = summary(&gpus);
    match ended {
        Ok(End::Client(Err(error)) | End::Fatal(error)) => Err(error),
        _ => Ok(failed),
    }
}

fn main() -> ExitCode {
    if log::set_logger(&Messages).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
    let done = match Arguments::parse().command {
        Command::Run { socket, vram, control, sabotage, verbose } => {
            run(&socket, vram, control.as_deref(), sabotage, verbose)
        }
        Command::Firmware { folder } => firmware::write(&folder)
            .map(|()| false)
            .map_err(|error| format!("{}: {error}", folder.display())),
        Command::Control { socket, command } => {
            control::send(&socket, &command.join(" ")).map(|text| {
                print!("{text}");
                false
            })
        }
    };
    match done {
        Ok(false) => ExitCode::SUCCESS,
        Ok(true) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("amdgpu-emu: error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_two() {
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("2G"), Ok(2 << 30));
        for bad in ["256M", "3G", "1", "xG", "99999999999999999999G", "18446744073709551615G"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn arguments_are_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
