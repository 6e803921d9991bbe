# SPDX-License-Identifier: GPL-2.0
"""Configures and builds a kernel, with clang, out of tree."""

import contextlib
import hashlib
import os
import re

from rig import ui
from rig.overlay import read, write

SRC = "/src"
LOGS = "/cache/log"
JOBS = os.cpu_count() or 1
# Lines that a build from nothing prints, for the percentage of the first one.
LINES = 2900


def make(kernel, *words):
    arch = [] if kernel.arch == "x86_64" else [f"ARCH={kernel.arch}"]
    return ["make", "-C", SRC, f"O={kernel.build}", "LLVM=1", *arch, f"-j{JOBS}", *words]


def options(fragments):
    """The options that fragments ask for: name -> line; later ones win."""
    wanted = {}
    for line in "\n".join(fragments).splitlines():
        name = re.match(r"(?:# )?(CONFIG_\w+)(=| is not set)", line)
        if name:
            wanted[name[1]] = line.strip()
    return wanted


def kconfigs():
    """The overlay's Kconfig files: a change of one asks for a new configuration."""
    with open(f"{SRC}/.gpusvm-overlay/manifest.json") as file:
        paths = re.findall(r'"([^"]*Kconfig[^"]*)"', file.read())
    return b"".join(read(f"{SRC}/{path}") for path in paths)


def configure(kernel):
    """Makes .config from the fragments if they or the overlay's Kconfig files changed."""
    fragments = [read(path).decode() for path in kernel.configs]
    wanted = options(fragments)
    key = hashlib.sha256("\n".join(wanted.values()).encode() + kconfigs()
                         + read("/cache/tree.key")).hexdigest()
    kept = f"{kernel.build}/gpusvm.key"
    if os.path.exists(kept) and read(kept).decode() == key:
        return
    with ui.step(f"configuring kernel {kernel.name}"):
        os.makedirs(kernel.build, exist_ok=True)
        log = f"{LOGS}/config-{kernel.name}.log"
        merged = f"{kernel.build}/gpusvm.config"
        write(merged, ("\n".join(wanted.values()) + "\n").encode(), 0o644)
        # Built beside the one in use, so that an equal configuration keeps its time stamp.
        work = f"{kernel.build}/gpusvm-config"
        other = make(kernel, "-s")
        other[other.index(f"O={kernel.build}")] = f"O={work}"
        # Everything that no fragment asks for stays off, so that the kernels are built quickly.
        ui.run(other + [f"KCONFIG_ALLCONFIG={merged}", "allnoconfig"], log, name="allnoconfig")
        got = options([read(f"{work}/.config").decode()])
        lost = [line for name, line in wanted.items()
                if got.get(name, f"# {name} is not set") != line]
        if lost:
            raise ui.Failed(f"kernel {kernel.name}: these options did not survive, a dependency "
                            "is missing:\n" + "\n".join(lost))
        config = read(f"{work}/.config")
        if not os.path.exists(f"{kernel.build}/.config") \
                or read(f"{kernel.build}/.config") != config:
            write(f"{kernel.build}/.config", config, 0o644)
        write(kept, key.encode(), 0o644)


@contextlib.contextmanager
def whole(kernel):
    """Around a build: after one that was killed, what it may have left half written is removed.

    An interrupted or failed make removes such files itself.
    """
    mark = f"{kernel.build}/gpusvm.building"
    if os.path.exists(mark):
        mend(kernel.build)
    write(mark, b"", 0o644)
    try:
        yield
    except ui.Abandoned:
        raise
    except BaseException:
        os.unlink(mark)
        raise
    os.unlink(mark)


def mend(build):
    """Removes what is newer than kbuild's note of how it was made, which is written last."""
    for folder, _, names in os.walk(build):
        for name in names:
            target = f"{folder}/{name[1:-len('.cmd')]}"
            if name.startswith(".") and name.endswith(".cmd") and os.path.isfile(target) \
                    and os.stat(target).st_mtime_ns > os.stat(f"{folder}/{name}").st_mtime_ns:
                os.unlink(target)


def image(kernel):
    path = "x86/boot/bzImage" if kernel.arch == "x86_64" else "arm64/boot/Image"
    return f"{kernel.build}/arch/{path}"


def build(kernel):
    """Builds the kernel image and its modules."""
    configure(kernel)
    count = f"{kernel.build}/gpusvm.lines"
    known = int(read(count)) if os.path.exists(count) else LINES
    fresh = not os.path.exists(image(kernel))
    targets = [os.path.basename(image(kernel)), "modules"]
    with ui.step(f"building kernel {kernel.name}"), whole(kernel):
        lines = ui.run(make(kernel, *targets), f"{LOGS}/build-{kernel.name}.log",
                       expect=known if fresh else 0, name=f"kernel {kernel.name}")
    if fresh:
        write(count, str(lines).encode(), 0o644)
