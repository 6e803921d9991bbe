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

# An IOMMU with 48 address bits before the devices it serves; two edu devices that can address all
# memory; a disk to swap on.
MACHINE = [
    "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
    "-machine", "q35", "-bios", "qboot.rom", "-accel", "tcg,thread=multi",
    "-cpu", "max,la57=off",
    "-device", "intel-iommu,aw-bits=48,intremap=off",
    "-device", "edu,dma_mask=0xffffffffffffffff",
    "-device", "edu,dma_mask=0xffffffffffffffff",
]
# The second serial line is only for what tests print, so that no kernel message can break a line
# of results.
APPEND = ["console=ttyS0", "loglevel=8", "panic=-1", "oops=panic", "printk.devkmsg=on",
          "iommu.strict=1", "iommu.debug_pagealloc=1", "no_hash_pointers", "nokaslr"]
DISK = 512 << 20
DONE = "gpusvm: all scripts done"


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
    guest.initramfs(kernel, f"{folder}/initramfs")
    with open(f"{folder}/disk", "wb") as disk:
        disk.truncate(DISK)
    return folder


def command(boot, folder, serial, extra=()):
    words = [*APPEND, *boot.append, *extra]
    if boot.run:
        words.append("gpusvm.run=" + ",".join(boot.run))
    return ["qemu-system-x86_64", *MACHINE, "-m", boot.memory, "-smp", str(boot.cpus),
            "-drive", f"file={folder}/disk,if=none,id=disk,format=raw,cache=unsafe",
            "-device", "virtio-blk-pci,drive=disk",
            "-kernel", f"{folder}/kernel", "-initrd", f"{folder}/initramfs",
            *serial, "-append", " ".join(words)]


def progress(run):
    """What the guest does now, from the end of its logs."""
    for path in (run.tests_log, run.kernel_log):
        found = [strip(line) for line in run.lines(path)[-40:]
                 if re.search(r"(ok \d+|gpusvm-run:|# Subtest:|RUN )", line)]
        if found:
            return found[-1].strip()[:60]
    return "booting"


def boot(boot, kernel, extra=()):
    """Boots, waits for the machine to switch itself off, and says how that went."""
    run = Run(boot, kernel)
    folder = prepare(boot, kernel)
    for path in (run.kernel_log, run.tests_log):
        open(path, "w").close()
    serial = ["-serial", f"file:{run.kernel_log}", "-serial", f"file:{run.tests_log}"]
    beat, begin = ui.Beat(), time.monotonic()
    with ui.step(f"boot {boot.name} (kernel {kernel.name})"):
        child = subprocess.Popen(command(boot, folder, serial, extra), stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            while child.poll() is None:
                time.sleep(0.2)
                beat.show(f"  {boot.name}: {progress(run)}")
                if time.monotonic() - begin > boot.limit:
                    child.kill()
                    run.failure = f"not finished after {boot.limit} s, given up"
        finally:
            if child.poll() is None:
                child.kill()
            said = child.communicate()[0].strip()
            shutil.rmtree(folder, ignore_errors=True)
    if not run.failure and child.returncode:
        run.failure = f"QEMU: {said or child.returncode}"
    elif not run.failure and not any(DONE in line for line in run.lines(run.kernel_log)):
        run.failure = "the machine stopped before all scripts were done"
    return run


def shell(boot, kernel):
    """The same machine with the terminal on its first serial line."""
    folder = prepare(boot, kernel)
    ui.say("'exit' or Ctrl-A x leaves")
    serial = ["-chardev", "stdio,id=tty,mux=on,signal=off", "-serial", "chardev:tty",
              "-mon", "chardev=tty"]
    try:
        subprocess.run(command(boot, folder, serial, ["loglevel=4"]), check=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
