# SPDX-License-Identifier: GPL-2.0
"""The programs of the repository that cargo builds, tests and checks."""

import os
import re

from rig import ui
from rig.kernel import LOGS
from rig.ktap import FAIL, PASS, SKIP, Result

HOME = "/cache/cargo"
TEST = re.compile(r"^test (\S+)(?: - .*)? \.\.\. (ok|FAILED|ignored)", re.M)
BINARY = re.compile(r"^ +(?:Running (?:unittests )?(\S+)|Doc-tests (\S+))", re.M)
STATUS = {"ok": PASS, "FAILED": FAIL, "ignored": SKIP}


def cargo(program, log, *words):
    """Runs cargo on a program; its lock file says which crates, and nothing else does."""
    env = {**os.environ, **program.env, "CARGO_HOME": HOME, "CARGO_TARGET_DIR": program.target,
           "CARGO_TERM_COLOR": "never"}
    ui.run(["cargo", *words], f"{LOGS}/{log}.log", name=f"cargo {words[0]} of {program.name}",
           cwd=program.source, env=env)


def build(program):
    with ui.step(f"building {program.name}"):
        cargo(program, program.name, "build", "--release", "--locked")


def outcomes(text):
    """The tests in what `cargo test` printed: (name, status), a name with its binary's."""
    found, binary = [], ""
    for line in text.splitlines():
        match = BINARY.match(line)
        if match:
            binary = os.path.splitext(os.path.basename(match[1] or match[2]))[0]
        match = TEST.match(line)
        if match:
            found.append((f"{binary}.{match[1]}", STATUS[match[2]]))
    return found


def test(program):
    """`cargo test` of a program: (result, log) for each of its tests."""
    log = f"{LOGS}/{program.name}-test.log"
    failed = None
    with ui.step(f"tests of {program.name}"):
        try:
            cargo(program, f"{program.name}-test", "test", "--locked", "--workspace",
                  "--no-fail-fast")
        except ui.Failed as error:
            failed = error
    with open(log, errors="replace") as file:
        got = [Result(f"{program.name}/{name}", status) for name, status in outcomes(file.read())]
    if failed and not any(one.status == FAIL for one in got):
        got.append(Result(f"{program.name}/(cargo)", FAIL, str(failed)))
    return [(one, log) for one in got]


def lint(program):
    """`cargo fmt` and `cargo clippy`."""
    for name, words in (("fmt", ["fmt", "--all", "--check"]),
                        ("clippy", ["clippy", "--locked", "--workspace", "--all-targets", "--",
                                    "-D", "warnings"])):
        log = f"lint-{program.name}-{name}"
        why = ""
        try:
            cargo(program, log, *words)
        except ui.Failed as failed:
            why = str(failed).splitlines()[1]
        yield Result(f"lint/{program.name}-{name}", FAIL if why else PASS, why), f"{LOGS}/{log}.log"
