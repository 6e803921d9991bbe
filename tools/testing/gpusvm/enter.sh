#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# usage: enter.sh CACHE REPO COMMAND [ARG...]
#
# Runs a command inside the build root CACHE/root, in namespaces of its own, so that nothing has
# to be unmounted afterwards and an interrupted run leaves no process behind. Inside, the paths
# never depend on where the cache lies, so a copy of a cache folder is as good as the original:
#
#   /repo   this repository     /src    the kernel tree with the overlay
#   /cache  the cache folder    /build  one object tree for each kernel
#
# GPUSVM_KDIR binds one more kernel tree as /kdir. Name service, certificates and proxies are the
# host's, for cargo. Root needs no user namespace; anybody else gets
# one with the sub-ids of /etc/subuid, as dpkg needs more than one user.
set -eu

cache=$1 repo=$2
shift 2
user=
[ "$(id -u)" = 0 ] || user='--user --map-root-user --map-auto'

# shellcheck disable=SC2086
exec unshare $user --mount --pid --fork --kill-child sh -euc '
cache=$1 root=$1/root repo=$2
shift 2
mkdir -p "$cache/tree" "$cache/build"
for mount in repo src build cache kdir; do
	[ -d "$root/$mount" ] || mkdir -p "$root/$mount"
done
mount --bind "$repo" "$root/repo"
mount --bind "$cache/tree" "$root/src"
mount --bind "$cache/build" "$root/build"
mount --bind "$cache" "$root/cache"
[ -z "${GPUSVM_KDIR:-}" ] || mount --bind "$GPUSVM_KDIR" "$root/kdir"
for file in /etc/resolv.conf /etc/ssl/certs/ca-certificates.crt; do
	[ -f "$file" ] || continue
	[ -f "$root$file" ] || : >"$root$file"
	mount --bind "$file" "$root$file"
done
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
exec chroot "$root" /usr/bin/env -i HOME=/root TERM="${TERM:-dumb}" LANG=C.UTF-8 \
	PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1 \
	http_proxy="${http_proxy:-}" https_proxy="${https_proxy:-}" no_proxy="${no_proxy:-}" \
	PYTHONPATH=/repo/tools/testing/gpusvm HOST_CACHE="$cache" HOST_KDIR="${GPUSVM_KDIR:-}" "$@"
' enter "$cache" "$repo" "$@"
