# SPDX-License-Identifier: GPL-2.0
"""KTAP and TAP as kernels and programs really print them."""

import unittest

from rig.ktap import parse_kernel, parse_programs

KUNIT = """[    1.0] KTAP version 1
[    1.0] 1..2
[    1.0]     KTAP version 1
[    1.0]     # Subtest: rust_mm
[    1.0]     # module: kernel
[    1.0]     1..3
[    1.0]     ok 1 walk
[    1.0] some driver: message in between
[    1.0]     # faults: ASSERTION FAILED at rust/kernel/mm.rs:1
[    1.0]     not ok 2 faults
[    1.0]     ok 3 later # SKIP not on this machine
[    1.0] # rust_mm: pass:1 fail:1 skip:1 total:3
[    1.0] not ok 1 rust_mm
[    1.0]     KTAP version 1
[    1.0]     # Subtest: params
[    1.0]     1..1
[    1.0]         KTAP version 1
[    1.0]         # Subtest: case
[    1.0]         ok 1 first
[    1.0]         ok 2 second
[    1.0]     ok 1 case
[    1.0] ok 2 params
"""
HARNESS = """gpusvm-run: hmm
TAP version 13
1..3
# Starting 3 tests from 2 test cases.
#  RUN           hmm.open_close ...
#            OK  hmm.open_close
ok 1 hmm.open_close
# hmm-tests.c:99:read:Expected 1 (1) == 0 (0)
# read: Test failed
not ok 2 hmm.read
ok 3 hmm2.snapshot # SKIP no device
# Totals: pass:1 fail:1 xfail:0 xpass:0 skip:1 error:0

gpusvm-exit: hmm 1
"""


def brief(results):
    return [(one.name, one.status) for one in results]


class Kernel(unittest.TestCase):
    def test_kunit(self):
        self.assertEqual(brief(parse_kernel(KUNIT.splitlines())), [
            ("rust_mm.walk", "pass"), ("rust_mm.faults", "fail"), ("rust_mm.later", "skip"),
            ("params.case.first", "pass"), ("params.case.second", "pass")])

    def test_crash_in_a_suite(self):
        lines = KUNIT.splitlines()[:7]
        self.assertEqual(brief(parse_kernel(lines)), [
            ("rust_mm.walk", "pass"), ("rust_mm.(plan)", "fail"), ("(plan)", "fail")])

    def test_suite_that_fails_without_a_failed_test(self):
        text = "1..1\n    # Subtest: s\n    1..1\n    ok 1 a\nnot ok 1 s"
        self.assertEqual(brief(parse_kernel(text.splitlines())), [("s.a", "pass"), ("s", "fail")])

    def test_documents_of_modules_add_up(self):
        one = "KTAP version 1\n1..1\n    # Subtest: {0}\n    1..1\n    ok 1 a\nok {1} {0}\n"
        lines = (one.format("s", 1) + one.format("t", 2)).splitlines()
        self.assertEqual(brief(parse_kernel(lines)), [("s.a", "pass"), ("t.a", "pass")])


class Programs(unittest.TestCase):
    def test_harness(self):
        self.assertEqual(brief(parse_programs(HARNESS.splitlines())), [
            ("hmm.hmm.open_close", "pass"), ("hmm.hmm.read", "fail"),
            ("hmm.hmm2.snapshot", "skip")])

    def test_program_killed_in_the_middle(self):
        lines = HARNESS.splitlines()[:7] + ["gpusvm-exit: hmm 137 killed, perhaps after 1 s"]
        self.assertEqual(brief(parse_programs(lines)), [
            ("hmm.hmm.open_close", "pass"), ("hmm.(plan)", "fail")])

    def test_machine_that_died(self):
        self.assertEqual(brief(parse_programs(["gpusvm-run: a", "1..1", "ok 1 x"])), [
            ("a.x", "pass"), ("a.(exit)", "fail")])

    def test_all_skipped(self):
        lines = ["gpusvm-run: a", "1..0 # SKIP no device", "gpusvm-exit: a 4"]
        self.assertEqual(brief(parse_programs(lines)), [("a", "skip")])

    def test_program_without_tap_counts_by_its_status(self):
        for code, status in ((0, "pass"), (4, "skip")):
            lines = ["gpusvm-run: demo", "hello", f"gpusvm-exit: demo {code}"]
            self.assertEqual(brief(parse_programs(lines)), [("demo", status)])
        lines = ["gpusvm-run: demo", "gpusvm-exit: demo 1"]
        self.assertEqual(brief(parse_programs(lines)), [("demo.(exit)", "fail")])

    def test_bad_status_after_good_results(self):
        lines = ["gpusvm-run: a", "1..1", "ok 1 x", "gpusvm-exit: a 139"]
        self.assertEqual(brief(parse_programs(lines)), [("a.x", "pass"), ("a.(exit)", "fail")])


if __name__ == "__main__":
    unittest.main()
