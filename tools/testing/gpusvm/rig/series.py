# SPDX-License-Identifier: GPL-2.0
"""make series: the overlay as patches for `git am`, cut as series.conf says.

The patches are commits of a small repository that holds only the files that hooks change, so that
no copy of the kernel's history is needed. Together they are the overlay byte for byte; every file
and every hooked line belongs to exactly one of them.
"""

import configparser
import difflib
import fnmatch
import os
import re
import shutil
import subprocess
import tempfile

from rig import kernel, ui
from rig.overlay import Overlay, read, write
from rig.ui import Failed

CONF = "/repo/tools/testing/gpusvm/series.conf"
OUT = "/cache/series"
# The object tree and the source tree in which CHECK=1 builds.
BUILD, TREE = "/build/series", "/cache/series.tree"
# What can break half-way: the bindings, the kernel crate, the library and the driver.
TARGETS = ["prepare", "rust/", "drivers/gpu/drm/"]
# git's variables, those of run.sh with the author of the overlay's last commit, and what else.
WHO = [("NAME", "AUTHOR", "nobody"), ("EMAIL", "MAIL", "nobody@localhost"),
       ("DATE", "DATE", "2026-01-01T00:00:00Z")]


class Part:
    """One patch: its message, its files and its lines of files that several patches change."""

    def __init__(self, subject, section):
        self.subject, self.message = subject, section["message"].strip()
        self.files = section.get("files", "").split()
        self.lines = []
        for rule in section.get("lines", "").strip().splitlines():
            path, _, pattern = rule.strip().partition(": ")
            self.lines.append((path, re.compile(pattern)))

    def takes(self, path, line):
        return any(path == one and pattern.search(line) for one, pattern in self.lines)

    def rank(self, path):
        """How exactly the part names a file; 0 where it does not."""
        return max((len(one) for one in self.files if fnmatch.fnmatchcase(path, one)), default=0)


def parts(path):
    conf = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    if not conf.read(path):
        raise Failed(f"{path} cannot be read")
    return [Part(title, conf[title]) for title in conf.sections()]


def part_of_line(path, line, every):
    return next((at for at, part in enumerate(every) if part.takes(path, line)), None)


def part_of_file(path, every):
    best = max(range(len(every)), key=lambda at: every[at].rank(path))
    if not every[best].rank(path):
        raise Failed(f"series.conf: no patch has {path}")
    return best


def assign(path, lines, every):
    """The patch of each line of an added block. A line that none names goes with the next one that
    one does, as an attribute or a comment does, and else with the one before."""
    found = [part_of_line(path, line, every) for line in lines]
    for order in (range(len(found) - 2, -1, -1), range(1, len(found))):
        step = 1 if order.step < 0 else -1
        for at in order:
            if found[at] is None:
                found[at] = found[at + step]
    if found and found[0] is None:
        raise Failed(f"series.conf: no patch has this line of {path}: {lines[0].strip()}")
    return found


def hook(path, old, new, every):
    """A hooked file after each patch."""
    old, new = old.splitlines(True), new.splitlines(True)
    # (lines that go, line that comes, patch)
    steps = []
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            steps += [([], line, -1) for line in old[a:b]]
            continue
        owners = assign(path, new[c:d] or old[a:b], every)
        if b > a:
            steps.append((old[a:b], "", owners[0]))
        steps += [([], line, owner) for line, owner in zip(new[c:d], owners)]
    for at in range(len(every)):
        yield "".join(line if owner <= at else "".join(gone) for gone, line, owner in steps)


def whole(path, text, first, every):
    """A new file after each patch from its own on: later ones may bring lines of it."""
    lines = text.splitlines(True)
    owners = [max(first, part_of_line(path, line, every) or 0) for line in lines]
    for at in range(len(lines) - 1):
        # The empty line before one that comes later.
        if owners[at + 1] > first and not lines[at].strip():
            owners[at] = owners[at + 1]
    for at in range(first, len(every)):
        yield "".join(line for line, owner in zip(lines, owners) if owner <= at)


def states(overlay, every):
    """The patches that are not empty, and what each writes: (part, {path: (content, mode)})."""
    result = [{} for _ in every]

    def put(path, contents, first, mode):
        before = None
        for at, content in enumerate(contents, first):
            if content != before:
                result[at][path] = (content, mode)
            before = content

    laid = set(overlay.load()["new"])
    for path, (data, mode) in overlay.hooked(laid).items():
        old = read(overlay.pristine(path, laid)).decode()
        contents = [one.encode() for one in hook(path, old, data.decode(), every)]
        first = next(at for at, content in enumerate(contents) if content != old.encode())
        put(path, contents[first:], first, mode)
    for path, source in overlay.sources().items():
        first = part_of_file(path, every)
        data, mode = read(source), os.stat(source).st_mode & 0o777
        later = any(path == one for part in every for one, _ in part.lines)
        contents = [one.encode() for one in whole(path, data.decode(), first, every)] if later \
            else [data]
        put(path, contents, first, mode)
    return [(part, files) for part, files in zip(every, result) if files]


