# SPDX-License-Identifier: GPL-2.0
# All tests, as they are meant to run: IOMMU in strict mode, swap on a disk, two NUMA nodes.
#
# The limits only end what hangs: a sanitizer on a busy machine needs ten times of the usual.

. /tests/gpusvm_lib.sh

disk_on
driver_on
run basic 120 /tests/svm_basic
run kinds 180 /tests/svm_kinds
run walk 120 /tests/svm_walk
run reclaim 240 /tests/svm_reclaim
run races 400 /tests/svm_races
run exit 240 /tests/svm_exit
run bad_input 120 /tests/svm_bad_input
run dmirror 120 /tests/svm_dmirror
run inject 400 /tests/svm_inject
run debug 120 /tests/svm_debug
run unbind 300 /tests/svm_unbind
driver_off
load vsvm
run no_debug 30 /tests/svm_no_debug
driver_off
