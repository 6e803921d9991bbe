# SPDX-License-Identifier: GPL-2.0
# An interactive shell on the first serial line, for `make shell`.
for module in $(cat /tests/kunit-modules); do
	modprobe "$module"
done
mkswap /dev/vda >/dev/null && swapon /dev/vda
echo "The drivers are loaded, the tests are in /tests. 'exit' switches the machine off."
setsid cttyhack sh
