#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# usage: run.sh COMMAND [ARG...]
#
# Prepares the cache folder as far as needed and runs a command of the rig inside the build root.
# The cache folder is $GPUSVM_CACHE, by default $XDG_CACHE_HOME/rust-gpusvm; nothing else outside
# of the checkout is written.
set -eu

repo=$(cd "$(dirname "$0")/../../.." && pwd -P)
cache=${GPUSVM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/rust-gpusvm}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd -P)
here=$repo/tools/testing/gpusvm

# Files of the build root belong to other users where a user namespace made it.
remove() {
	if [ "$(id -u)" = 0 ]; then
		rm -rf "$@"
	else
		unshare --user --map-root-user --map-auto rm -rf "$@"
	fi
}

case $1 in
clean)
	remove "$cache/build" "$cache/run" "$cache/log" "$cache/docs" "$cache/series" "$cache/series.tree"
	exit
	;;
distclean)
	# Only what the rig made: the folder might be a mistyped one.
	for part in root root.new root.key tree tree.new tree.key build run log docs cargo foreign \
		series series.tree lock prepare.lock; do
		remove "${cache:?}/$part"
	done
	rmdir "$cache" 2>/dev/null || true
	exit
	;;
apply)
	if [ -z "${KDIR:-}" ] || [ ! -d "$KDIR" ]; then
		echo "usage: make KDIR=/path/to/linux apply" >&2
		exit 1
	fi
	KDIR=$(cd "$KDIR" && pwd -P)
	if command -v python3 >/dev/null && command -v patch >/dev/null; then
		export PYTHONPATH="$here" PYTHONDONTWRITEBYTECODE=1
		exec python3 -m rig.apply "$repo" "$KDIR" "$KDIR"
	fi
	"$here/prepare.sh" "$cache" "$repo"
	GPUSVM_KDIR=$KDIR exec "$here/enter.sh" "$cache" "$repo" \
		python3 -m rig.apply /repo /kdir "$KDIR"
	;;
esac

"$here/prepare.sh" "$cache" "$repo" || {
	echo "0 passed, 1 failed"
	exit 1
}
# A series of patches has the author and the date of the last commit.
commit() {
	git -C "$repo" log -1 --format="$1" 2>/dev/null || echo "$2"
}
exec "$here/enter.sh" "$cache" "$repo" \
	env RIG_FILTER="${FILTER:-}" RIG_UPDATE="${UPDATE:-}" RIG_KASAN="${KASAN:-}" RIG_ARCH="${ARCH:-}" \
	RIG_CHECK="${CHECK:-}" RIG_SVM="${SVM:-}" RIG_RUNS="${RUNS:-}" RIG_AUTHOR="$(commit %an nobody)" RIG_MAIL="$(commit %ae nobody@localhost)" \
	RIG_DATE="$(commit %ad "$(date -R)")" python3 -m rig "$@"
