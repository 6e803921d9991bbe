# SPDX-License-Identifier: GPL-2.0
"""Starts the virtual machine and waits for it."""

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time

from rig import guest, ui
from rig.kernel import LOGS, image
from rig.ktap import strip

COMMON = ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
# An IOMMU with 48 address bits before the devices it serves; two edu devices that can address all
# memory.
X86_64 = [
    "qemu-system-x86_64", *COMMON, "-machine", "q35", "-bios", "qboot.rom",
    "-accel", "tcg,thread=multi", "-cpu", "max,la57=off",
    "-device", "intel-iommu,aw-bits=48,intremap=off",
    "-device", "edu,dma_mask=0xffffffffffffffff",
    "-device", "edu,dma_mask=0xffffffffffffffff",
]
ARM64 = ["qemu-system-aarch64", *COMMON, "-machine", "virt", "-accel", "tcg,thread=multi",
         "-cpu", "max,pauth-impdef=on"]
# The second serial line is only for what tests print, so that no kernel message can break a line
# of results.
APPEND = ["loglevel=8", "panic=-1", "oops=panic", "printk.devkmsg=on",
          "iommu.strict=1", "iommu.debug_pagealloc=1", "no_hash_pointers", "nokaslr"]
RUNS = "/cache/run"
# A disk to swap on, and one with an ext4 file system.
DISK, FILES = 512 << 20, 64 << 20
# How the kernel log of a boot ends: by the guest's first program, or where there is none, KUnit.
DONE = re.compile(r"gpusvm: all scripts done|reboot: Power down")


class Run:
    """A boot: a folder with copies of all it uses, so that builds may go on beside it."""

    def __init__(self, boot, kernel):
        self.boot, self.kernel, self.failure = boot, kernel, None
        os.makedirs(RUNS, exist_ok=True)
        os.makedirs(LOGS, exist_ok=True)
        sweep()
        self.folder = tempfile.mkdtemp(prefix=f"{boot.name}.", dir=RUNS)
        self.lock = open(f"{self.folder}/lock", "w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.kernel_log, self.tests_log = self.path("kernel.log"), self.path("tests.log")
        for path in (self.kernel_log, self.tests_log):
            open(path, "w").close()
        shutil.copy(image(kernel), self.path("kernel"))
        if kernel.arch == "x86_64":
            guest.initramfs(kernel, self.path("initramfs"))
            for name, size in (("disk", DISK), ("files", FILES)):
                with open(self.path(name), "wb") as disk:
                    disk.truncate(size)
            ui.output(["mke2fs", "-q", "-F", "-t", "ext4", self.path("files")])

    def path(self, name):
        return f"{self.folder}/{name}"

    def lines(self, path):
        with open(path, errors="replace") as file:
            return file.read().splitlines()

    def close(self):
        """Keeps the logs and removes the rest."""
        for name in ("kernel_log", "tests_log"):
            kept = f"{LOGS}/{self.boot.name}.{name.replace('_', '.')}"
            os.replace(getattr(self, name), kept)
            setattr(self, name, kept)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.close()


def sweep():
    """Removes what interrupted boots left: the folders that nobody has locked."""
    for name in os.listdir(RUNS):
        try:
            with open(f"{RUNS}/{name}/lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(f"{RUNS}/{name}", ignore_errors=True)
        except OSError:
            pass


def command(run, serial, extra=()):
    boot = run.boot
    words = [*APPEND, *boot.append, *extra]
    if run.kernel.arch == "arm64":
        # Built-in KUnit suites only: without a first program, and off when they are done.
        machine = ARM64
        words += ["console=ttyAMA0", "kunit_shutdown=poweroff"]
    else:
        machine = [*X86_64, "-initrd", run.path("initramfs")]
        for name in ("disk", "files"):
            file = f"file={run.path(name)},format=raw,cache=unsafe"
            machine += ["-drive", f"if=none,id={name},{file}",
                        "-device", f"virtio-blk-pci,drive={name}"]
        words += ["console=ttyS0", "gpusvm.run=" + ",".join(boot.run)]
    return [*machine, "-m", boot.memory, "-smp", str(boot.cpus), "-kernel", run.path("kernel"),
            *serial, "-append", " ".join(words)]


def progress(run):
    """What the guest does now, from the end of its logs."""
    for path in (run.tests_log, run.kernel_log):
        found = [strip(line) for line in run.lines(path)[-40:]
                 if re.search(r"(ok \d+|gpusvm-run:|# Subtest:|RUN )", line)]
        if found:
            return found[-1].strip()[:60]
    return "booting"


class Echo:
    """Prints what the guest's scripts say, but for the marks between programs."""

    def __init__(self, path):
        self.file = open(path, errors="replace")

    def show(self):
        for line in self.file:
            if not line.startswith(("gpusvm-run:", "gpusvm-exit:")):
                print(line.rstrip("\r\n") + ("\033[K" if ui.TTY else ""), flush=True)


def boot(run, extra=(), show=False):
    """Boots, waits for the machine to switch itself off, and says how that went."""
    serial = ["-serial", f"file:{run.kernel_log}"]
    if run.kernel.arch == "x86_64":
        serial += ["-serial", f"file:{run.tests_log}"]
    name, limit = run.boot.name, run.boot.limit
    beat, begin, echo = ui.Beat(), time.monotonic(), Echo(run.tests_log)
    with ui.step(f"boot {name} (kernel {run.kernel.name})"):
        child = subprocess.Popen(command(run, serial, extra), text=True, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            while child.poll() is None:
                time.sleep(0.2)
                if show:
                    echo.show()
                else:
                    beat.show(f"  {name}: {progress(run)}")
                if time.monotonic() - begin > limit:
                    child.kill()
                    run.failure = f"not finished after {limit} s, given up in: {progress(run)}"
        finally:
            if child.poll() is None:
                child.kill()
            said = child.communicate()[0].strip()
            if show:
                echo.show()
            run.close()
    if not run.failure and child.returncode:
        run.failure = f"QEMU: {said or child.returncode}"
    elif not run.failure:
        run.failure = ending("\n".join(run.lines(run.kernel_log)))


def ending(log):
    """What was wrong with the end of a boot, or None. A script that is missing or cannot be read
    by the shell ends with one of these statuses; others are its last program's own."""
    broken = re.search(r"gpusvm: script (\S+) ends with (2|126|127)$", log, re.M)
    if broken:
        return f"guest script {broken[1]} is missing or broken (exit status {broken[2]})"
    return None if DONE.search(log) else "the machine stopped before all scripts were done"


def shell(run):
    """The same machine with the terminal on its first serial line."""
    ui.say("'exit' or Ctrl-A x leaves")
    try:
        subprocess.run(command(run, ["-serial", "mon:stdio", "-serial", "null"], ["loglevel=4"]),
                       check=False)
    finally:
        run.close()
