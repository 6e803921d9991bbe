# SPDX-License-Identifier: GPL-2.0
# A machine that bounces DMA.

. /tests/gpusvm_lib.sh

driver_on
run refuse 60 /tests/svm_refuse
driver_off
