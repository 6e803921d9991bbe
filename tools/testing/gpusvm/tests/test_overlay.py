# SPDX-License-Identifier: GPL-2.0
"""The lay-down of the overlay, on a tree of three files."""

import json
import os
import tempfile
import unittest

from rig.overlay import KCONFIG, STATE, Overlay
from rig.ui import Failed

PATCH = """--- a/mm/Makefile
+++ b/mm/Makefile
@@ -1,2 +1,3 @@
 one
+ours
 two
"""


class LayDown(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.repo, self.tree = f"{folder.name}/repo", f"{folder.name}/tree"
        self.write(self.tree, "Kbuild", "kbuild\n")
        self.write(self.tree, "mm/Makefile", "one\ntwo\n")
        self.write(self.repo, "README.md", "not laid\n")
        self.write(self.repo, "Kconfig", "config X\n")
        self.write(self.repo, ".ci/run", "not laid\n")
        self.write(self.repo, "mm/new/a.c", "a\n")
        self.write(self.repo, "mm/new/a.c.orig", "not laid\n")
        self.write(self.repo, "mm/target/b.c", "b\n")
        self.write(self.repo, "tools/emu/Cargo.toml", "c\n")
        self.write(self.repo, "tools/emu/target/debug/emu", "not laid\n")
        self.write(self.repo, "patches/mm-Makefile.patch", PATCH)
        self.overlay = Overlay(self.repo, self.tree)

    def write(self, base, path, text):
        os.makedirs(os.path.dirname(f"{base}/{path}"), exist_ok=True)
        with open(f"{base}/{path}", "w") as file:
            file.write(text)

    def text(self, path):
        with open(f"{self.tree}/{path}") as file:
            return file.read()

    def content(self):
        return sorted(os.path.relpath(f"{folder}/{name}", self.tree)
                      for folder, _, names in os.walk(self.tree) for name in names
                      if STATE not in folder)

    def test_lays_files_hooks_and_kconfig(self):
        written, removed = self.overlay.lay()
        self.assertEqual(written, [KCONFIG, "mm/Makefile", "mm/new/a.c", "mm/target/b.c",
                                   "tools/emu/Cargo.toml"])
        self.assertEqual(removed, [])
        self.assertEqual(self.text("mm/Makefile"), "one\nours\ntwo\n")
        self.assertEqual(self.content(), ["Kbuild", *written])

    def test_second_time_writes_nothing(self):
        self.overlay.lay()
        before = os.stat(f"{self.tree}/mm/Makefile").st_mtime_ns
        self.assertEqual(self.overlay.lay(), ([], []))
        self.assertEqual(os.stat(f"{self.tree}/mm/Makefile").st_mtime_ns, before)

    def test_changed_file_alone_is_written(self):
        self.overlay.lay()
        self.write(self.repo, "mm/new/a.c", "b\n")
        self.assertEqual(self.overlay.lay(), (["mm/new/a.c"], []))

    def test_changed_patch_starts_from_the_pristine_file(self):
        self.overlay.lay()
        self.write(self.repo, "patches/mm-Makefile.patch", PATCH.replace("ours", "other"))
        self.overlay.lay()
        self.assertEqual(self.text("mm/Makefile"), "one\nother\ntwo\n")

    def test_update_of_the_kernel_is_kept(self):
        self.overlay.lay()
        self.write(self.tree, "mm/Makefile", "zero\none\ntwo\n")
        self.assertEqual(self.overlay.lay(), (["mm/Makefile"], []))
        self.assertEqual(self.text("mm/Makefile"), "zero\none\nours\ntwo\n")
        os.unlink(f"{self.repo}/patches/mm-Makefile.patch")
        self.overlay.lay()
        self.assertEqual(self.text("mm/Makefile"), "zero\none\ntwo\n")

    def test_kernel_file_that_came_back_is_hooked_again(self):
        self.overlay.lay()
        self.write(self.tree, "mm/Makefile", "one\ntwo\n")
        self.assertEqual(self.overlay.lay(), (["mm/Makefile"], []))
        self.assertEqual(self.text("mm/Makefile"), "one\nours\ntwo\n")

    def test_edited_hook_is_not_overwritten(self):
        self.overlay.lay()
        self.write(self.tree, "mm/Makefile", "one\nours\nmine\ntwo\n")
        with self.assertRaisesRegex(Failed, "changed after the overlay was laid"):
            self.overlay.lay()
        self.assertEqual(self.text("mm/Makefile"), "one\nours\nmine\ntwo\n")

    def test_manifest_without_digests(self):
        self.overlay.lay()
        old = {key: list(value) for key, value in self.overlay.load().items()}
        self.write(self.tree, f"{STATE}/manifest.json", json.dumps(old))
        self.write(self.repo, "patches/mm-Makefile.patch", PATCH.replace("ours", "other"))
        self.overlay.lay()
        self.assertEqual(self.text("mm/Makefile"), "one\nother\ntwo\n")

    def test_what_leaves_the_overlay_leaves_the_tree(self):
        self.overlay.lay()
        os.unlink(f"{self.repo}/mm/new/a.c")
        os.unlink(f"{self.repo}/patches/mm-Makefile.patch")
        self.assertEqual(self.overlay.lay(), ([], ["mm/Makefile", "mm/new/a.c"]))
        self.assertEqual(self.text("mm/Makefile"), "one\ntwo\n")
        self.assertEqual(self.content(), ["Kbuild", KCONFIG, "mm/Makefile", "mm/target/b.c",
                                          "tools/emu/Cargo.toml"])
        self.assertFalse(os.path.exists(f"{self.tree}/mm/new"))

    def test_patch_that_needs_fuzz_is_named(self):
        self.write(self.tree, "mm/Makefile", "one\nchanged\n")
        with self.assertRaisesRegex(Failed, "patches/mm-Makefile.patch does not apply"):
            self.overlay.lay()
        self.assertEqual(self.content(), ["Kbuild", "mm/Makefile"])

    def test_patch_of_two_files_is_refused(self):
        self.write(self.repo, "patches/mm-Makefile.patch", PATCH + PATCH.replace("Makefile", "b"))
        with self.assertRaisesRegex(Failed, "changes 2 files"):
            self.overlay.lay()

    def test_whole_file_over_a_kernel_file_is_refused(self):
        self.write(self.repo, "mm/new/a.c", "a\n")
        self.write(self.tree, "mm/new/a.c", "the kernel's\n")
        with self.assertRaisesRegex(Failed, "the kernel has this file"):
            self.overlay.lay()
        self.assertEqual(self.text("mm/new/a.c"), "the kernel's\n")

    def test_interrupted_run_is_mended(self):
        def stop(*_):
            raise KeyboardInterrupt
        broken = Overlay(self.repo, self.tree)
        broken.put = stop
        with self.assertRaises(KeyboardInterrupt):
            broken.lay()
        os.unlink(f"{self.repo}/mm/new/a.c")
        self.overlay.lay()
        self.assertEqual(self.text("mm/Makefile"), "one\nours\ntwo\n")
        self.assertEqual(self.content(), ["Kbuild", KCONFIG, "mm/Makefile", "mm/target/b.c",
                                          "tools/emu/Cargo.toml"])

    def test_hard_linked_tree_stays_untouched(self):
        os.link(f"{self.tree}/mm/Makefile", f"{self.tree}/../other")
        self.overlay.lay()
        with open(f"{self.tree}/../other") as file:
            self.assertEqual(file.read(), "one\ntwo\n")


if __name__ == "__main__":
    unittest.main()
