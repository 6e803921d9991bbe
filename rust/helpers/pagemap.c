// SPDX-License-Identifier: GPL-2.0

#include <linux/device.h>
#include <linux/memremap.h>
#include <linux/mm.h>

#ifdef CONFIG_DEVICE_PRIVATE
__rust_helper int rust_helper_dev_to_node(struct device *dev)
{
	return dev_to_node(dev);
}

__rust_helper void rust_helper_pagemap_set_range(struct dev_pagemap *pgmap,
						 u64 start, u64 len)
{
	pgmap->nr_range = 1;
	pgmap->range.start = start;
	pgmap->range.end = start + len - 1;
}

__rust_helper struct dev_pagemap *
rust_helper_folio_pagemap(const struct folio *folio)
{
	return folio->pgmap;
}

__rust_helper void rust_helper_zone_device_folio_init(struct folio *folio,
						      struct dev_pagemap *pgmap,
						      unsigned int order)
{
	zone_device_folio_init(folio, pgmap, order);
}

__rust_helper bool rust_helper_folio_is_device_private(const struct folio *folio)
{
	return folio_is_device_private(folio);
}

__rust_helper bool rust_helper_folio_is_device_coherent(const struct folio *folio)
{
	return folio_is_device_coherent(folio);
}

/*
 * What a new folio takes over from the one that it was split off. Its page has
 * been a tail, in which the field for the mapping has had another use.
 */
__rust_helper void rust_helper_folio_device_split(const struct folio *head,
						  struct folio *tail)
{
	tail->pgmap = head->pgmap;
	tail->page.mapping = head->page.mapping;
	tail->page.zone_device_data = NULL;
}
#endif /* CONFIG_DEVICE_PRIVATE */
