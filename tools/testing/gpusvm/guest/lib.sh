# SPDX-License-Identifier: GPL-2.0
# For guest scripts: `. /tests/lib.sh`.

# How many times longer programs may take in a slow kernel (gpusvm.slow=N).
_slow=$(sed -n 's/.*gpusvm\.slow=\([0-9]*\).*/\1/p' /proc/cmdline)

# run NAME [SECONDS] COMMAND...: runs a test program that prints TAP. Its results are named
# NAME.<test>; one that prints no result counts by its exit status (4: skipped). It is killed
# after SECONDS (120).
run() {
	_name=$1 _limit=120
	shift
	case $1 in
	[0-9]*) _limit=$1; shift ;;
	esac
	echo "gpusvm-run: $_name"
	echo "gpusvm: $_name begins" >/dev/kmsg
	_limit=$((_limit * ${_slow:-1}))
	timeout -s KILL "$_limit" "$@"
	_code=$?
	_note=
	[ $_code -ne 137 ] || _note="killed, perhaps after $_limit s"
	# A program may have ended in the middle of a line.
	echo
	echo "gpusvm-exit: $_name $_code $_note"
	echo "gpusvm: $_name ends with $_code" >/dev/kmsg
	return $_code
}

# swap_on: swaps on the virtio disk, a device that completes asynchronously.
swap_on() {
	mkswap /dev/vda >/dev/null && swapon /dev/vda
}

# load MODULE [PARAMETER...]: loads a module; says so if the kernel has none.
load() {
	modprobe "$@" || echo "# no module $1"
}
