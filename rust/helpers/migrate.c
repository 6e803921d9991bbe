// SPDX-License-Identifier: GPL-2.0

#include <linux/gfp.h>
#include <linux/huge_mm.h>
#include <linux/memremap.h>
#include <linux/migrate.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>

#ifdef CONFIG_DEVICE_PRIVATE
#ifdef __BINDGEN__
/* For the core mm only, while bindgen parses as for modules; but no bodies. */
#define folio_get_anon_vma(folio)	((void *)(folio))
#define put_anon_vma(anon_vma)		((void)(anon_vma))
#else
#include "../../mm/internal.h"
#endif

__rust_helper unsigned long rust_helper_page_to_pfn(const struct page *page)
{
	return page_to_pfn(page);
}

__rust_helper unsigned int rust_helper_folio_order(const struct folio *folio)
{
	return folio_order(folio);
}

__rust_helper bool rust_helper_folio_test_anon(const struct folio *folio)
{
	return folio_test_anon(folio);
}

__rust_helper bool rust_helper_folio_trylock(struct folio *folio)
{
	return folio_trylock(folio);
}

__rust_helper void rust_helper_folio_put(struct folio *folio)
{
	folio_put(folio);
}

/*
 * Allocates what the content of device memory is copied to. @vma, which may be
 * NULL, says where. Like every destination of a migration it is not charged:
 * it takes over the charge of the source.
 */
__rust_helper struct folio *
rust_helper_migrate_alloc_folio(struct vm_area_struct *vma, unsigned long addr,
				unsigned int order, bool nofail)
{
	gfp_t gfp = GFP_HIGHUSER_MOVABLE;

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
	if (order)
		gfp = vma ? vma_thp_gfp_mask(vma) :
			    GFP_TRANSHUGE | __GFP_NORETRY;
#endif
	if (!order && nofail)
		gfp |= __GFP_NOFAIL;

	return vma ? vma_alloc_folio(gfp, order, vma, addr) :
		     folio_alloc(gfp, order);
}

/*
 * Does for one folio of device memory what migrate_device_pfns() does: gets a
 * reference, locks it and replaces its page table entries by migration entries.
 *
 * The difference is that this holds on to the folio's anon_vma until
 * rust_helper_migrate_device_unpin(). migrate_device_finalize() walks the
 * reverse mapping through it, and without an mmap lock or a mapping of the
 * folio nothing else keeps it from being freed with the last VMA. Folios that
 * are not mapped, which are about to be freed, are left alone.
 *
 * Returns what is to be put into the array of sources, or 0.
 */
__rust_helper unsigned long
rust_helper_migrate_device_collect(unsigned long pfn, unsigned long max_pages,
				   struct anon_vma **anon_vma)
{
	struct folio *folio = folio_get_nontail_page(pfn_to_page(pfn));
	unsigned long src;

	if (!folio)
		return 0;
	if (!folio_trylock(folio))
		goto put;
	if (folio_nr_pages(folio) > max_pages)
		goto unlock;

	*anon_vma = folio_get_anon_vma(folio);
	if (!*anon_vma)
		goto unlock;

	try_to_migrate(folio, 0);
	if (folio_mapped(folio) ||
	    folio_ref_count(folio) != folio_expected_ref_count(folio) + 1) {
		remove_migration_ptes(folio, folio, 0);
		goto unpin;
	}

	src = migrate_pfn(pfn) | MIGRATE_PFN_MIGRATE;
	if (folio_test_large(folio))
		src |= MIGRATE_PFN_COMPOUND;
	return src;

unpin:
	put_anon_vma(*anon_vma);
	*anon_vma = NULL;
unlock:
	folio_unlock(folio);
put:
	folio_put(folio);
	return 0;
}

__rust_helper void rust_helper_migrate_device_unpin(struct anon_vma *anon_vma)
{
	put_anon_vma(anon_vma);
}

/* Splits the folio at @pfn, which may be free, into base pages. */
__rust_helper int rust_helper_migrate_device_split(unsigned long pfn)
{
	struct folio *folio = folio_get_nontail_page(pfn_to_page(pfn));
	int ret = -EAGAIN;

	if (!folio)
		return -EINVAL;
	if (!folio_trylock(folio))
		goto put;

	if (!folio_test_large(folio))
		ret = -EINVAL;
	else if (!folio_mapped(folio))
		ret = -EBUSY;
	else
		ret = split_folio(folio);
	folio_unlock(folio);
put:
	folio_put(folio);
	return ret;
}

/*
 * As above for a folio that the page fault has locked and has a reference of,
 * and whose first page keeps both.
 */
__rust_helper int rust_helper_migrate_fault_split(struct folio *folio)
{
	return folio_test_large(folio) ? split_folio(folio) : -EINVAL;
}

/*
 * Waits without the lock of the VMA or mm, which is not taken again, and
 * without the lock of the page, which is: the caller of migrate_to_ram()
 * unlocks it.
 */
__rust_helper void rust_helper_migrate_fault_wait(struct vm_fault *vmf,
						  unsigned long timeout)
{
	struct page *page = vmf->page;

	unlock_page(page);
	release_fault_lock(vmf);
	schedule_timeout_killable(timeout);
	lock_page(page);
}
#endif /* CONFIG_DEVICE_PRIVATE */
