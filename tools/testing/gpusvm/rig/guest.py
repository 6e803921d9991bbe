# SPDX-License-Identifier: GPL-2.0
"""Builds what the guest runs: test programs, modules and scripts, packed as an initramfs."""

import glob
import hashlib
import os
import re
import shutil
import subprocess

from rig import ui
from rig.kernel import LOGS, SRC, make
from rig.overlay import read, write

REPO = "/repo"
SELFTESTS = [f"{SRC}/tools/testing/selftests/drm/{name}" for name in ("gpusvm", "amdgpu-emu")]
SCRIPTS = [f"{REPO}/tools/testing/gpusvm/guest", *(f"{folder}/guest" for folder in SELFTESTS)]
HEADERS = "/build/headers"
PROGRAMS = "/build/programs"
# KUnit suites in these modules run when the guest loads them.
DRIVERS = ["vsvm"]


def headers(kernel):
    """Installs the kernel's user-space headers if the overlay's or the tree's changed."""
    digest = hashlib.sha256(read("/cache/tree.key"))
    for path in sorted(glob.glob(f"{REPO}/include/uapi/**", recursive=True)):
        if os.path.isfile(path):
            digest.update(path.encode() + read(path))
    kept = f"{HEADERS}/gpusvm.key"
    if os.path.exists(kept) and read(kept).decode() == digest.hexdigest():
        return
    with ui.step("installing the user-space headers"):
        ui.run(make(kernel, f"INSTALL_HDR_PATH={HEADERS}", "headers_install"),
               f"{LOGS}/headers.log", name="headers_install")
    write(kept, digest.hexdigest().encode(), 0o644)


def programs(kernel):
    """Builds the user-space tests of the overlay and upstream's hmm-tests, statically."""
    headers(kernel)
    os.makedirs(PROGRAMS, exist_ok=True)
    flags = f"-isystem {HEADERS}/include"
    mark = f"{PROGRAMS}/gpusvm.building"
    if os.path.exists(mark):
        # Killed half-way.
        shutil.rmtree(PROGRAMS)
        os.makedirs(PROGRAMS)
    with ui.step("building the test programs"):
        write(mark, b"", 0o644)
        for folder in SELFTESTS:
            if os.path.exists(f"{folder}/Makefile"):
                ui.run(["make", "-C", folder, "CC=clang", f"OUTPUT={PROGRAMS}",
                        f"KHDR_INCLUDES={flags}", f"top_srcdir={SRC}", "LDFLAGS=-static", "all"],
                       f"{LOGS}/programs-{os.path.basename(folder)}.log", name="test programs")
        hmm_tests(flags)
        os.unlink(mark)


def hmm_tests(flags):
    """Upstream's hmm-tests.c as it is in the kernel source."""
    folder = f"{SRC}/tools/testing/selftests/mm"
    target = f"{PROGRAMS}/hmm-tests"
    source = f"{folder}/hmm-tests.c"
    if os.path.exists(target) and os.stat(target).st_mtime > os.stat(source).st_mtime:
        return
    sources = [f"{folder}/{name}.c" for name in ("hmm-tests", "vm_util")]
    sources += glob.glob(f"{folder}/hugepage_settings.c") + glob.glob(f"{folder}/thp_settings.c")
    ui.run(["clang", "-O2", "-Wall", "-Wno-unused", "-D_GNU_SOURCE=", "-static", *flags.split(),
            f"-I{SRC}", f"-I{SRC}/tools/testing/selftests", f"-I{SRC}/tools/include",
            "-o", target, *sources, "-lrt", "-lpthread", "-lm"],
           f"{LOGS}/hmm-tests.log", name="hmm-tests")


def executables(folder):
    for path in sorted(glob.glob(f"{folder}/*")):
        if os.path.isfile(path) and os.access(path, os.X_OK) and read(path)[:4] == b"\x7fELF":
            yield path


def root(kernel, root):
    """Lays out what the guest of a kernel has as its root; returns the folder."""
    for folder in ("bin", "dev", "proc", "sys", "tmp", "tests", "etc", "mnt"):
        os.makedirs(f"{root}/{folder}")
    shutil.copy("/bin/busybox", f"{root}/bin/busybox")
    for folder in SCRIPTS:
        for path in glob.glob(f"{folder}/*"):
            if os.path.isfile(path):
                shutil.copy(path, f"{root}/tests/")
    os.rename(f"{root}/tests/init", f"{root}/init")
    os.chmod(f"{root}/init", 0o755)
    for path in executables(PROGRAMS):
        shutil.copy(path, f"{root}/tests/")
    modules(kernel, root)
    return root


def pack(root, target):
    """Packs a folder as an initramfs, and removes it."""
    with open(target, "wb") as out:
        names = "\n".join(os.path.relpath(os.path.join(folder, name), root)
                          for folder, folders, files in os.walk(root)
                          for name in folders + files)
        done = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"], cwd=root,
                              input=names.encode(), stdout=out, check=False)
    if done.returncode:
        raise ui.Failed("cpio could not pack the initramfs")
    shutil.rmtree(root)


def modules(kernel, root):
    """Installs the kernel's modules, and lists those of our drivers that there are."""
    ui.run(make(kernel, "-s", f"INSTALL_MOD_PATH={root}", "INSTALL_MOD_STRIP=1",
                "modules_install"), f"{LOGS}/modules-{kernel.name}.log", name="modules_install")
    built = {os.path.basename(path)[:-len(".ko")]
             for path in glob.glob(f"{root}/lib/modules/**/*.ko", recursive=True)}
    ours = [name for name in DRIVERS if name in built]
    write(f"{root}/tests/kunit-modules", "".join(f"{name}\n" for name in ours).encode(), 0o644)
    for name in ("build", "source"):
        for link in glob.glob(f"{root}/lib/modules/*/{name}"):
            os.unlink(link)


def ours():
    """How results of the overlay are told from the kernel's own: a pattern of their names.

    A suite is ours if a file of the overlay defines it, a doctest if it stands in one.
    """
    names = []
    for path in glob.glob(f"{REPO}/**/*.rs", recursive=True):
        suites = re.findall(r"\bkunit_tests\((\w+)\)", read(path).decode())
        names += [rf"{suite}\." for suite in suites]
    base = f"{REPO}/rust/kernel"
    for path in glob.glob(f"{base}/**/*.rs", recursive=True):
        file = re.sub(r"[/.]", "_", os.path.relpath(path, base))
        names.append(rf"rust_doctests_kernel\.rust_doctest_kernel_{file}_\d+$")
    return re.compile("|".join(names) or "(?!)")
