#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Shows two runs of hmm-tests side by side: vsvm, and the C test_hmm on the same kernel.

usage: compare_hmm.py [LOG [KERNEL_LOG]]

KERNEL_LOG is not looked at. LOG is what guest/hmm.sh printed (default: standard input). Each run stands between the lines
"gpusvm-run: NAME" and "gpusvm-exit: NAME CODE". The exit status is 0 if vsvm passes every test
that C passes, and both ran.
"""

import re
import sys

RUNS = [("hmm-vsvm", "vsvm"), ("hmm-c", "test_hmm (C)")]
RESULT = re.compile(r"(not ok|ok) \d+ (?:- )?(\S+)(?:\s+# (SKIP|XFAIL)\b)?", re.IGNORECASE)


def parse(lines):
    """Results of each run, in the order of the tests: {run: {test: result}}."""
    runs, now = {}, None
    for line in lines:
        words = line.split()
        if line.startswith("gpusvm-run: ") and len(words) > 1:
            now = runs.setdefault(words[1], {})
        elif line.startswith("gpusvm-exit: "):
            now = None
        match = RESULT.match(line.strip())
        if match and now is not None:
            now[match[2]] = "skip" if match[3] else "pass" if match[1] == "ok" else "FAIL"
    return runs


def table(runs):
    """The lines of the table, and whether vsvm is as good as C."""
    ours, theirs = (runs.get(name, {}) for name, _ in RUNS)
    names = list(dict.fromkeys([*ours, *theirs]))
    width = max([len(name) for name in names] + [4])
    lines = [f"{'test':{width}}  {RUNS[0][1]:12}  {RUNS[1][1]:12}"]
    good = bool(ours) and bool(theirs)
    for name in names:
        mine, reference = ours.get(name, "missing"), theirs.get(name, "missing")
        worse = mine != "pass" and (reference == "pass" or mine == "FAIL")
        good = good and not worse
        lines.append(f"{name:{width}}  {mine:12}  {reference:12}{'  <-' if worse else ''}")
    count = [sum(result == "pass" for result in run.values()) for run in (ours, theirs)]
    lines.append(f"{'passed':{width}}  {count[0]:<12}  {count[1]:<12}")
    return lines, good


def main():
    if len(sys.argv) > 1:
        with open(sys.argv[1], encoding="utf-8", errors="replace") as log:
            runs = parse(log)
    else:
        runs = parse(sys.stdin)
    lines, good = table(runs)
    print("\n".join(line.rstrip() for line in lines))
    for name, title in RUNS:
        if not runs.get(name):
            print(f"no results of {title}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
