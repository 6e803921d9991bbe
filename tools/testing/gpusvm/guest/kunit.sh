# SPDX-License-Identifier: GPL-2.0
# The built-in suites ran before the first program; those of modules run when they are loaded.
for module in $(cat /tests/kunit-modules); do
	modprobe "$module"
done
