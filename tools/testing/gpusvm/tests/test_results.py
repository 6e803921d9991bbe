# SPDX-License-Identifier: GPL-2.0
"""The merging of results and the comparison with the lists of expected tests."""

import contextlib
import io
import os
import re
import tempfile
import unittest
from unittest import mock

from rig import results, ui
from rig.ktap import FAIL, PASS, SKIP, Result


def outcome(every):
    with contextlib.redirect_stdout(io.StringIO()) as out, \
            tempfile.TemporaryDirectory() as folder, \
            mock.patch.object(results, "LIST", f"{folder}/results.txt"):
        code = every.report()
        with open(results.LIST) as file:
            assert len(file.readlines()) == len(every.all)
    return code, out.getvalue().splitlines()


class Merge(unittest.TestCase):
    def test_sum(self):
        every = results.Results()
        every.add([Result("a", PASS), Result("b", PASS)])
        self.assertEqual(outcome(every), (0, ["2 passed, 0 failed"]))
        every.add([Result("c", SKIP, "no device")])
        self.assertEqual(outcome(every)[1],
                         ["SKIP c: no device", "2 passed, 0 failed, 1 skipped"])
        every.add([Result("d", FAIL, "why")], "/tmp/x.log")
        self.assertEqual(outcome(every), (1, ["SKIP c: no device", "FAIL d: why",
                                              "     log: /tmp/x.log",
                                              "2 passed, 1 failed, 1 skipped"]))

    def test_nothing_ran_is_no_success(self):
        self.assertEqual(outcome(results.Results()), (1, ["0 passed, 0 failed"]))

    def test_tests_of_the_kernel_itself_count_only_when_they_fail(self):
        run = mock.Mock(kernel_log="kernel", tests_log="tests", failure=None, beside=None)
        run.boot.name, run.boot.after, run.boot.append, run.boot.known = "kunit", "", [], ""
        run.lines = {"kernel": ["1..1", "    # Subtest: theirs", "    1..2", "    ok 1 a",
                                "    not ok 2 b", "not ok 1 theirs", "    # Subtest: ours",
                                "    1..1", "    ok 1 c", "ok 2 ours"], "tests": []}.get
        got = [repr(one) for one, _ in results.of_boot(run, re.compile(r"ours\."))]
        self.assertEqual(got[:2], ["fail kunit/theirs.b", "pass kunit/ours.c"])
        run.boot.append = [results.NO_KUNIT]
        got = [repr(one) for one, _ in results.of_boot(run, re.compile(r"ours\."))]
        self.assertEqual(got, ["pass kunit/(boot)", "pass kunit/(kernel log)"])


KNOWN = """# A comment.
Suite.Test/1
	It cannot,
	for a reason.

Other
Another
	No.
"""


class Known(unittest.TestCase):
    def read(self, text):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(text)
            file.flush()
            return results.known_failures(file.name)

    def test_list(self):
        self.assertEqual(self.read(KNOWN),
                         {"Suite.Test/1": "It cannot, for a reason.", "Other": "No.",
                          "Another": "No."})
        with self.assertRaises(ui.Failed):
            self.read("Suite.Test/1\n")

    def test_only_what_fails_is_as_known(self):
        tests = [Result("kfdtest.Suite.Test/1", FAIL, "x"), Result("kfdtest.Suite.Test/0", FAIL),
                 Result("kfdtest.Other", PASS), Result("kfdtest.Good", PASS)]
        results.judge(tests, self.read(KNOWN))
        self.assertEqual([one.status for one in tests], [PASS, FAIL, FAIL, PASS])
        self.assertIn("It cannot", tests[0].why)
        self.assertIn("it passes", tests[2].why)

    def test_runs_that_should_be_equal(self):
        runs = [[Result("a", PASS), Result("b", PASS)], [Result("b", PASS), Result("a", PASS)]]
        self.assertEqual(results.unequal(runs), [])
        runs.append([Result("a", FAIL)])
        self.assertEqual(results.unequal(runs), ["a: pass, pass, fail", "b: pass, pass, missing"])


class Expected(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.enterContext(mock.patch.object(results, "EXPECTED", folder.name))

    def compare(self, *names, update=False):
        return [(one.name, one.why.split(":")[0].split(";")[0]) for one in
                results.compare([Result(name, PASS) for name in names], "g", update)]

    def test_lists(self):
        self.assertEqual(self.compare("g/b", "g/a", update=True), [])
        with open(os.path.join(results.EXPECTED, "g.txt")) as file:
            self.assertEqual(file.read(), "g/a\ng/b\n")
        self.assertEqual(self.compare("g/a", "g/b"), [])
        self.assertEqual(self.compare("g/a"), [("g/b", "vanished")])
        self.assertEqual(self.compare("g/a", "g/b", "g/c"),
                         [("g/c", "not in the list of expected tests")])
        self.assertEqual(self.compare("g/a", "g/b", "g/b"), [("g/b", "two tests have this name")])

    def test_boot_that_could_not_be_made_is_one_failure(self):
        self.compare("g/a", "g/b", update=True)
        self.assertEqual(self.compare(f"g/{results.NO_BOOT}"), [])

    def test_signs_of_missing_tests_are_no_names(self):
        self.compare("g/a", update=True)
        self.assertEqual(self.compare("g/a", "g/s.(plan)", "g/p.(exit)"), [])


if __name__ == "__main__":
    unittest.main()
