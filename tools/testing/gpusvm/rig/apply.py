# SPDX-License-Identifier: GPL-2.0
"""make KDIR=<tree> apply: lays the overlay on a kernel tree of the user's own."""

import os
import re
import sys

from rig.overlay import STATE, Overlay
from rig.ui import Failed

# The release whose internal interfaces the overlay is written against.
RELEASE = "7.3"


def release(tree):
    try:
        with open(os.path.join(tree, "Makefile")) as file:
            text = file.read(2000)
    except OSError as error:
        raise Failed(f"{tree} is no kernel tree: {error.strerror}") from error
    part = {key: value for key, value in re.findall(r"^(VERSION|PATCHLEVEL) = (\d+)$", text, re.M)}
    return f"{part.get('VERSION')}.{part.get('PATCHLEVEL')}"


def apply(repo, tree, shown):
    """Lays the overlay and says what it changed; `shown` is the tree's name for the user."""
    found = release(tree)
    if found != RELEASE:
        raise Failed(f"{shown} is a kernel {found}; the overlay is for {RELEASE}")
    overlay = Overlay(repo, tree)
    written, removed = overlay.lay()
    hooked = set(overlay.load()["hooked"])
    for path in written:
        print(f"{'changed' if path in hooked else 'added  '} {path}")
    for path in removed:
        print(f"{'removed'} {path}")
    print(f"{shown}: {len(written)} files written, {len(removed)} removed.")
    print(f"What was there before is kept in {STATE}/orig. Then: set DRM=y, RUST=y and "
          "DRM_GPUSVM_RUST=y, and build with LLVM=1.")


def main():
    try:
        apply(*sys.argv[1:4])
    except Failed as failed:
        print(f"*** {failed}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
