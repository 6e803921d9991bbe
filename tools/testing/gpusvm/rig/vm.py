# SPDX-License-Identifier: GPL-2.0
"""Starts the virtual machine and waits for it."""

import os
import re
import shutil
import subprocess
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
# A disk to swap on, and one with an ext4 file system.
DISK, FILES = 512 << 20, 64 << 20
# How the kernel log of a boot ends: by the guest's first program, or where there is none, KUnit.
DONE = re.compile(r"gpusvm: all scripts done|reboot: Power down")


class Run:
    """A boot that was made: its logs and how it ended."""

    def __init__(self, boot, kernel):
        self.boot, self.kernel = boot, kernel
        self.kernel_log = f"{LOGS}/{boot.name}.kernel.log"
        self.tests_log = f"{LOGS}/{boot.name}.tests.log"
        self.failure = None

    def lines(self, path):
        with open(path, errors="replace") as file:
            return file.read().splitlines()


def prepare(boot, kernel):
    """The folder with copies of all that this boot uses, so that builds may go on beside it."""
    folder = f"/cache/run/{boot.name}.{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    os.makedirs(LOGS, exist_ok=True)
    shutil.copy(image(kernel), f"{folder}/kernel")
    if kernel.arch == "x86_64":
        guest.initramfs(kernel, f"{folder}/initramfs")
        with open(f"{folder}/disk", "wb") as disk:
            disk.truncate(DISK)
        with open(f"{folder}/files", "wb") as disk:
            disk.truncate(FILES)
        ui.output(["mke2fs", "-q", "-F", "-t", "ext4", f"{folder}/files"])
    return folder


def command(boot, kernel, folder, serial, extra=()):
    words = [*APPEND, *boot.append, *extra]
    if kernel.arch == "arm64":
        # Built-in KUnit suites only: without a first program, and off when they are done.
        machine = ARM64
        words += ["console=ttyAMA0", "kunit_shutdown=poweroff"]
    else:
        machine = [*X86_64, "-drive", f"file={folder}/disk,if=none,id=disk,format=raw,cache=unsafe",
                   "-device", "virtio-blk-pci,drive=disk",
                   "-drive", f"file={folder}/files,if=none,id=files,format=raw,cache=unsafe",
                   "-device", "virtio-blk-pci,drive=files", "-initrd", f"{folder}/initramfs"]
        words += ["console=ttyS0", "gpusvm.run=" + ",".join(boot.run)]
    return [*machine, "-m", boot.memory, "-smp", str(boot.cpus), "-kernel", f"{folder}/kernel",
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


def boot(boot, kernel, extra=(), show=False):
    """Boots, waits for the machine to switch itself off, and says how that went."""
    run = Run(boot, kernel)
    folder = prepare(boot, kernel)
    for path in (run.kernel_log, run.tests_log):
        open(path, "w").close()
    serial = ["-serial", f"file:{run.kernel_log}"]
    if kernel.arch == "x86_64":
        serial += ["-serial", f"file:{run.tests_log}"]
    beat, begin, echo = ui.Beat(), time.monotonic(), Echo(run.tests_log)
    with ui.step(f"boot {boot.name} (kernel {kernel.name})"):
        child = subprocess.Popen(command(boot, kernel, folder, serial, extra), text=True,
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT)
        try:
            while child.poll() is None:
                time.sleep(0.2)
                if show:
                    echo.show()
                else:
                    beat.show(f"  {boot.name}: {progress(run)}")
                if time.monotonic() - begin > boot.limit:
                    child.kill()
                    run.failure = f"not finished after {boot.limit} s, given up"
        finally:
            if child.poll() is None:
                child.kill()
            said = child.communicate()[0].strip()
            shutil.rmtree(folder, ignore_errors=True)
        if show:
            echo.show()
    if not run.failure and child.returncode:
        run.failure = f"QEMU: {said or child.returncode}"
    elif not run.failure:
        run.failure = ending("\n".join(run.lines(run.kernel_log)))
    return run


def ending(log):
    """What was wrong with the end of a boot, or None. A script that is missing or cannot be read
    by the shell ends with one of these statuses; others are its last program's own."""
    broken = re.search(r"gpusvm: script (\S+) ends with (2|126|127)$", log, re.M)
    if broken:
        return f"guest script {broken[1]} is missing or broken (exit status {broken[2]})"
    return None if DONE.search(log) else "the machine stopped before all scripts were done"


def shell(boot, kernel, folder):
    """The same machine with the terminal on its first serial line."""
    ui.say("'exit' or Ctrl-A x leaves")
    serial = ["-serial", "mon:stdio", "-serial", "null"]
    try:
        subprocess.run(command(boot, kernel, folder, serial, ["loglevel=4"]), check=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
