# SPDX-License-Identifier: GPL-2.0
"""Programs of others for the guest, built unmodified from a source package of Debian.

What they need beyond the build root is added to it when such a program is wanted first.
"""

import glob
import hashlib
import os
import re
import shutil
import subprocess

from rig import ui
from rig.kernel import JOBS, LOGS
from rig.overlay import read, write

SOURCES = "/cache/foreign"
APT = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
# In a user namespace there is no other user to download as.
TOOL = ["apt-get", "-q", "-o", "APT::Sandbox::User=root"]


def missing(packages):
    """Those of the packages that the build root does not have."""
    done = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n"],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    there = {line.split()[0] for line in done.stdout.splitlines() if line.endswith(" installed")}
    return [name for name in packages if name not in there]


def install(program):
    """Adds packages to the build root."""
    wanted = missing(program.packages)
    if not wanted:
        return
    log = f"{LOGS}/{program.name}-packages.log"
    with ui.step(f"adding packages for {program.name}: {' '.join(wanted)}"):
        # After one that was interrupted.
        ui.run(["dpkg", "--configure", "-a"], log, name="dpkg", env=APT)
        ui.run([*TOOL, "update"], log, name="apt-get update", env=APT)
        ui.run([*TOOL, "-y", "--no-install-recommends", "install", *wanted], log,
               name="apt-get install", env=APT)
        ui.run([*TOOL, "clean"], log, name="apt-get clean", env=APT)


def source_list(text):
    """The lines of a list of archives, for their sources."""
    return re.sub(r"^deb(?=\s)", "deb-src", text, flags=re.M)


def digest(path):
    return hashlib.sha256(read(path)).hexdigest()


def fetch(program):
    """The source's archive: its name says the version, its digest is in the plan."""
    name, version, wanted = program.package
    folder = f"{SOURCES}/{program.name}"
    upstream = version.rpartition("-")[0] or version
    found = glob.glob(f"{folder}/{name}_{upstream}.orig.tar.*")
    found = [path for path in found if digest(path) == wanted]
    if found:
        return found[0]
    log = f"{LOGS}/{program.name}-source.log"
    with ui.step(f"fetching the source of {program.name}: {name} {version}"):
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(f"{folder}/lists/partial")
        lists = ["/etc/apt/sources.list", *sorted(glob.glob("/etc/apt/sources.list.d/*.list"))]
        write(f"{folder}/sources.list", "".join(
            source_list(read(path).decode()) for path in lists if os.path.exists(path)).encode(),
            0o644)
        apt = [*TOOL, "-o", f"Dir::Etc::SourceList={folder}/sources.list",
               "-o", "Dir::Etc::SourceParts=/dev/null", "-o", f"Dir::State::Lists={folder}/lists"]
        ui.run([*apt, "update"], log, name="apt-get update", env=APT, cwd=folder)
        ui.run([*apt, "source", "--download-only", "--tar-only", f"{name}={version}"], log,
               name="apt-get source", env=APT, cwd=folder)
        shutil.rmtree(f"{folder}/lists")
    found = glob.glob(f"{folder}/{name}_{upstream}.orig.tar.*")
    if len(found) != 1 or digest(found[0]) != wanted:
        raise ui.Failed(f"the source of {name} {version} is not the one that the plan names", log)
    return found[0]


def unpack(program, archive):
    """Unpacks the source; what an interrupted run left is thrown away."""
    if os.path.exists(program.tree):
        return
    shutil.rmtree(f"{program.tree}.new", ignore_errors=True)
    os.makedirs(f"{program.tree}.new")
    ui.run(["tar", "-C", f"{program.tree}.new", "--strip-components=1", "-xf", archive],
           f"{LOGS}/{program.name}-source.log", name="tar")
    os.rename(f"{program.tree}.new", program.tree)


def build(program):
    """Builds the program, with what that needs."""
    install(program)
    archive = fetch(program)
    unpack(program, archive)
    with ui.step(f"building {program.name}"):
        ui.run(["make", "-C", program.source, f"-j{JOBS}", f"SOURCE={program.tree}",
                f"OUT={program.target}"], f"{LOGS}/{program.name}.log", name=program.name)
