// SPDX-License-Identifier: GPL-2.0

#include <kunit/test.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/pkeys.h>
#include <linux/sched.h>

#if IS_BUILTIN(CONFIG_KUNIT) && defined(CONFIG_MMU)
__rust_helper void rust_helper_kunit_mark_skipped(struct kunit *test,
						  const char *reason)
{
	kunit_mark_skipped(test, "%s", reason);
}

__rust_helper void rust_helper_kunit_mm_set_unstable(struct mm_struct *mm,
						     bool unstable)
{
	if (unstable)
		mm_flags_set(MMF_UNSTABLE, mm);
	else
		mm_flags_clear(MMF_UNSTABLE, mm);
}

#ifdef __BINDGEN__
int rust_helper_kunit_mprotect(unsigned long start, size_t len,
			       unsigned long prot);
#else
/* Not for modules, which is what bindgen parses for. */
#include <asm/tlb.h>

/*
 * The part of do_mprotect_pkey(), which is static, that matters for a range
 * inside of one VMA. Changing a VMA needs types that Rust does not have.
 */
__rust_helper int rust_helper_kunit_mprotect(unsigned long start, size_t len,
					     unsigned long prot)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma, *prev;
	struct vma_iterator vmi;
	struct mmu_gather tlb;
	vm_flags_t flags;
	int ret = -ENOMEM;

	mmap_write_lock(mm);
	vma_iter_init(&vmi, mm, start);
	vma = vma_find(&vmi, start + len);
	if (!vma || vma->vm_start > start || vma->vm_end < start + len)
		goto out;

	prev = vma_prev(&vmi);
	if (start > vma->vm_start)
		prev = vma;
	vma = vma_find(&vmi, start + len);

	flags = calc_vm_prot_bits(prot, 0) |
		(vma->vm_flags & ~(VM_ACCESS_FLAGS | VM_FLAGS_CLEAR));
	tlb_gather_mmu(&tlb, mm);
	ret = mprotect_fixup(&vmi, &tlb, vma, &prev, start, start + len, flags);
	tlb_finish_mmu(&tlb);
out:
	mmap_write_unlock(mm);
	return ret;
}
#endif
#endif
