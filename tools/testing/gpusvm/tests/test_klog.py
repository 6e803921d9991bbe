# SPDX-License-Identifier: GPL-2.0
"""What the log scanner finds, and what it lets pass."""

import unittest

from rig.klog import scan

BAD = {
    "WARNING": "[    1.234567] WARNING: mm/hmm.c:831 at hmm_range_fault+0x1/0x2, CPU#1: test/61",
    "OOPS": "[    1.0] BUG: unable to handle page fault for address: ffff88800badc0de",
    "LOCKDEP": "[    1.0] WARNING: possible circular locking dependency detected",
    "KASAN": "[    1.0] BUG: KASAN: slab-use-after-free in vsvm_fault+0x1/0x2 [vsvm]",
    "DMAR": "[    1.0] DMAR: [DMA Write NO_PASID] Request device [00:02.0] fault addr 0xfffff000",
    "DMA-API": "[    1.0] DMA-API: edu 0000:00:02.0: device driver frees DMA memory",
    "IOMMU": "[    1.0] iommu: Detected page leak!",
    "REFCOUNT": "[    1.0] refcount_t: underflow; use-after-free.",
    "STALL": "[    1.0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
    "SLEEP": "[    1.0] BUG: sleeping function called from invalid context at mm/slab.h:1",
    "LEAK": "[    1.0] BUG: Bad rss-counter state mm:00000000 type:MM_ANONPAGES val:1",
}
GOOD = [
    "[    0.1] DMA-API: preallocated 65536 debug entries",
    "[    0.1] DMA-API: debugging enabled by kernel config",
    "[    0.1] DMAR: Host address width 48",
    "[    0.1] rcu: \tRCU lockdep checking is enabled.",
    "[    0.1] Lock dependency validator: Copyright (c) 2006 Red Hat, Inc., Ingo Molnar",
    "[    0.1] FAULT_INJECTION: forcing a failure.",
    "[    0.1]     ok 4 rust_doctest_kernel_mm_rs_0",
    "[    0.1] Memory failure: 0x1234: recovery action for anonymous page: Recovered",
]


class Scan(unittest.TestCase):
    def test_bad_lines(self):
        for kind, line in BAD.items():
            with self.subTest(kind):
                self.assertEqual([one.kind for one in scan(["[ 0.0] fine", line])], [kind])

    def test_good_lines(self):
        self.assertEqual(scan(GOOD), [])

    def test_finding_says_where(self):
        found = scan(["[ 0.0] fine", BAD["WARNING"]])[0]
        self.assertEqual((found.number, found.text[:14]), (2, "WARNING: mm/hm"))

    def window(self, *inside, kind="DMAR"):
        return [one.kind for one in scan([f"[ 1.0] gpusvm-expect: {kind} begin", *inside,
                                          f"[ 2.0] gpusvm-expect: {kind} end"])]

    def test_announced_line_is_no_finding(self):
        self.assertEqual(self.window(BAD["DMAR"], BAD["DMAR"]), [])

    def test_window_is_for_its_kind_alone(self):
        self.assertEqual(self.window(BAD["DMAR"], BAD["WARNING"]), ["WARNING"])

    def test_after_the_window_it_counts_again(self):
        lines = ["gpusvm-expect: DMAR begin", BAD["DMAR"], "gpusvm-expect: DMAR end", BAD["DMAR"]]
        self.assertEqual([(one.kind, one.number) for one in scan(lines)], [("DMAR", 4)])

    def test_empty_window_is_a_finding(self):
        self.assertEqual(self.window(), ["EXPECT"])

    def test_open_and_unopened_windows_are_findings(self):
        self.assertEqual([one.kind for one in scan(["gpusvm-expect: DMAR begin", BAD["DMAR"]])],
                         ["EXPECT"])
        self.assertEqual([one.kind for one in scan(["gpusvm-expect: DMAR end"])], ["EXPECT"])


if __name__ == "__main__":
    unittest.main()
