# SPDX-License-Identifier: GPL-2.0
# For the guest scripts of the gpusvm tests.

. /tests/lib.sh

# Swap on a disk, and a file system on another one: both complete asynchronously.
disk_on() {
	swap_on
	export GPUSVM_DISK=/mnt
}

# The driver with all that tests need.
driver_on() {
	load vsvm debug=1 "$@"
}

# The driver goes away again, if it is a module: nothing may hold it.
driver_off() {
	if [ -e /sys/module/vsvm/initstate ] && ! rmmod vsvm; then
		echo "gpusvm-run: unload"
		echo "not ok 1 vsvm cannot be unloaded"
		echo "1..1"
		echo "gpusvm-exit: unload 1"
	fi
}
