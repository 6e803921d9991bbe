# SPDX-License-Identifier: GPL-2.0
# A short set, for the other modes of the IOMMU (lazy, off): what depends on how DMA is mapped.

. /tests/gpusvm_lib.sh

export GPUSVM_RACE_MS=700
disk_on
driver_on
run basic 180 /tests/svm_basic
run walk 180 /tests/svm_walk
run races 180 /tests/svm_races -t munmap -t munmap_of_huge_pages -t fork_and_cow \
	-t madv_pageout_of_huge_pages -t madv_collapse_and_split -t mremap -t everything
run exit 180 /tests/svm_exit -t sigkill_during_faults -t exit_during_faults
run unbind 180 /tests/svm_unbind -t open_descriptors -t running_queues
driver_off
