# SPDX-License-Identifier: GPL-2.0
"""Reads KTAP and TAP: KUnit in a kernel log, kselftest programs on the second serial line."""

import re

STAMP = re.compile(r"^(<\d+>)?\[ *\d+\.\d+\](\[ *[TC]\d+\])? ?")
RESULT = re.compile(r"^( *)(not )?ok \d+ ?(?:- )?([^#]*?) *(?:# *(.*))?$")
PLAN = re.compile(r"^( *)1\.\.(\d+)(?: *# *(SKIP.*))?$")
SUBTEST = re.compile(r"^( *)# Subtest: (.*)$")
# The guest's lines around each program, see guest/lib.sh.
BEGIN = re.compile(r"^gpusvm-run: (\S+)$")
END = re.compile(r"^gpusvm-exit: (\S+) (\d+)(?: (.*))?$")

PASS, FAIL, SKIP = "pass", "fail", "skip"


class Result:
    """One test: its name, pass, fail or skip, and what it said about that."""

    def __init__(self, name, status, why=""):
        self.name, self.status, self.why = name, status, why

    def __repr__(self):
        return f"{self.status} {self.name}" + (f" ({self.why})" if self.why else "")


class Level:
    """The tests at one indentation: how many were announced and how many came."""

    def __init__(self):
        self.name, self.plan, self.seen, self.failed = None, None, 0, 0


class Document:
    """Tests that belong together: the KUnit of a boot, or one program."""

    def __init__(self, prefix=""):
        self.prefix, self.levels, self.results = prefix, {}, []

    def level(self, indent):
        return self.levels.setdefault(indent, Level())

    def path(self, indent, *last):
        names = [self.prefix] + [self.levels[at].name for at in sorted(self.levels) if at <= indent]
        return ".".join(name for name in [*names, *last] if name)

    def close(self, indent):
        """Ends the levels deeper than `indent`; says how many of their tests failed."""
        failed = 0
        for at in sorted((at for at in self.levels if at > indent), reverse=True):
            level = self.levels[at]
            failed += level.failed + self.short(at, level)
            del self.levels[at]
        return failed

    def short(self, at, level):
        """A level that ended before all of its tests came is a failure of its own."""
        if level.plan is None or level.seen == level.plan:
            return 0
        self.results.append(Result(self.path(at, "(plan)"), FAIL,
                                   f"{level.plan} tests announced, {level.seen} seen"))
        return 1

    def line(self, text):
        """Takes one line; says whether it was a result."""
        match = SUBTEST.match(text)
        if match:
            # The header stands at the indentation of the tests below it.
            self.close(len(match[1]) - 1)
            self.level(len(match[1])).name = match[2].strip()
            return False
        match = PLAN.match(text)
        if match:
            level = self.level(len(match[1]))
            level.plan = int(match[2]) + (level.plan or 0 if level.name is None else 0)
            if match[3]:
                self.results.append(Result(self.path(len(match[1])), SKIP, match[3]))
            return False
        match = RESULT.match(text)
        if not match:
            return False
        indent, name, directive = len(match[1]), match[3].strip(), match[4] or ""
        below = any(at > indent for at in self.levels)
        failed = self.close(indent)
        level = self.level(indent)
        level.seen += 1
        skip = re.match(r"SKIP\b[:, ]*(.*)", directive, re.I)
        status = FAIL if match[2] else SKIP if skip else PASS
        if not name and skip:
            name = skip[1]
        # The line of a suite says nothing new, unless it failed and none of its tests did.
        if not below or (status == FAIL and not failed):
            why = skip[1] if skip else directive
            self.results.append(Result(self.path(indent, name.replace(" ", "_")), status, why))
        level.failed += status == FAIL
        return True

    def end(self):
        self.close(-1)
        return self.results


def strip(line):
    return STAMP.sub("", line.rstrip("\r\n"), count=1)


def parse_kernel(lines):
    """The KUnit results of a kernel log."""
    document = Document()
    for line in lines:
        document.line(strip(line))
    return document.end()


def parse_programs(lines):
    """The results of the programs that a guest script ran, each under its own name."""
    results, document, last = [], None, ""
    for line in lines:
        line = line.rstrip("\r\n")
        match = BEGIN.match(line)
        if match:
            if document:
                results += document.end()
                results.append(Result(f"{document.prefix}.(exit)", FAIL, "did not end"))
            document = Document(match[1])
            continue
        match = END.match(line)
        if match and document:
            got = document.end()
            results += got
            if match[2] == "4" and not got:
                results.append(Result(document.prefix, SKIP, match[3] or last))
            elif match[2] not in ("0", "4") and not any(one.status == FAIL for one in got):
                results.append(Result(f"{document.prefix}.(exit)", FAIL,
                                      f"exit status {match[2]} {match[3] or ''}".strip()))
            elif not got:
                results.append(Result(document.prefix, PASS))
            document = None
            continue
        if document:
            document.line(line)
            last = line
    if document:
        results += document.end()
        results.append(Result(f"{document.prefix}.(exit)", FAIL, "did not end"))
    return results
