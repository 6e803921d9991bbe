# SPDX-License-Identifier: GPL-2.0
"""Finds in a kernel log what must not be there.

A test that provokes such a line on purpose announces it: it writes `gpusvm-expect: KIND begin` to
/dev/kmsg before and `gpusvm-expect: KIND end` after, with a KIND of the table below. A window that
was announced and in which nothing came is a finding as well, since the test then proved nothing;
so is one that was never closed.
"""

import re

from rig.ktap import strip

# The kind that a test may announce, and the lines of that kind. The first that matches counts.
KINDS = [
    ("DMAR", r"DMAR:.*(fault|\[DMA (Read|Write))|arm-smmu.*event|AMD-Vi:.*Event"),
    ("DMA-API", r"DMA-API: (?!preallocated|debugging enabled)"),
    ("IOMMU", r"iommu: Detected page leak|iommu.*page freed"),
    ("KASAN", r"KASAN|UBSAN|KCSAN|KFENCE|KMSAN"),
    ("LOCKDEP", r"possible (circular|recursive|irq lock|unsafe)|inconsistent lock state|"
                r"INFO: trying to register non-static key|lock held when returning to user|"
                r"held lock freed|lockdep is turned off|MAX_LOCK\w+ too low"),
    ("SLEEP", r"sleeping function called|scheduling while atomic|suspicious RCU usage"),
    ("STALL", r"rcu.*(detected|self-detected).*stall|rcu.*kthread.*starved|soft lockup|"
              r"hard LOCKUP|blocked for more than"),
    ("REFCOUNT", r"refcount_t:"),
    ("LEAK", r"kmemleak|memory leak|Objects remaining|Bad rss-counter|non-zero pgtables_bytes|"
             r"Bad page (state|map|cache)|ODEBUG"),
    ("OOPS", r"Oops\b|general protection fault|Unable to handle kernel|Kernel panic|kernel BUG at|"
             r"\bBUG:|unable to handle|panicked at|list_(add|del) corruption"),
    ("WARNING", r"\bWARNING:|\bINFO: "),
]
KINDS = [(kind, re.compile(pattern)) for kind, pattern in KINDS]
EXPECT = re.compile(r"gpusvm-expect: (\S+) (begin|end)")


class Finding:
    """A line that must not be there."""

    def __init__(self, kind, number, text):
        self.kind, self.number, self.text = kind, number, text

    def __repr__(self):
        return f"line {self.number}: {self.kind}: {self.text}"


def kind_of(text):
    return next((kind for kind, pattern in KINDS if pattern.search(text)), None)


def scan(lines):
    """The findings of a log."""
    findings, windows = [], {}
    for number, line in enumerate(lines, 1):
        text = strip(line)
        match = EXPECT.search(text)
        if match:
            kind = match[1]
            if match[2] == "begin":
                if kind in windows:
                    findings.append(Finding("EXPECT", number, f"{kind} announced twice"))
                windows[kind] = [number, 0]
            elif kind not in windows:
                findings.append(Finding("EXPECT", number, f"{kind} ended but not announced"))
            elif windows.pop(kind)[1] == 0:
                findings.append(Finding("EXPECT", number, f"{kind} announced, but none came"))
            continue
        kind = kind_of(text)
        if kind in windows:
            windows[kind][1] += 1
        elif kind:
            findings.append(Finding(kind, number, text.strip()))
    for kind, (number, _) in windows.items():
        findings.append(Finding("EXPECT", number, f"{kind} announced and never ended"))
    return findings
