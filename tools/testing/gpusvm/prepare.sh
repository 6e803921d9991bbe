#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# usage: prepare.sh CACHE REPO
#
# Makes the build root (a small Debian with compiler, QEMU and kernel source) and unpacks the
# kernel source, if they are not there or no longer what tools/testing/gpusvm/packages asks for.
# Each is made beside its place and renamed at the end; a broken off one is thrown away.
# MIRROR=<address> names the Debian mirror; without it the one of this machine's apt is used.
set -eu

cache=$1 repo=$2
here=$repo/tools/testing/gpusvm
suite=trixie
begin=$(date +%s)

say() {
	printf '[%5d s] %s\n' $(($(date +%s) - begin)) "$*"
}

die() {
	printf '\n*** %s\n' "$*" >&2
	exit 1
}

# A root command: in a user namespace where the user is not root.
asroot() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	else
		unshare --user --map-root-user --map-auto "$@"
	fi
}

mirror() {
	if [ -n "${MIRROR:-}" ]; then
		echo "$MIRROR"
		return
	fi
	for list in /etc/apt/sources.list.d/*.sources /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
		[ -r "$list" ] || continue
		# The first address of an archive that is called debian.
		found=$(sed -n -e 's/^URIs:[[:space:]]*\([^[:space:]]*debian\)\/*\([[:space:]].*\)*$/\1/p' \
			-e 's/^deb[[:space:]]\(\[[^]]*\][[:space:]]\)*\([^[:space:]]*debian\)\/*[[:space:]].*$/\2/p' \
			"$list" | head -n 1)
		if [ -n "$found" ]; then
			echo "$found"
			return
		fi
	done
}

# Everything runs in namespaces of its own.
may() {
	if [ "$(id -u)" = 0 ]; then
		unshare --mount --pid --fork true 2>/dev/null && return
		die "root may not make namespaces here, as in a container without CAP_SYS_ADMIN"
	fi
	asroot true 2>/dev/null && return
	user=$(id -un)
	die "user namespaces do not work here. They need, as root:
    apt-get install uidmap
    usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $user    # if /etc/subuid has no $user
    sysctl kernel.unprivileged_userns_clone=1    # and on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0
or run make as root"
}

need() {
	command -v mmdebstrap >/dev/null && return
	install="apt-get install mmdebstrap uidmap"
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
		say "installing mmdebstrap"
		{
			apt-cache show mmdebstrap >/dev/null 2>&1 || apt-get -q update
			DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install mmdebstrap
		} >"$cache/log/mmdebstrap.log" 2>&1 && return
		die "mmdebstrap could not be installed, log: $cache/log/mmdebstrap.log"
	fi
	die "mmdebstrap is missing; as root: $install"
}

# Runs a command with its output in a log, and shows now and then that it lives.
watched() {
	text=$1 log=$2
	shift 2
	say "$text ..."
	"$@" >"$log" 2>&1 &
	child=$!
	trap 'kill $child 2>/dev/null; exit 130' INT TERM
	seconds=0
	while kill -0 $child 2>/dev/null; do
		sleep 1
		seconds=$((seconds + 1))
		[ $((seconds % 20)) -ne 0 ] || say "  $text: $(tail -n 1 "$log" | tr '\r' '\n' | tail -n 1 | cut -c 1-60)"
	done
	trap - INT TERM
	if ! wait $child; then
		tail -n 15 "$log" | cut -c 1-300 >&2
		die "$text failed, log: $log"
	fi
}

make_root() {
	need
	address=$(mirror)
	say "the build root needs about 4 GiB, a download of 700 MiB and some minutes"
	asroot rm -rf "$cache/root.new"
	packages=$(sed -e '/^#/d' -e '/^$/d' "$here/packages" | paste -sd,)
	set -- --verbose --variant=minbase \
		--aptopt='Acquire::Check-Valid-Until "false"' \
		--aptopt='Acquire::Retries "3"' \
		--aptopt="APT::Default-Release \"$suite-backports\"" \
		--dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--setup-hook="sed -n 's/ $suite main/ $suite-backports main/p' \"\$1/etc/apt/sources.list\" >\"\$1/etc/apt/sources.list.d/backports.list\"" \
		--include="$packages" "$suite" "$cache/root.new" $address
	# In namespaces of its own, so that nothing stays mounted if it is interrupted.
	user=
	[ "$(id -u)" = 0 ] || user='--user --map-root-user --map-auto'
	# shellcheck disable=SC2086 # several words, or none
	watched "making the build root" "$cache/log/root.log" \
		unshare $user --mount --pid --fork --kill-child --mount-proc mmdebstrap --mode=root "$@"
	for mount in repo src build cache kdir; do
		asroot mkdir -p "$cache/root.new/$mount"
	done
	asroot rm -rf "$cache/root"
	mv "$cache/root.new" "$cache/root"
	echo "$rootkey" >"$cache/root.key"
}

make_tree() {
	rm -rf "$cache/tree.new"
	mkdir -p "$cache/tree.new"
	# The object trees describe the old source.
	rm -rf "$cache/build"
	watched "unpacking the kernel source" "$cache/log/tree.log" "$here/enter.sh" "$cache" "$repo" \
		sh -c 'tar -C /cache/tree.new --strip-components=1 -xf /usr/src/linux-source-7.3.tar.xz'
	rm -rf "$cache/tree"
	mv "$cache/tree.new" "$cache/tree"
	echo "$treekey" >"$cache/tree.key"
}

kept() {
	[ -r "$1" ] && cat "$1" || true
}

command -v unshare >/dev/null || die "unshare is missing; as root: apt-get install util-linux"
may
mkdir -p "$cache/log"
rootkey=$({ echo "$suite"; cat "$here/packages"; } | sha256sum | cut -d ' ' -f 1)
exec 8>"$cache/prepare.lock"
flock 8
if [ "$(kept "$cache/root.key")" != "$rootkey" ] || [ ! -d "$cache/root" ]; then
	rm -f "$cache/root.key"
	make_root
fi
# The package's version and the time of its archive are the kernel's version.
treekey=$(sed -n '/^Package: linux-source-7.3$/,/^$/s/^Version: //p' "$cache/root/var/lib/dpkg/status")
[ -n "$treekey" ] || die "the build root has no package linux-source-7.3"
if [ "$(kept "$cache/tree.key")" != "$treekey" ] || [ ! -f "$cache/tree/Kbuild" ]; then
	rm -f "$cache/tree.key"
	make_tree
fi
