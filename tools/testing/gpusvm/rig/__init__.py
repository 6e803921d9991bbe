# SPDX-License-Identifier: GPL-2.0
"""The rig: lays the overlay over a kernel tree, builds kernels, boots them, reads the results."""
