#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Prints what a boot with kfdtest showed: a line for each test, without and with retried faults."""

import re
import sys

LINE = re.compile(r"^(not )?ok \d+ - (\S+)/([01]) # (\d+) s")


def rows(lines):
    """test -> {"0" or "1": (passed, seconds)}, in the order in which they ran."""
    found = {}
    for line in lines:
        match = LINE.match(line)
        if match:
            found.setdefault(match[2], {})[match[3]] = (not match[1], int(match[4]))
    return found


def cell(result, known):
    if result is None:
        return "-"
    passed, seconds = result
    word = "pass" if passed else "FAIL"
    return f"{word} {seconds:4} s" + (" known" if known and not passed else "")


def names(path):
    """The tests in a list of known failures."""
    with open(path) as file:
        return {line.strip() for line in file if line.strip() and line[0] not in "#\t "}


def main(log, _kernel_log, known=None):
    with open(log, errors="replace") as file:
        found = rows(file.read().splitlines())
    expected = names(known) if known else set()
    width = max(map(len, found), default=0)
    print(f"{'test':{width}}  {'XNACK off':<18}XNACK on")
    for test, results in found.items():
        off, on = (cell(results.get(mode), f"{test}/{mode}" in expected) for mode in "01")
        print(f"{test:{width}}  {off:<18}{on}")
    done = [result for results in found.values() for result in results.values()]
    print(f"{sum(passed for passed, _ in done)} of {len(done)} pass, "
          f"in {sum(seconds for _, seconds in done)} s", flush=True)
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
