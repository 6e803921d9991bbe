# SPDX-License-Identifier: GPL-2.0
"""The program beside the machine: when it is ready, how it ends, what counts as its failure."""

import os
import subprocess
import tempfile
import unittest
from unittest import mock

from rig import beside, cargo, ui
from rig.beside import Beside
from rig.ktap import FAIL, PASS, SKIP


class Companion(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def start(self, script):
        one = Beside(["sh", "-c", script], f"{self.folder}/log", self.folder)
        self.addCleanup(one.child.wait)
        self.addCleanup(one.child.kill)
        return one

    def there(self):
        return os.path.exists(f"{self.folder}/a.sock")

    def test_good_run(self):
        one = self.start("trap 'exit 0' TERM; : >a.sock; while :; do sleep 0.05; done")
        self.assertTrue(one.wait_for(self.there))
        self.assertFalse(one.lost())
        one.stop()
        self.assertIsNone(one.failure)

    def test_program_that_does_not_start(self):
        with self.assertRaises(ui.Failed):
            Beside(["./none"], f"{self.folder}/log", self.folder)

    def test_end_before_it_is_ready(self):
        one = self.start("echo hello; echo 'error: no memory'; exit 3")
        self.assertFalse(one.wait_for(self.there))
        one.stop()
        self.assertRegex(one.failure, "sh ended with 3 while it was needed: error: no memory")

    def test_never_ready(self):
        one = self.start("sleep 30")
        with mock.patch.object(beside, "READY", 0.1):
            self.assertFalse(one.wait_for(self.there))
        self.assertIn("not ready", one.failure)

    def test_end_while_the_machine_runs(self):
        one = self.start("echo bye")
        one.child.wait()
        with subprocess.Popen(["sleep", "30"]) as machine, mock.patch.object(beside, "GRACE", 0.1):
            self.assertTrue(one.lost(machine))
            machine.kill()
        self.assertIn("bye", one.failure)

    def test_end_together_with_the_machine(self):
        one = self.start("exit 0")
        one.child.wait()
        with subprocess.Popen(["sleep", "0.1"]) as machine:
            self.assertFalse(one.lost(machine))
        one.stop()
        self.assertIsNone(one.failure)

    def test_bad_status_at_the_end(self):
        one = self.start("trap 'echo stale use at 0x1000; exit 1' TERM; : >a.sock;"
                         "while :; do sleep 0.05; done")
        one.wait_for(self.there)
        one.stop()
        self.assertRegex(one.failure, "ended with 1: stale use")

    def test_program_that_does_not_end(self):
        one = self.start("trap '' TERM; : >a.sock; while :; do sleep 0.05; done")
        one.wait_for(self.there)
        with mock.patch.object(beside, "END", 0.2):
            one.stop()
        self.assertIn("did not end", one.failure)


class Outcomes(unittest.TestCase):
    def test_cargo(self):
        text = ("     Running unittests src/main.rs (target/debug/deps/emu-1)\n"
                "test walk::a ... ok\ntest walk::b ... FAILED\ntest walk::c ... ignored\n"
                "     Running tests/packets.rs (target/debug/deps/packets-2)\n"
                "test d - should panic ... ok\n")
        self.assertEqual(cargo.outcomes(text), [
            ("main.walk::a", PASS), ("main.walk::b", FAIL), ("main.walk::c", SKIP),
            ("packets.d", PASS)])


if __name__ == "__main__":
    unittest.main()
