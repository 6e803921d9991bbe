# SPDX-License-Identifier: GPL-2.0
"""Lays the repository over a kernel tree.

Whole files go to the same path in the tree; hook patches change the few existing files. A file is
written only where its content differs, so that a build redoes no more than it must. What was laid
is kept in a manifest beside pristine copies of the hooked files: a file that leaves the overlay
leaves the tree, and the tree can be brought back. The manifest names a file before the tree has
it, so an interrupted run is mended by the next one.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile

from rig.ui import Failed

# The folder in the tree that holds the manifest and the pristine copies.
STATE = ".gpusvm-overlay"
# The project's Kconfig symbols: the one file whose path differs.
KCONFIG = "drivers/gpu/drm/Kconfig.gpusvm"
IGNORED = re.compile(r"(\.o|\.log|\.rej|\.orig|\.swp|\.pyc|~)$|^__pycache__$")


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, data, mode):
    """Writes by rename: never half a file, and never through a hard link to another tree."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temp = f"{path}.gpusvm-new"
    with open(temp, "wb") as file:
        file.write(data)
    os.chmod(temp, mode)
    os.rename(temp, path)


def digest(data):
    return hashlib.sha256(data).hexdigest()


class Overlay:
    """The overlay of `repo` on `tree`."""

    def __init__(self, repo, tree):
        self.repo, self.tree = repo, tree
        self.state = os.path.join(tree, STATE)
        self.manifest = os.path.join(self.state, "manifest.json")

    def sources(self):
        """The whole files: path in the tree -> path in the repository."""
        found = {}
        for top in sorted(os.listdir(self.repo)):
            # What lies at the top (README, Makefile) and hidden folders are the repository's own.
            if top.startswith(".") or top == "patches":
                continue
            if not os.path.isdir(os.path.join(self.repo, top)):
                continue
            for folder, folders, names in os.walk(os.path.join(self.repo, top)):
                folders[:] = sorted(name for name in folders if not IGNORED.search(name)
                                    and not (name == "target" and "Cargo.toml" in names))
                for name in names:
                    if not IGNORED.search(name):
                        path = os.path.join(folder, name)
                        found[os.path.relpath(path, self.repo)] = path
        if os.path.exists(os.path.join(self.repo, "Kconfig")):
            found[KCONFIG] = os.path.join(self.repo, "Kconfig")
        return found

    def patches(self):
        folder = os.path.join(self.repo, "patches")
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        return [os.path.join(folder, name) for name in names if name.endswith(".patch")]

    def pristine(self, path, laid):
        """Where the kernel's own content of a file is, or None if the kernel has no such file."""
        kept = os.path.join(self.state, "orig", path)
        there = os.path.join(self.tree, path)
        if os.path.exists(kept) and not self.changed(path):
            return kept
        return there if os.path.isfile(there) and path not in laid else None

    def changed(self, path):
        """Whether somebody else wrote a hooked file since, such as an update of the kernel."""
        there = os.path.join(self.tree, path)
        digests = self.load()["hooked"].get(path)
        return bool(digests) and os.path.isfile(there) and digest(read(there)) not in digests

    def hooked(self, laid):
        """Applies the hook patches to copies of the pristine files: path -> (content, mode)."""
        result = {}
        with tempfile.TemporaryDirectory() as stage:
            for patch in self.patches():
                name = os.path.relpath(patch, self.repo)
                targets = re.findall(r"^\+\+\+ b/([^\t\n]+)", read(patch).decode(), re.M)
                if len(targets) != 1:
                    raise Failed(f"{name}: changes {len(targets)} files; a hook patch changes one")
                path = targets[0]
                if path in result:
                    raise Failed(f"{name}: another patch already changes {path}")
                source = self.pristine(path, laid)
                if source is None:
                    raise Failed(f"{name}: the kernel has no {path}")
                copy = os.path.join(stage, path)
                os.makedirs(os.path.dirname(copy), exist_ok=True)
                shutil.copyfile(source, copy)
                done = subprocess.run(
                    ["patch", "-p1", "--fuzz=0", "--batch", "--forward", "--no-backup-if-mismatch",
                     "-r", "-", "-d", stage, "-i", os.path.abspath(patch)],
                    capture_output=True, text=True, check=False)
                if done.returncode:
                    why = done.stdout.strip()
                    if self.changed(path):
                        why += "\nIt was changed after the overlay was laid: bring back the " \
                               "kernel's own file first."
                    raise Failed(f"{name} does not apply to {path}:\n{why}")
                result[path] = (read(copy), os.stat(source).st_mode & 0o777)
        return result

    def load(self):
        """What was laid: the new files, and the hooked ones with the digests they may have."""
        try:
            with open(self.manifest) as file:
                laid = json.load(file)
        except (OSError, ValueError):
            laid = {"new": [], "hooked": {}}
        if isinstance(laid["hooked"], list):
            laid["hooked"] = dict.fromkeys(laid["hooked"], [])
        return laid

    def save(self, new, hooked):
        data = json.dumps({"new": sorted(new), "hooked": dict(sorted(hooked.items()))}, indent=1)
        write(self.manifest, data.encode(), 0o644)

    def put(self, path, data, mode):
        """Writes one file of the tree if it differs; says whether it did."""
        there = os.path.join(self.tree, path)
        if os.path.isfile(there) and read(there) == data \
                and (os.stat(there).st_mode ^ mode) & 0o111 == 0:
            return False
        write(there, data, mode)
        return True

    def lay(self):
        """Makes the tree the overlay of now; returns the paths written and removed."""
        if not os.path.isfile(os.path.join(self.tree, "Kbuild")):
            raise Failed(f"{self.tree} is no kernel tree")
        old = self.load()
        hooked = self.hooked(set(old["new"]))
        new = self.sources()
        for path in new:
            if path in hooked or self.pristine(path, set(old["new"])):
                raise Failed(f"{path}: the kernel has this file; change it by a patch in patches/")
        for path in hooked:
            kept = os.path.join(self.state, "orig", path)
            if not os.path.exists(kept) or self.changed(path):
                there = os.path.join(self.tree, path)
                write(kept, read(there), os.stat(there).st_mode & 0o777)
        digests = {path: [digest(data)] for path, (data, _) in hooked.items()}
        # Until it is done a file may have its old content or its new one.
        either = {path: [*before, *digests.get(path, [])] for path, before in old["hooked"].items()}
        for path in hooked:
            either.setdefault(path, digests[path]).append(digest(read(f"{self.state}/orig/{path}")))
        self.save(set(old["new"]) | set(new), either)
        written = [path for path, source in new.items()
                   if self.put(path, read(source), os.stat(source).st_mode & 0o777)]
        written += [path for path, (data, mode) in hooked.items() if self.put(path, data, mode)]
        removed = self.drop(set(old["new"]) - set(new), set(old["hooked"]) - set(hooked))
        self.save(new, digests)
        return sorted(written), sorted(removed)

    def drop(self, new, hooked):
        """Takes files out of the tree again and gives hooked ones their own content back."""
        for path in new:
            there = os.path.join(self.tree, path)
            if os.path.exists(there):
                os.unlink(there)
            folder = os.path.dirname(there)
            while folder != self.tree and os.path.isdir(folder) and not os.listdir(folder):
                os.rmdir(folder)
                folder = os.path.dirname(folder)
        for path in hooked:
            kept = os.path.join(self.state, "orig", path)
            if os.path.exists(kept):
                if not self.changed(path):
                    self.put(path, read(kept), os.stat(kept).st_mode & 0o777)
                os.unlink(kept)
        return new | hooked
