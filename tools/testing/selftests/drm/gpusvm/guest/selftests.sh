# SPDX-License-Identifier: GPL-2.0
# All tests, as they are meant to run: IOMMU in strict mode, swap on a disk, two NUMA nodes.

. /tests/gpusvm_lib.sh

disk_on
driver_on
run basic 60 /tests/svm_basic
run kinds 60 /tests/svm_kinds
run walk 60 /tests/svm_walk
run reclaim 90 /tests/svm_reclaim
run races 150 /tests/svm_races
run exit 120 /tests/svm_exit
run bad_input 60 /tests/svm_bad_input
run dmirror 60 /tests/svm_dmirror
run inject 150 /tests/svm_inject
run debug 60 /tests/svm_debug
run unbind 150 /tests/svm_unbind
driver_off
load vsvm
run no_debug 30 /tests/svm_no_debug
driver_off
