# SPDX-License-Identifier: GPL-2.0
# The demonstration of `make run`.

. /tests/gpusvm_lib.sh

disk_on
driver_on
run demo 120 /tests/demo "${GPUSVM_SECONDS:-5}"
driver_off
