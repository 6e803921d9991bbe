// SPDX-License-Identifier: GPL-2.0

#include <linux/hugetlb_inline.h>
#include <linux/mm.h>
#include <linux/secretmem.h>

__rust_helper bool rust_helper_vma_is_secretmem(struct vm_area_struct *vma)
{
	return vma_is_secretmem(vma);
}

__rust_helper bool rust_helper_vma_is_shmem(const struct vm_area_struct *vma)
{
	return vma_is_shmem(vma);
}

__rust_helper bool rust_helper_is_vm_hugetlb_page(const struct vm_area_struct *vma)
{
	return is_vm_hugetlb_page(vma);
}
