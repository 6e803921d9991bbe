# SPDX-License-Identifier: GPL-2.0
# A shell on the machine with the emulated AMD GPU, for `make amd-shell`.
ls /dev/kfd /dev/dri
echo "The tests are in /tests. 'exit' switches the machine off."
setsid cttyhack sh
