// SPDX-License-Identifier: GPL-2.0
/*
 * The same GPU, but the bytes are moved by the DMA engine of the PCI device (engine=dma): the
 * judge of every DMA address is the IOMMU of the machine, not a model.
 *
 * QEMU's edu device takes 100 ms for a transfer of up to 4 KiB, so this is a bounded set: one
 * piece of every kind of segment.
 */
#include "svm.h"

#define SEED_A 0xa11ce

/* Two transfers move one piece: between memory and the device, and to or from the driver. */
#define NEED_DMA() do { \
	struct drm_vsvm_stats _stats; \
	STATS(&_stats); \
	ASSERT_EQ(VSVM_ENGINE_DMA, _stats.engine) \
		TH_LOG("load vsvm with engine=dma"); \
} while (0)

/* Read and write a few bytes across the boundary of two pages, and nothing around them. */
static void probe(struct __test_metadata *_metadata, FIXTURE_DATA(svm) *self, char *mem,
		  size_t len, size_t at)
{
	struct drm_vsvm_stats before, after;
	uint64_t buf[16], data[16];
	size_t i;

	pattern_fill(mem, len, SEED_A);
	STATS(&before);
	GPU_OK(gpu_read(self->gpu, mem + at - 64, buf, 128));
	for (i = 0; i < 16; i++)
		ASSERT_EQ(pattern_word(SEED_A, at - 64 + i * 8), buf[i]);
	for (i = 0; i < 16; i++)
		data[i] = ~buf[i];
	GPU_OK(gpu_write(self->gpu, mem + at - 64, data, 128));
	STATS(&after);
	for (i = 0; i < len; i += 8) {
		uint64_t want = pattern_word(SEED_A, i);

		if (i >= at - 64 && i < at + 64)
			want = ~want;
		ASSERT_EQ(want, *(uint64_t *)(mem + i));
	}
	/* The device did it, not the CPU. */
	EXPECT_LE(before.dma_transfers + 4, after.dma_transfers);
	EXPECT_EQ(0, after.bus_errors);
}

TEST_F(svm, base_pages)
{
	size_t len = 16 * page_size();

	NEED_DMA();
	probe(_metadata, self, map_small(len), len, 8 * page_size());
}

TEST_F(svm, huge_page)
{
	size_t len = huge_size();
	char *mem = map_huge(len);
	struct drm_vsvm_stats after;

	NEED_DMA();
	ASSERT_NE(NULL, mem);
	probe(_metadata, self, mem, len, len / 2 + 5 * page_size());
	STATS(&after);
	if (is_huge(mem))
		EXPECT_NE(0, after.leaves_2m);
}

TEST_F(svm, end_of_a_huge_page)
{
	size_t len = 2 * huge_size();
	char *mem = map_huge(len);

	NEED_DMA();
	ASSERT_NE(NULL, mem);
	probe(_metadata, self, mem, len, huge_size());
}

TEST_F(svm, hugetlb_page)
{
	size_t len = huge_size();
	char *mem;

	NEED_DMA();
	change_setting("/proc/sys/vm/nr_hugepages", "2");
	mem = mmap(NULL, len, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (mem == MAP_FAILED)
		SKIP(GPU_OK(gpu_fill(self->gpu, &len, 8, 1)); return, "no hugetlb pages");
	probe(_metadata, self, mem, len, 17 * page_size());
	munmap(mem, len);
}

TEST_F(svm, file)
{
	size_t len = 4 * page_size();
	int fd = temp_file("/tmp", len);
	char *mem;

	NEED_DMA();
	ASSERT_LE(0, fd);
	mem = mmap(NULL, len, RW, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, mem);
	probe(_metadata, self, mem, len, 2 * page_size());
	close(fd);
}

TEST_F(svm, read_only_segment)
{
	size_t len = 2 * page_size();
	char *mem = map_small(len);
	uint64_t word;

	NEED_DMA();
	pattern_fill(mem, len, SEED_A);
	ASSERT_EQ(0, mprotect(mem, len, PROT_READ));
	GPU_OK(gpu_read(self->gpu, mem + 8, &word, 8));
	ASSERT_EQ(pattern_word(SEED_A, 8), word);
	GPU_FAILS(VSVM_REASON_ACCESS, gpu_fill(self->gpu, mem, 8, 1));
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_A));
}

