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
from rig.beside import Beside
from rig.kernel import LOGS, image
from rig.ktap import strip
from rig.plan import words

COMMON = ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
X86_64 = ["qemu-system-x86_64", *COMMON, "-machine", "q35", "-bios", "qboot.rom",
          "-accel", "tcg,thread=multi", "-cpu", "max,la57=off"]
# An IOMMU with 48 address bits, before the devices it serves; two edu devices that can address all
# memory.
DEVICES = {"iommu": ["-device", "intel-iommu,aw-bits=48,intremap=off"],
           "edu": ["-device", "edu,dma_mask=0xffffffffffffffff"] * 2}
ARM64_DEVICES = {**DEVICES, "iommu": ["-machine", "iommu=smmuv3"]}
ARM64 = ["qemu-system-aarch64", *COMMON, "-machine", "virt", "-accel", "tcg,thread=multi",
         "-cpu", "max,pauth-impdef=on"]
# The second serial line is only for what tests print, so that no kernel message can break a line
# of results. A virtual timer that ticks late, since the machine is busy, must not stop the boot
# ("IO-APIC + timer doesn't work").
APPEND = ["loglevel=8", "panic=-1", "oops=panic", "printk.devkmsg=on",
          "iommu.strict=1", "iommu.debug_pagealloc=1", "no_hash_pointers", "nokaslr",
          "no_timer_check"]
RUNS = "/cache/run"
# A disk to swap on, and one with an ext4 file system.
DISK, FILES = 512 << 20, 64 << 20
# How the kernel log of a boot ends: by the guest's first program, or where there is none, KUnit.
DONE = re.compile(r"gpusvm: all scripts done|reboot: Power down")

# What QEMU says when it gives up a device that is a program beside it; nothing after that counts.
LOST = re.compile(r"^.*(timed out waiting for reply|unexpected reply|server closed socket|"
                  r"vfio_region_\w+\(.* failed).*$", re.M)


class Run:
    """A boot: a folder with copies of all it uses, so that builds may go on beside it."""

    def __init__(self, boot, kernel, plan):
        self.boot, self.kernel, self.failure, self.beside = boot, kernel, None, None
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
        if boot.beside:
            self.companion = plan.command(boot.beside, folder=self.folder)
            if os.path.isfile(self.companion[0]):
                # As everything else, not the file that a build may replace.
                self.companion[0] = shutil.copy(self.companion[0], self.folder)
        if kernel.arch == "x86_64":
            root = guest.root(kernel, self.path("initramfs.d"))
            for name in boot.guest:
                shutil.copy(plan.foreign[name].path, f"{root}/tests/")
            if boot.stage:
                ui.output(plan.command(boot.stage, folder=self.folder, root=root))
            guest.pack(root, self.path("initramfs"))
            for name, size in (("disk", DISK), ("files", FILES)):
                with open(self.path(name), "wb") as disk:
                    disk.truncate(size)
            ui.output(["mke2fs", "-q", "-F", "-t", "ext4", self.path("files")])

    def path(self, name):
        return f"{self.folder}/{name}"

    def lines(self, path):
        with open(path, errors="replace") as file:
            return file.read().splitlines()

    def qemu(self):
        """The boot's own arguments of QEMU."""
        return words(self.boot.qemu, folder=self.folder, memory=self.boot.memory)

    def ready(self):
        """Whether all sockets that QEMU is told to connect to exist."""
        sockets = re.findall(rf"{re.escape(self.folder)}/[\w.-]+\.sock\b", " ".join(self.qemu()))
        return all(os.path.exists(path) for path in sockets)

    def begin(self):
        """Starts what runs beside the machine; returns whether that is there."""
        if not self.boot.beside:
            return True
        self.beside = Beside(self.companion, self.path("beside.log"), self.folder)
        return self.beside.wait_for(self.ready)

    def close(self):
        """Ends what runs beside the machine, keeps the logs and removes the rest."""
        if self.beside:
            self.beside.stop()
            self.beside.log = self.keep(self.beside.log)
        self.kernel_log, self.tests_log = self.keep(self.kernel_log), self.keep(self.tests_log)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.close()

    def keep(self, path):
        kept = f"{LOGS}/{self.boot.name}.{os.path.basename(path)}"
        os.replace(path, kept)
        return kept


