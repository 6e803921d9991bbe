# SPDX-License-Identifier: GPL-2.0
"""How the overlay is cut into patches."""

import os
import tempfile
import unittest
from unittest import mock

from rig import series
from rig.overlay import Overlay, read
from rig.series import git
from rig.ui import Failed

CONF = """
[a: first]
files = a/* Kconfig.gpusvm drivers/gpu/drm/Kconfig.gpusvm
lines =
	hooked: first|^one
message =
	Text.

	More text.

[b: second]
files = a/b/*
lines =
	hooked: second
	drivers/gpu/drm/Kconfig.gpusvm: source
message =
	Text.

[c: never]
files = c/*
message =
	Text.
"""
HOOK = """--- a/hooked
+++ b/hooked
@@ -1,4 +1,9 @@
 begin
+first
+#[of second]
+second
+// of the one before
 middle
-1
+one
+first again
 end
"""


class Cut(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.repo, self.tree = f"{folder.name}/repo", f"{folder.name}/tree"
        self.out = f"{folder.name}/out"
        self.write(self.tree, "Kbuild", "kbuild\n")
        self.write(self.tree, "hooked", "begin\nmiddle\n1\nend\n")
        self.write(self.repo, "patches/hooked.patch", HOOK)
        self.write(self.repo, "Kconfig", "config A\n\nsource b\n")
        self.write(self.repo, "a/x", "x\n")
        self.write(self.repo, "a/b/y", "y\n")
        os.chmod(f"{self.repo}/a/b/y", 0o755)
        self.write(folder.name, "series.conf", CONF)
        self.parts = series.parts(f"{folder.name}/series.conf")
        self.overlay = Overlay(self.repo, self.tree)

    def write(self, base, path, text):
        os.makedirs(os.path.dirname(f"{base}/{path}"), exist_ok=True)
        with open(f"{base}/{path}", "w") as file:
            file.write(text)

    def test_states(self):
        got = series.states(self.overlay, self.parts)
        self.assertEqual([part.subject for part, _ in got], ["a: first", "b: second"])
        first, second = ({path: data.decode() for path, (data, _) in files.items()}
                         for _, files in got)
        self.assertEqual(first, {"hooked": "begin\nfirst\nmiddle\none\nfirst again\nend\n",
                                 "a/x": "x\n", "drivers/gpu/drm/Kconfig.gpusvm": "config A\n"})
        self.assertEqual(second, {
            "hooked": "begin\nfirst\n#[of second]\nsecond\n// of the one before\nmiddle\none\n"
                      "first again\nend\n",
            "a/b/y": "y\n", "drivers/gpu/drm/Kconfig.gpusvm": "config A\n\nsource b\n"})

    def test_line_and_file_of_nobody(self):
        self.write(self.repo, "d/new", "d\n")
        with self.assertRaisesRegex(Failed, "d/new"):
            series.states(self.overlay, self.parts)
        os.unlink(f"{self.repo}/d/new")
        self.parts[0].lines.clear()
        with self.assertRaisesRegex(Failed, "no patch has this line of hooked: one"):
            series.states(self.overlay, self.parts)

    def test_git_am_gives_the_overlay(self):
        who = {"RIG_AUTHOR": "A", "RIG_MAIL": "a@example.org", "RIG_DATE": "2026-01-01T00:00:00Z"}
        with mock.patch.dict(os.environ, who):
            names = series.emit(self.overlay, self.parts, self.out)
            self.assertEqual(names, ["0001-a-first.patch", "0002-b-second.patch"])
            git(self.tree, "init", "-q")
            git(self.tree, "add", "-A")
            git(self.tree, "commit", "-q", "-m", "base")
            git(self.tree, "am", "-q", *(f"{self.out}/{name}" for name in names))
            self.assertEqual(git(self.tree, "log", "-1", "--format=%an %s"), "A b: second\n")
        self.assertEqual(git(self.tree, "diff", "--stat", "HEAD"), "")
        other = f"{self.out}/other"
        self.write(other, "Kbuild", "kbuild\n")
        self.write(other, "hooked", "begin\nmiddle\n1\nend\n")
        for path in Overlay(self.repo, other).lay()[0]:
            self.assertEqual(read(f"{self.tree}/{path}"), read(f"{other}/{path}"))
            self.assertEqual(os.access(f"{self.tree}/{path}", os.X_OK), path == "a/b/y")


class Repository(unittest.TestCase):
    def test_everything_belongs_to_a_patch(self):
        states = series.states(Overlay("/repo", "/src"), series.parts(series.CONF))
        self.assertGreater(len(states), 5)


if __name__ == "__main__":
    unittest.main()
