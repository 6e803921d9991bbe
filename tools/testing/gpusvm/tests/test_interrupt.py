# SPDX-License-Identifier: GPL-2.0
"""What an interrupted or killed build leaves."""

import os
import tempfile
import threading
import time
import types
import unittest
from unittest import mock

from rig import kernel, ui


class Interrupted(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.build = folder.name
        self.kernel = types.SimpleNamespace(build=self.build)
        self.mark = f"{self.build}/gpusvm.building"

    def put(self, name, age):
        path = f"{self.build}/{name}"
        with open(path, "w") as file:
            file.write("x")
        os.utime(path, (time.time() - age,) * 2)

    def built(self):
        """An object that is whole, one that a killed compiler left, and a file without a note."""
        self.put("good.o", 20)
        self.put(".good.o.cmd", 19)
        self.put("half.rs", 5)
        self.put(".half.rs.cmd", 100)
        self.put("other", 1)

    def names(self):
        return sorted(os.listdir(self.build))

    def test_good_build_removes_nothing(self):
        self.built()
        before = self.names()
        with kernel.whole(self.kernel):
            self.assertTrue(os.path.exists(self.mark))
        self.assertEqual(self.names(), before)

    def test_after_a_killed_build(self):
        self.built()
        self.put("gpusvm.building", 30)
        with kernel.whole(self.kernel):
            pass
        self.assertEqual(self.names(), [".good.o.cmd", ".half.rs.cmd", "good.o", "other"])

    def test_failure_and_interruption_are_clean(self):
        for error in (ui.Failed("x"), KeyboardInterrupt()):
            with self.assertRaises(type(error)), kernel.whole(self.kernel):
                raise error
            self.assertFalse(os.path.exists(self.mark))

    def test_command_that_does_not_end(self):
        with self.assertRaises(ui.Abandoned), kernel.whole(self.kernel):
            raise ui.Abandoned()
        self.assertTrue(os.path.exists(self.mark))

    def run_interrupted(self, script, patience):
        def show(*_):
            raise KeyboardInterrupt
        with mock.patch.object(ui.Beat, "show", show), mock.patch.object(ui, "PATIENCE", patience):
            ui.run(["sh", "-c", script], f"{self.build}/log")

    def test_command_may_clean_up(self):
        with self.assertRaises(KeyboardInterrupt) as raised:
            self.run_interrupted(f"trap 'echo clean >{self.build}/said; exit 1' TERM; echo line;"
                                 "while :; do sleep 0.05; done", 30)
        self.assertNotIsInstance(raised.exception, ui.Abandoned)
        self.assertIn("said", self.names())

    def test_command_that_ignores_it(self):
        with self.assertRaises(ui.Abandoned):
            self.run_interrupted("trap '' TERM; echo line; sleep 3", 0.5)
        self.assertEqual(threading.active_count(), 1)


if __name__ == "__main__":
    unittest.main()
