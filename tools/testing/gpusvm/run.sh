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

"$here/prepare.sh" "$cache" "$repo"
exec "$here/enter.sh" "$cache" "$repo" \
	env RIG_FILTER="${FILTER:-}" RIG_UPDATE="${UPDATE:-}" RIG_KASAN="${KASAN:-}" RIG_ARCH="${ARCH:-}" \
	python3 -m rig "$@"
