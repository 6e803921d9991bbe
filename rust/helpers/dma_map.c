// SPDX-License-Identifier: GPL-2.0

#include <linux/dma-map-ops.h>
#include <linux/dma-mapping.h>
#include <linux/io.h>
#include <linux/swiotlb.h>

/*
 * Functions that are real ones in one configuration and inline stubs in
 * another (HAS_DMA, DMA_NEED_SYNC, IOMMU_DMA) are wrapped unconditionally:
 * where the function exists, its own binding is preferred over the helper.
 */

__rust_helper dma_addr_t rust_helper_dma_map_phys(struct device *dev,
						  phys_addr_t phys, size_t size,
						  enum dma_data_direction dir,
						  unsigned long attrs)
{
	return dma_map_phys(dev, phys, size, dir, attrs);
}

__rust_helper void rust_helper_dma_unmap_phys(struct device *dev,
					      dma_addr_t addr, size_t size,
					      enum dma_data_direction dir,
					      unsigned long attrs)
{
	dma_unmap_phys(dev, addr, size, dir, attrs);
}

__rust_helper int rust_helper_dma_mapping_error(struct device *dev,
						dma_addr_t addr)
{
	return dma_mapping_error(dev, addr);
}

__rust_helper bool rust_helper_dma_need_unmap(struct device *dev)
{
	return dma_need_unmap(dev);
}

__rust_helper bool rust_helper_dma_addressing_limited(struct device *dev)
{
	return dma_addressing_limited(dev);
}

__rust_helper unsigned long
rust_helper_dma_get_merge_boundary(struct device *dev)
{
	return dma_get_merge_boundary(dev);
}

__rust_helper bool rust_helper_dev_is_dma_coherent(struct device *dev)
{
	return dev_is_dma_coherent(dev);
}

__rust_helper bool rust_helper_dev_dma_skip_sync(const struct device *dev)
{
	return dev_dma_skip_sync(dev);
}

__rust_helper bool rust_helper_is_swiotlb_force_bounce(struct device *dev)
{
	return is_swiotlb_force_bounce(dev);
}

__rust_helper bool rust_helper_dma_iova_try_alloc(struct device *dev,
						  struct dma_iova_state *state,
						  phys_addr_t phys, size_t size)
{
	return dma_iova_try_alloc(dev, state, phys, size);
}

__rust_helper void rust_helper_dma_iova_free(struct device *dev,
					     struct dma_iova_state *state)
{
	dma_iova_free(dev, state);
}

__rust_helper int rust_helper_dma_iova_link(struct device *dev,
					    struct dma_iova_state *state,
					    phys_addr_t phys, size_t offset,
					    size_t size,
					    enum dma_data_direction dir,
					    unsigned long attrs)
{
	return dma_iova_link(dev, state, phys, offset, size, dir, attrs);
}

__rust_helper int rust_helper_dma_iova_sync(struct device *dev,
					    struct dma_iova_state *state,
					    size_t offset, size_t size)
{
	return dma_iova_sync(dev, state, offset, size);
}

__rust_helper void rust_helper_dma_iova_unlink(struct device *dev,
					       struct dma_iova_state *state,
					       size_t offset, size_t size,
					       enum dma_data_direction dir,
					       unsigned long attrs)
{
	dma_iova_unlink(dev, state, offset, size, dir, attrs);
}

__rust_helper phys_addr_t rust_helper_page_to_phys(struct page *page)
{
	return page_to_phys(page);
}
