// SPDX-License-Identifier: GPL-2.0

#include <linux/huge_mm.h>
#include <linux/memory_hotplug.h>
#include <linux/memremap.h>
#include <linux/mm.h>

__rust_helper struct page *rust_helper_pfn_to_online_page(unsigned long pfn)
{
	return pfn_to_online_page(pfn);
}

__rust_helper struct dev_pagemap *rust_helper_get_dev_pagemap(unsigned long pfn)
{
	return get_dev_pagemap(pfn);
}

__rust_helper void rust_helper_put_dev_pagemap(struct dev_pagemap *pgmap)
{
	put_dev_pagemap(pgmap);
}

#ifdef CONFIG_MMU
__rust_helper bool rust_helper_is_zero_pfn(unsigned long pfn)
{
	return is_zero_pfn(pfn);
}

__rust_helper bool rust_helper_is_huge_zero_pfn(unsigned long pfn)
{
	return is_huge_zero_pfn(pfn);
}
#endif
