# SPDX-License-Identifier: GPL-2.0
"""The commands behind the Makefile's targets; run inside the build root by run.sh."""

import fcntl
import os
import signal
import sys
import unittest

from rig import cargo, docs, foreign, guest, kernel, lint, results, series, ui, vm
from rig.ktap import FAIL, PASS, Result
from rig.overlay import Overlay
from rig.plan import Foreign, Plan

UNIT_TESTS = "/repo/tools/testing/gpusvm/tests"
# How much longer everything may take with the address sanitizer.
KASAN = 3


class Cache:
    """The cache folder is one user's at a time, while trees are written and built."""

    def __enter__(self):
        self.file = open("/cache/lock", "w")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            ui.say("waiting: another run builds in this cache folder")
            fcntl.flock(self.file, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_):
        self.file.close()


def lay():
    written, removed = Overlay("/repo", "/src").lay()
    if written or removed:
        ui.say(f"overlay: {len(written)} files written, {len(removed)} removed")


def flag(name):
    return os.environ.get(f"RIG_{name}", "") not in ("", "0", "n", "no")


def variant(plan, name):
    """The kernel that stands for a kernel of the plan: with KASAN=1 another for the test kernel."""
    return plan.kernels["kasan" if flag("KASAN") and name == "test" else name]


def prepared(plan, chosen):
    """Builds what boots need; each one's run, or the failure that it has instead."""
    runs, built, broken = [], [], {}
    lay()
    for boot in chosen:
        one = variant(plan, boot.kernel)
        if one.name == "kasan":
            boot.slow(KASAN)
        try:
            blame = one.name
            if one.name in broken:
                raise broken[one.name]
            if one not in built:
                kernel.build(one)
                built.append(one)
                if one.arch == "x86_64":
                    guest.programs(one)
            for program in plan.used(boot):
                if program.name in broken:
                    raise broken[program.name]
                if program not in built:
                    blame = program.name
                    (foreign if isinstance(program, Foreign) else cargo).build(program)
                    built.append(program)
            blame = None
            runs.append(vm.Run(boot, one, plan))
        except ui.Failed as failed:
            if blame:
                broken[blame] = failed
            runs.append(failed)
    return runs


def boots(plan, chosen, extra=(), show=False):
    """Builds what the boots need, makes them and gives back each one's results."""
    with Cache():
        runs = prepared(plan, chosen)
        ours = guest.ours()
    got = []
    for boot, run in zip(chosen, runs):
        if isinstance(run, ui.Failed):
            got.append([(Result(f"{boot.name}/{results.NO_BOOT}", FAIL, str(run)), run.log)])
            continue
        vm.boot(run, extra, show and boot.show)
        got.append(results.of_boot(run, ours))
    return got


def unit_tests():
    """The rig's own tests."""
    class Collect(unittest.TextTestResult):
        """Keeps each test's outcome by name."""
        got = []

        def stopTest(self, test):
            super().stopTest(test)
            bad = [text for one, text in self.failures + self.errors if one is test]
            name = test.id().split(".", 1)[-1]
            self.got.append(Result(f"rig/{name}", FAIL if bad else PASS,
                                   bad[0].strip().splitlines()[-1] if bad else ""))

    Collect.got = []
    log = f"{kernel.LOGS}/rig.log"
    os.makedirs(kernel.LOGS, exist_ok=True)
    with ui.step("the rig's own tests"), open(log, "w") as out:
        suite = unittest.defaultTestLoader.discover(UNIT_TESTS, top_level_dir=UNIT_TESTS)
        unittest.TextTestRunner(stream=out, resultclass=Collect).run(suite)
    return [(one, log) for one in Collect.got]


def all_tests(plan, every):
    """Every test, compared with the lists of expected names."""
    update = flag("UPDATE")
    groups = {"rig": unit_tests()}
    arch = os.environ.get("RIG_ARCH") or "x86_64"
    for program in plan.programs.values():
        if program.check and arch == "x86_64":
            groups[program.name] = cargo.test(program)
    chosen = plan.of_test(arch)
    for boot, got in zip(chosen, boots(plan, chosen)):
        groups[boot.name] = got
    for group, got in groups.items():
        for one, log in got:
            every.add([one], log)
        every.add(results.compare([one for one, _ in got], group, update))


def all_lints(plan, every):
    with Cache():
        lay()
        for one, log in lint.lint(plan):
            every.add([one], log)
        for program in plan.programs.values():
            if program.check:
                for one, log in cargo.lint(program):
                    every.add([one], log)


