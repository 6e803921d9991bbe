# SPDX-License-Identifier: GPL-2.0
"""How plan.conf is read."""

import os
import tempfile
import unittest

from rig import plan
from rig.plan import Plan
from rig.ui import Failed

TEXT = """
[kernel k]
configs = a.config
[program emu]
cargo = tools/emu
env = A=1 B=2
[boot plain]
kernel = k
[boot gpu]
kernel = k
devices = iommu
beside = emu --socket {folder}/gpu.sock
stage = tools/fw.sh {root}/lib
qemu = -device '{"driver":"x","path":"{folder}/gpu.sock"}' -m {memory}
[boot gpu-shell]
like = gpu
run = gpu-shell
test = no
[foreign suite]
source = package 1.2+ds-3 0123abcd
make = tools/suite
packages = a-dev b
[boot suite]
like = gpu-shell
run = suite
guest = suite
"""


class Read(unittest.TestCase):
    def read(self, text):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "plan.conf")
            with open(path, "w") as file:
                file.write(text)
            return Plan(path)

    def test_programs(self):
        got = self.read(TEXT)
        self.assertEqual(got.programs["emu"].env, {"A": "1", "B": "2"})
        self.assertEqual([program.name for program in got.used(got.boots["gpu"])], ["emu"])
        self.assertEqual(got.used(got.boots["plain"]), [])

    def test_programs_of_others(self):
        got = self.read(TEXT)
        suite = got.foreign["suite"]
        self.assertEqual((suite.package, suite.packages),
                         (["package", "1.2+ds-3", "0123abcd"], ["a-dev", "b"]))
        self.assertEqual([one.name for one in got.used(got.boots["suite"])], ["emu", "suite"])
        for bad in ("[foreign a]\nmake = x\nsource = p 1\n", "[boot b]\nguest = c\n"):
            with self.assertRaises(Failed):
                self.read(bad)

    def test_boots_like_others(self):
        boots = self.read(TEXT).boots
        self.assertEqual(boots["suite"].devices, ["iommu"])
        self.assertEqual((boots["gpu"].test, boots["suite"].test), (True, False))
        self.assertEqual(boots["suite"].target, "suite")
        with self.assertRaises(Failed):
            self.read("[boot b]\nlike = c\n")

    def test_commands(self):
        got, boot = self.read(TEXT), self.read(TEXT).boots["gpu"]
        self.assertEqual(got.command(boot.beside, folder="/f"),
                         [got.programs["emu"].path, "--socket", "/f/gpu.sock"])
        self.assertEqual(got.command(boot.stage, root="/r"), ["/repo/tools/fw.sh", "/r/lib"])
        self.assertEqual(got.command("true"), ["true"])
        self.assertEqual(plan.words(boot.qemu, folder="/f", memory="1G"),
                         ["-device", '{"driver":"x","path":"/f/gpu.sock"}', "-m", "1G"])

    def test_shells_are_for_their_target_alone(self):
        got = self.read(TEXT)
        self.assertTrue(got.boots["gpu-shell"].interactive)
        self.assertFalse(got.boots["gpu"].interactive)
        self.assertNotIn(got.boots["gpu-shell"], got.of_test("x86_64"))

    def test_unknown_words_are_refused(self):
        for text in ("[thing a]\n", "[boot b]\ndevices = tpu\n"):
            with self.assertRaises(Failed):
                self.read(text)

    def test_slow_kernel(self):
        boot = self.read(TEXT).boots["plain"]
        limit = boot.limit
        boot.slow(3)
        self.assertEqual((boot.limit, boot.append), (3 * limit, ["gpusvm.slow=3"]))

    def test_the_repositorys_own(self):
        got = Plan()
        for boot in got.boots.values():
            self.assertIn(boot.kernel, got.kernels)
        for kernel in got.kernels.values():
            for path in kernel.configs:
                self.assertTrue(os.path.exists(path), path)
        for boot in got.boots.values():
            for path in filter(None, (boot.known, boot.after)):
                self.assertTrue(os.path.exists(os.path.join("/repo", path)), path)


if __name__ == "__main__":
    unittest.main()
