# SPDX-License-Identifier: GPL-2.0
"""How the end of a boot is read from its log."""

import unittest

from rig import kernel, vm

END = "[    3.0] gpusvm: all scripts done"


class Ending(unittest.TestCase):
    def test_good_end(self):
        self.assertIsNone(vm.ending(f"[    2.0] gpusvm: script kunit ends with 0\n{END}"))

    def test_status_of_the_last_program_is_not_the_scripts(self):
        self.assertIsNone(vm.ending(f"[    2.0] gpusvm: script kunit ends with 1\n{END}"))

    def test_missing_script(self):
        self.assertIn("demo", vm.ending(f"[    2.0] gpusvm: script demo ends with 2\n{END}"))

    def test_machine_that_stopped(self):
        self.assertIn("stopped", vm.ending("[    2.0] gpusvm: script kunit begins"))


class Device(unittest.TestCase):
    def test_lost(self):
        for line in ("qemu: vfio_region_read(x:region5+0x10, 4) failed: Bad address",
                     "vfio_user_region_read: timed out waiting for reply: Connection timed out"):
            self.assertEqual(vm.LOST.search(f"warning: a\n{line}\n")[0], line)
        self.assertIsNone(vm.LOST.search("qemu: terminating on signal 15"))


class Options(unittest.TestCase):
    def test_later_fragments_win(self):
        self.assertEqual(kernel.options(["CONFIG_A=y\nCONFIG_B=m\n# a comment", "CONFIG_B=y",
                                         "# CONFIG_A is not set"]),
                         {"CONFIG_A": "# CONFIG_A is not set", "CONFIG_B": "CONFIG_B=y"})


if __name__ == "__main__":
    unittest.main()
