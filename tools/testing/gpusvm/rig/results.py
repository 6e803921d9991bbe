# SPDX-License-Identifier: GPL-2.0
"""All results of a run: merges them, compares them with the expected names, prints the sum."""

import os
import re
import subprocess

from rig import klog, ktap, ui
from rig.kernel import LOGS
from rig.ktap import FAIL, PASS, SKIP, Result
from rig.overlay import write

# Stands for a boot that could not be made.
NO_BOOT = "(build)"
NO_KUNIT = "kunit.enable=0"
LIST = f"{LOGS}/results.txt"
EXPECTED = "/repo/tools/testing/gpusvm/expected"


class Results:
    """The results of one command."""

    def __init__(self):
        self.all, self.logs = [], {}

    def add(self, results, log=None):
        for result in results:
            self.all.append(result)
            self.logs[id(result)] = log

    def count(self, status):
        return sum(one.status == status for one in self.all)

    def report(self):
        """Prints what failed or was skipped, then the sum; returns the exit status.

        All results are in log/results.txt.
        """
        write(LIST, "".join(f"{one}\n" for one in self.all).encode(), 0o644)
        for result in self.all:
            if result.status == SKIP:
                print(f"SKIP {result.name}" + (f": {result.why}" if result.why else ""))
        for result in self.all:
            if result.status == FAIL:
                log = self.logs.get(id(result))
                print(f"FAIL {result.name}" + (f": {result.why}" if result.why else ""))
                if log:
                    print(f"     log: {ui.host_path(log)}")
        return self.sum()

    def sum(self):
        line = f"{self.count(PASS)} passed, {self.count(FAIL)} failed"
        if self.count(SKIP):
            line += f", {self.count(SKIP)} skipped"
        print(line, flush=True)
        return 0 if self.count(PASS) and not self.count(FAIL) else 1


def known_failures(path):
    """A list of known failures: names, each at the beginning of a line, and their common reason
    indented below them."""
    known, group, said = {}, [], False
    with open(path) as file:
        for line in file:
            if line[0] in " \t":
                said = True
                for name in group:
                    known[name] = f"{known[name]} {line.strip()}".strip()
            elif line.strip() and line[0] != "#":
                group = [*([] if said else group), line.strip()]
                known[group[-1]], said = "", False
    bare = [name for name, why in known.items() if not why]
    if bare:
        raise ui.Failed(f"{path}: {bare[0]} has no reason")
    return known


def judge(tests, known):
    """A known failure must fail: only then does it count as passed."""
    for one in tests:
        name = re.sub(r"^\w+\.", "", one.name)
        if name not in known or one.status == SKIP:
            continue
        if one.status == FAIL:
            one.status, one.why = PASS, f"fails, as is known: {known[name]}"
        else:
            one.status, one.why = FAIL, f"it passes, but is known to fail: {known[name]}"


def unequal(runs):
    """What differs between runs that should have equal results, in words."""
    tables = [{one.name: one.status for one in run} for run in runs]
    said = []
    for name in sorted(set().union(*tables)):
        got = [table.get(name, "missing") for table in tables]
        if len(set(got)) > 1:
            said.append(f"{name}: " + ", ".join(got))
    return said


def of_boot(run, ours):
    """The results of a boot. KUnit tests of the kernel itself count only when they fail."""
    kernel = ktap.parse_kernel(run.lines(run.kernel_log))
    if NO_KUNIT in run.boot.append:
        # A module with suites announces them all the same.
        kernel = []
    kernel = [one for one in kernel if one.status == FAIL or ours.match(one.name)]
    tests = ktap.parse_programs(run.lines(run.tests_log))
    if run.boot.known:
        judge(tests, known_failures(os.path.join("/repo", run.boot.known)))
    findings = klog.scan(run.lines(run.kernel_log))
    results = [(one, run.kernel_log) for one in kernel] + [(one, run.tests_log) for one in tests]
    results.append((Result("(boot)", FAIL if run.failure else PASS, run.failure or ""),
                    run.kernel_log))
    why = "; ".join(map(repr, findings[:3]))
    if len(findings) > 3:
        why += f"; and {len(findings) - 3} more"
    results.append((Result("(kernel log)", FAIL if findings else PASS, why), run.kernel_log))
    if run.beside:
        why = run.beside.failure or ""
        results.append((Result("(beside)", FAIL if why else PASS, why), run.beside.log))
    if run.boot.after:
        results.append((after(run), run.tests_log))
    for one, _ in results:
        one.name = f"{run.boot.name}/{one.name}"
    return results


def after(run):
    """Runs the program that reports on a boot."""
    known = [os.path.join("/repo", run.boot.known)] if run.boot.known else []
    done = subprocess.run([os.path.join("/repo", run.boot.after), run.tests_log, run.kernel_log,
                           *known], stdin=subprocess.DEVNULL, check=False)
    why = f"{run.boot.after} ends with {done.returncode}" if done.returncode else ""
    return Result("(report)", FAIL if why else PASS, why)


def names(results):
    """The names that count as tests: not the failures that stand for something missing."""
    return sorted({one.name for one in results
                   if not one.name.endswith((".(plan)", ".(exit)"))})


def compare(results, group, update):
    """The differences between a group's tests and the list of them in the repository."""
    path = f"{EXPECTED}/{group}.txt"
    got = names(results)
    if got == [f"{group}/{NO_BOOT}"]:
        return []
    if update:
        write(path, "".join(f"{name}\n" for name in got).encode(), 0o644)
        return []
    wanted = []
    if os.path.exists(path):
        with open(path) as file:
            wanted = file.read().split("\n")
    wanted = [name for name in wanted if name]
    again = [name for name in set(got) if sum(one.name == name for one in results) > 1]
    return [Result(name, FAIL, "vanished: expected, but it did not run")
            for name in wanted if name not in got] + \
        [Result(name, FAIL, "not in the list of expected tests; `make test UPDATE=1` adds it")
         for name in got if name not in wanted] + \
        [Result(name, FAIL, "two tests have this name") for name in sorted(again)]