def git(folder, *words, text=None):
    env = dict(os.environ)
    for kind in ("AUTHOR", "COMMITTER"):
        for name, ours, default in WHO:
            env[f"GIT_{kind}_{name}"] = os.environ.get(f"RIG_{ours}", default)
    done = subprocess.run(["git", *words], cwd=folder, input=text, capture_output=True, text=True,
                          check=False, env=env)
    if done.returncode:
        raise Failed(f"git {words[0]}: {done.stderr.strip()}")
    return done.stdout


def lay(folder, files):
    for path, (content, mode) in files.items():
        write(os.path.join(folder, path), content, 0o755 if mode & 0o111 else 0o644)


def emit(overlay, every, target):
    """Writes the patches; the authorship is that of the overlay's last commit."""
    shutil.rmtree(target, ignore_errors=True)
    os.makedirs(target)
    laid = set(overlay.load()["new"])
    with tempfile.TemporaryDirectory() as folder:
        git(folder, "init", "-q", "-b", "series")
        for path in overlay.hooked(laid):
            lay(folder, {path: (read(overlay.pristine(path, laid)), 0o644)})
        git(folder, "add", "-A", "-f")
        git(folder, "commit", "-q", "-m", "base")
        done = states(overlay, every)
        for part, files in done:
            lay(folder, files)
            git(folder, "add", "-A", "-f")
            git(folder, "commit", "-q", "-F", "-", text=f"{part.subject}\n\n{part.message}\n")
        git(folder, "format-patch", "-q", "--no-renames", "--full-index", "--zero-commit",
            "--no-signature", "-o", target, f"-{len(done)}")
        compare(overlay, folder)
    return sorted(os.listdir(target))


def compare(overlay, folder):
    """The last commit has to be the overlay, byte for byte."""
    wanted = {path: data for path, (data, _) in overlay.hooked(set(overlay.load()["new"])).items()}
    wanted |= {path: read(source) for path, source in overlay.sources().items()}
    got = set(git(folder, "ls-files", "-z").split("\0")) - {""}
    for path in sorted(got | set(wanted)):
        if path not in wanted or path not in got \
                or read(os.path.join(folder, path)) != wanted[path]:
            raise Failed(f"the series differs from the overlay in {path}")


def check(plan, overlay, every):
    """Builds after each patch, in a copy of the source that stands where the test kernel's does."""
    one = plan.kernels["test"]
    kernel.build(one)
    for path in (BUILD, TREE):
        shutil.rmtree(path, ignore_errors=True)
    with ui.step("copying the test kernel's trees"):
        # Files of the tree are replaced, not written to, so hard links do.
        ui.output(["cp", "-al", "/src", TREE])
        ui.output(["cp", "-a", one.build, BUILD])
    config = f"{BUILD}/gpusvm.series.config"
    shutil.copy(f"{BUILD}/.config", config)
    Overlay(TREE, TREE).drop(set(overlay.load()["new"]), set(overlay.load()["hooked"]))
    done = states(overlay, every)
    for number, (part, files) in enumerate(done, 1):
        lay(TREE, files)
        shutil.copy(config, f"{BUILD}/.config")
        # The same paths as ever, so that what a patch does not touch need not be built again.
        words = kernel.make(one, *TARGETS)
        inside = " && ".join([f"mount --bind {TREE} /src", f"mount --bind {BUILD} {one.build}",
                              "make -s -C /src O=$0 LLVM=1 olddefconfig", '"$@"'])
        with ui.step(f"patch {number} of {len(done)}: {part.subject}"):
            ui.run(["unshare", "--mount", "sh", "-c", inside, one.build, *words],
                   f"{kernel.LOGS}/series-{number:02}.log", name=f"patch {number}")
    for path in (BUILD, TREE):
        shutil.rmtree(path)


def series(plan, checked):
    """make series [CHECK=1]"""
    overlay, every = Overlay("/repo", "/src"), parts(CONF)
    names = emit(overlay, every, OUT)
    if checked:
        check(plan, overlay, every)
    for name in names:
        print(name)
    out = ui.host_path(OUT)
    print(f"{len(names)} patches in {out}; in a 7.3 tree: git am {out}/*")
    return 0
