# SPDX-License-Identifier: GPL-2.0
"""An x86 machine with an IOMMU and edu devices, as the tests of the GPU SVM library want it."""

from ..qemu_config import QemuArchParams

QEMU_ARCH = QemuArchParams(linux_arch='x86_64',
			   kconfig='''
CONFIG_ACPI=y
CONFIG_INTEL_IOMMU=y
CONFIG_INTEL_IOMMU_DEFAULT_ON=y
CONFIG_SERIAL_8250=y
CONFIG_SERIAL_8250_CONSOLE=y''',
			   qemu_arch='x86_64',
			   kernel_path='arch/x86/boot/bzImage',
			   kernel_command_line='console=ttyS0 iommu.strict=1 iommu.debug_pagealloc=1',
			   # The IOMMU comes before the devices behind it.
			   extra_qemu_params=['-machine', 'q35', '-bios', 'qboot.rom', '-smp', '2',
					      '-device', 'intel-iommu,aw-bits=48,intremap=off',
					      '-device', 'edu,dma_mask=0xffffffffffffffff',
					      '-device', 'edu,dma_mask=0xffffffffffffffff'])
