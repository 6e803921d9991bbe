// SPDX-License-Identifier: GPL-2.0

#include <linux/hugetlb_inline.h>
#include <linux/mm.h>
#include <linux/oom.h>
#include <linux/secretmem.h>

__rust_helper vm_fault_t
rust_helper_check_stable_address_space(struct mm_struct *mm)
{
	return check_stable_address_space(mm);
}

__rust_helper int rust_helper_mmap_write_lock_killable(struct mm_struct *mm)
{
	return mmap_write_lock_killable(mm);
}

__rust_helper void rust_helper_mmap_write_unlock(struct mm_struct *mm)
{
	mmap_write_unlock(mm);
}

__rust_helper int rust_helper_vma_start_write_killable(struct vm_area_struct *vma)
{
	return vma_start_write_killable(vma);
}

__rust_helper bool rust_helper_vma_is_anonymous(struct vm_area_struct *vma)
{
	return vma_is_anonymous(vma);
}

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
