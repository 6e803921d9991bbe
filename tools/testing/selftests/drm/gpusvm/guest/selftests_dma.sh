# SPDX-License-Identifier: GPL-2.0
# The bounded set with the DMA engine of the device.

. /tests/gpusvm_lib.sh

driver_on engine=dma
run dma 120 /tests/svm_dma
driver_off