TEST_F(svm, copy_fill_and_add)
{
	size_t len = 2 * page_size();
	char *mem = map_small(len);

	NEED_DMA();
	GPU_OK(gpu_fill(self->gpu, mem, 64, 40));
	GPU_OK(gpu_add(self->gpu, mem, 64, 2));
	GPU_OK(gpu_copy(self->gpu, mem + page_size(), mem, 64));
	ASSERT_EQ(42, *(uint64_t *)(mem + page_size() + 56));
	ASSERT_EQ(0, *(uint64_t *)(mem + page_size() + 64));
}

TEST_F(svm, new_memory_at_the_same_address)
{
	size_t len = page_size();
	char *mem = map_small(len);
	uint64_t word;
	int i;

	NEED_DMA();
	for (i = 1; i < 4; i++) {
		ASSERT_EQ(mem, mmap(mem, len, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
		pattern_fill(mem, len, i);
		GPU_OK(gpu_read(self->gpu, mem + 16, &word, 8));
		ASSERT_EQ(pattern_word(i, 16), word);
	}
}

/*
 * After an invalidation the old DMA address leads nowhere. A driver that forgets to flush its TLB
 * makes the device use it: the IOMMU stops it, and says so in the log, where this is announced.
 */
static void old_address(struct __test_metadata *_metadata, FIXTURE_DATA(svm) *self, char *mem,
			size_t len)
{
	struct drm_vsvm_stats after;
	uint64_t word = 0;
	char *guard;
	int log;

	NEED_DEBUG();
	NEED_DMA();
	self->allow_stale = true;
	ASSERT_NE(NULL, mem);
	pattern_fill(mem, len, SEED_A);
	GPU_OK(gpu_read(self->gpu, mem, &word, 8));
	ASSERT_EQ(pattern_word(SEED_A, 0), word);

	DEBUG(DROP_FLUSH, FLUSH, 1);
	log = log_open();
	ASSERT_LE(0, log);
	kmsg("gpusvm-expect: DMAR begin");
	ASSERT_EQ(0, madvise(mem, len, MADV_DONTNEED));
	/* The freed memory, or a part of it, is used again. */
	guard = map_small(4 * len);
	pattern_fill(guard, 4 * len, 1);
	gpu_fill(self->gpu, mem, 8, 0xdeadbeef);
	/* The fault is reported by an interrupt. */
	EXPECT_TRUE(wait_for(log_has(log, "DMAR: [DMA"), 10000));
	kmsg("gpusvm-expect: DMAR end");
	close(log);
	DEBUG(DROP_FLUSH, FLUSH, 0);
	STATS(&after);
	EXPECT_NE(0, after.stale_uses);
	ASSERT_EQ(-1, pattern_check(guard, 4 * len, 1))
		TH_LOG("the device wrote to memory that was taken away from it");
}

TEST_F(svm, old_address_of_base_pages)
{
	old_address(_metadata, self, map_small(16 * page_size()), 16 * page_size());
}

TEST_F(svm, old_address_of_a_huge_page)
{
	old_address(_metadata, self, map_huge(huge_size()), huge_size());
}

/* With a driver that does what it should, the same sequence gives new memory and no fault. */
TEST_F(svm, no_old_address_after_a_flush)
{
	size_t len = 16 * page_size();
	char *mem = map_small(len);
	uint64_t word;

	NEED_DMA();
	pattern_fill(mem, len, SEED_A);
	GPU_OK(gpu_read(self->gpu, mem, &word, 8));
	ASSERT_EQ(0, madvise(mem, len, MADV_DONTNEED));
	GPU_OK(gpu_fill(self->gpu, mem, 8, 0x600d));
	ASSERT_EQ(0x600d, *(uint64_t *)mem);
	ASSERT_EQ(0, *(uint64_t *)(mem + 8));
}

TEST_HARNESS_MAIN