def sweep():
    """Removes what interrupted boots left: the folders that nobody has locked."""
    for name in os.listdir(RUNS):
        try:
            with open(f"{RUNS}/{name}/lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(f"{RUNS}/{name}", ignore_errors=True)
        except OSError:
            pass


def own(boot, devices):
    """The boot's devices, before all others: QEMU has an IOMMU serve what comes after it."""
    return [word for name in boot.devices for word in devices[name]]


def command(run, serial, extra=()):
    boot = run.boot
    append = [*APPEND, *boot.append, *extra]
    if run.kernel.arch == "arm64":
        # Built-in KUnit suites only: without a first program, and off when they are done.
        machine = [*ARM64, *own(boot, ARM64_DEVICES)]
        append += ["console=ttyAMA0", "kunit_shutdown=poweroff"]
    else:
        machine = [*X86_64, "-initrd", run.path("initramfs"), *own(boot, DEVICES)]
        for name in ("disk", "files"):
            file = f"file={run.path(name)},format=raw,cache=unsafe"
            machine += ["-drive", f"if=none,id={name},{file}",
                        "-device", f"virtio-blk-pci,drive={name}"]
        append += ["console=ttyS0", "gpusvm.run=" + ",".join(boot.run)]
    return [*machine, "-m", boot.memory, "-smp", str(boot.cpus), "-kernel", run.path("kernel"),
            *serial, *run.qemu(), "-append", " ".join(append)]


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
        child = None
        try:
            child = qemu(run, command(run, serial, extra)) if run.begin() else None
            while child and child.poll() is None:
                time.sleep(0.2)
                if show:
                    echo.show()
                else:
                    beat.show(f"  {name}: {progress(run)}")
                if run.beside and run.beside.lost(child):
                    child.kill()
                    run.failure = run.beside.failure
                lost = LOST.search("\n".join(run.lines(run.path("qemu.log"))))
                if lost and not run.failure:
                    child.kill()
                    run.failure = f"device lost: {lost[0]}"
                if time.monotonic() - begin > limit:
                    child.kill()
                    run.failure = f"not finished after {limit} s, given up in: {progress(run)}"
        finally:
            if child:
                child.kill()
                child.wait()
            if show:
                echo.show()
            said = "\n".join(run.lines(run.path("qemu.log"))[-5:]) if child else ""
            run.close()
    if not child:
        run.failure = f"not started: {run.beside.failure}"
    elif not run.failure and child.returncode:
        run.failure = f"QEMU: {said or child.returncode}"
    elif not run.failure:
        run.failure = ending("\n".join(run.lines(run.kernel_log)))


def qemu(run, words):
    """Starts QEMU; what it says itself goes to a file, as a pipe that nobody reads would fill."""
    with open(run.path("qemu.log"), "w") as out:
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out,
                                stderr=subprocess.STDOUT)


def ending(log):
    """What was wrong with the end of a boot, or None. A script that is missing or cannot be read
    by the shell ends with one of these statuses; others are its last program's own."""
    broken = re.search(r"gpusvm: script (\S+) ends with (2|126|127)$", log, re.M)
    if broken:
        return f"guest script {broken[1]} is missing or broken (exit status {broken[2]})"
    return None if DONE.search(log) else "the machine stopped before all scripts were done"


def shell(run):
    """The same machine with the terminal on its first serial line."""
    try:
        if run.begin():
            ui.say("'exit' or Ctrl-A x leaves")
            subprocess.run(command(run, ["-serial", "mon:stdio", "-serial", "null"],
                                   ["loglevel=4"]), check=False)
    finally:
        run.close()
    if run.beside and run.beside.failure:
        raise ui.Failed(run.beside.failure, run.beside.log)
