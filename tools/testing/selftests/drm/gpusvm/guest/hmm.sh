# SPDX-License-Identifier: GPL-2.0
# Upstream's hmm-tests, unmodified: first against vsvm, then against the C test_hmm of the same
# kernel, which serves the same device nodes. compare_hmm.py shows the results side by side.
#
# The tests that are left out need device memory, which vsvm does not have yet.

. /tests/gpusvm_lib.sh

tests="open_close anon_read anon_read_prot anon_write anon_write_prot anon_write_child_shared
	anon_write_huge anon_write_hugetlbfs file_read file_write anon_read_multiple
	anon_teardown mixedmap userfaultfd_read"
args=
for test in $tests; do
	args="$args -r hmm.hmm_device_private.$test"
done

echo 8 >/proc/sys/vm/nr_hugepages
driver_on
# shellcheck disable=SC2086
run hmm-vsvm 120 /tests/hmm-tests $args
driver_off

load test_hmm
# shellcheck disable=SC2086
run hmm-c 120 /tests/hmm-tests $args
rmmod test_hmm
