// SPDX-License-Identifier: GPL-2.0

#include <linux/mm.h>

__rust_helper struct page *rust_helper_pfn_to_page(unsigned long pfn)
{
	return pfn_to_page(pfn);
}

__rust_helper struct folio *rust_helper_page_folio(struct page *page)
{
	return page_folio(page);
}

__rust_helper unsigned long rust_helper_folio_nr_pages(const struct folio *folio)
{
	return folio_nr_pages(folio);
}

__rust_helper unsigned long rust_helper_folio_page_idx(const struct folio *folio,
						       const struct page *page)
{
	return folio_page_idx(folio, page);
}