def test(plan):
    """make test: everything that boots."""
    every = results.Results()
    all_tests(plan, every)
    return every.report()


def lints(plan):
    """make lint: everything that only looks."""
    every = results.Results()
    all_lints(plan, every)
    return every.report()


def both(plan):
    """.ci/run: test and lint under one sum."""
    every = results.Results()
    for part in (all_tests, all_lints):
        try:
            part(plan, every)
        except ui.Failed as failed:
            every.add([Result(part.__name__, FAIL, str(failed))], failed.log)
    return every.report()


def target(plan, name, extra=()):
    """make kunit, selftests, hmm-tests, run: the boots of one target, each result a line."""
    chosen = plan.of_target(name)
    if not chosen:
        raise ui.Failed(f"there is no command {name}")
    if chosen[0].interactive:
        return shell(plan, chosen[0])
    return some(plan, chosen, extra)


def one_boot(plan, *names):
    """run.sh boot NAME...: single boots of the plan."""
    unknown = [name for name in names if name not in plan.boots]
    if unknown or not names:
        raise ui.Failed(f"boots are: {' '.join(plan.boots)}")
    return some(plan, [plan.boots[name] for name in names])


def some(plan, chosen, extra=()):
    """Some boots, without the comparison with the expected names; each result is a line."""
    every = results.Results()
    for boot, got in zip(chosen, boots(plan, chosen, extra, show=True)):
        for one, log in got:
            if not boot.show and one.status == PASS:
                print(one)
            every.add([one], log)
    return every.report()


def kunit(plan):
    """make kunit [FILTER=suite.test]: the KUnit boot alone."""
    pattern = os.environ.get("RIG_FILTER", "")
    return target(plan, "kunit", [f"kunit.filter_glob={pattern}"] if pattern else [])


def repeats():
    """RUNS=n: how often."""
    text = os.environ.get("RIG_RUNS") or "1"
    if not text.isdecimal() or not int(text):
        raise ui.Failed(f"RUNS={text} is no number of runs")
    return int(text)


def kfdtest(plan):
    """make kfdtest [FILTER=pattern] [RUNS=n] [SVM=c]: AMD's tests, each run a boot of its own."""
    svm = os.environ.get("RIG_SVM") or "c"
    if svm != "c":
        raise ui.Failed(f"SVM={svm}: in amdgpu there is only the SVM in C so far; SVM=c tests it")
    pattern, runs = os.environ.get("RIG_FILTER", ""), repeats()
    chosen = plan.of_target("kfdtest") * runs
    every, tables = results.Results(), []
    got = boots(plan, chosen, [f"kfdtest={pattern}"] if pattern else (), show=True)
    for one_run in got:
        tables.append([one for one, _ in one_run])
        for one, log in one_run:
            every.add([one], log)
    if runs > 1:
        different = results.unequal(tables)
        every.add([Result("kfdtest/(equal runs)", FAIL if different else PASS,
                          "; ".join(different))])
        ui.say(f"{runs} runs: " + ("; ".join(different) or "all results are equal"))
    return every.report()


def shell(plan, boot):
    """make shell: a machine with a terminal."""
    with Cache():
        run = prepared(plan, [boot])[0]
    if isinstance(run, ui.Failed):
        raise run
    vm.shell(run)
    return 0


def prepare(plan):
    """make prepare: everything up to the first boot."""
    one = variant(plan, "test")
    with Cache():
        lay()
        kernel.build(one)
        guest.programs(one)
    return 0


def html(plan):
    """make docs."""
    with Cache():
        lay()
        return docs.docs(plan)


def patches(plan):
    """make series: the overlay for `git am`; CHECK=1: builds after each patch."""
    with Cache():
        lay()
        return series.series(plan, flag("CHECK"))


COMMANDS = {"test": test, "kunit": kunit, "kfdtest": kfdtest, "prepare": prepare, "lint": lints,
            "ci": both, "docs": html, "boot": one_boot, "series": patches}


def interrupt(*_):
    raise KeyboardInterrupt


def main():
    # The first process of its namespace: without a handler the signal would do nothing.
    signal.signal(signal.SIGTERM, interrupt)
    command, *words = sys.argv[1:]
    try:
        if command in COMMANDS:
            return COMMANDS[command](Plan(), *words)
        return target(Plan(), command, *words)
    except ui.Failed as failed:
        print(f"\n*** {failed}", file=sys.stderr)
        if failed.log:
            print(f"*** log: {ui.host_path(failed.log)}", file=sys.stderr)
        print("0 passed, 1 failed", flush=True)
        return 1
    except KeyboardInterrupt:
        print("\n*** interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
