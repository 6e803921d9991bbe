# SPDX-License-Identifier: GPL-2.0
# The emulated AMD GPU: does amdgpu with KFD come up?
. /tests/lib.sh

gpu_nodes() {
	for node in /sys/class/kfd/kfd/topology/nodes/*; do
		[ "$(cat "$node"/gpu_id)" = 0 ] || echo "$node"
	done
}

probe() {
	[ -c /dev/kfd ] || { echo "not ok 1 no /dev/kfd"; return 1; }
	echo "ok 1 /dev/kfd"
	[ -n "$(gpu_nodes)" ] || { echo "not ok 2 KFD lists no GPU"; return 1; }
	for node in $(gpu_nodes); do
		cat "$node"/properties
	done
	echo "ok 2 KFD lists a GPU"
	echo "1..2"
}

echo "gpusvm-run: probe"
probe
echo "gpusvm-exit: probe $?"

run kfd_svm 900 /tests/kfd_svm
