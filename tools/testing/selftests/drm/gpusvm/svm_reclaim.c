// SPDX-License-Identifier: GPL-2.0
/*
 * Memory that is taken away while the GPU has it mapped: nothing that the GPU wrote may be lost.
 *
 * The swap area has to be on a device that completes asynchronously: one that is synchronous
 * (zram, brd) bypasses the swap cache and hides what goes wrong here.
 */
#include "svm.h"

#include <pthread.h>
#include <sys/stat.h>

#define SEED_A 0xa11ce
#define SEED_B 0xb0b
#define SEED_C 0xc0de

#define NEED_SWAP() \
	ASSERT_TRUE(have_swap()) \
		TH_LOG("no swap area is active")

static void page_out_all(struct __test_metadata *_metadata, void *mem, size_t len)
{
	size_t left = page_out(mem, len);

	ASSERT_EQ(0, left)
		TH_LOG("%zu pages could not be paged out", left);
}

/*
 * A page that was swapped in by a read is writable but clean in the process's page table, and
 * its copy in the swap area is still valid: reclaim drops it without writing. The GPU's data is
 * lost unless the library marks it dirty.
 */
TEST_F(svm, written_by_gpu_after_swap_in)
{
	size_t len = 32 * page_size(), i;
	char *mem = map_small(len);
	volatile char sum = 0;
	int round;

	NEED_SWAP();
	for (round = 0; round < 3; round++) {
		pattern_fill(mem, len, SEED_A + round);
		page_out_all(_metadata, mem, len);
		/* The CPU only reads. */
		for (i = 0; i < len; i += page_size())
			sum += mem[i];
		ASSERT_EQ(-1, pattern_check(mem, len, SEED_A + round));
		GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED_B + round));
		page_out_all(_metadata, mem, len);
		ASSERT_TRUE(is_swapped(mem));
		ASSERT_EQ(-1, pattern_check(mem, len, SEED_B + round));
	}
}

/* The same, but the GPU's own read mapped the page, and its write did not fault again. */
TEST_F(svm, written_by_gpu_after_gpu_read)
{
	struct drm_vsvm_stats before, after;
	size_t len = 32 * page_size();
	char *mem = map_small(len);

	NEED_SWAP();
	pattern_fill(mem, len, SEED_A);
	page_out_all(_metadata, mem, len);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	STATS(&before);
	GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED_B));
	STATS(&after);
	TH_LOG("faults of the write: %llu", after.gpu_faults - before.gpu_faults);
	page_out_all(_metadata, mem, len);
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_B));
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_B));
}

/* Written again and again while it stays mapped, between page-outs of its neighbours. */
TEST_F(svm, page_out_of_every_second_page)
{
	size_t page = page_size(), n = 32, i;
	char *mem = map_small(n * page);
	int round;

	NEED_SWAP();
	pattern_fill(mem, n * page, 0);
	for (round = 1; round <= 4; round++) {
		GPU_OK(gpu_write_pattern(self->gpu, mem, n * page, round));
		for (i = round & 1; i < n; i += 2)
			page_out_all(_metadata, mem + i * page, page);
		GPU_OK(gpu_check_pattern(self->gpu, mem, n * page, round));
	}
	ASSERT_EQ(-1, pattern_check(mem, n * page, 4));
}

/*
 * MADV_FREE makes pages clean and lets reclaim discard them, unless they are written again. A
 * write by the GPU counts.
 */
TEST_F(svm, written_by_gpu_after_madv_free)
{
	size_t page = page_size(), len = 32 * page, i, lost = 0;
	char *mem = map_small(len), *other = map_small(len);

	NEED_SWAP();
	/* Mapped before. */
	pattern_fill(mem, len, SEED_A);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	ASSERT_EQ(0, madvise(mem, len, MADV_FREE));
	GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED_B));
	page_out(mem, len);
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_B));

	/* Mapped for reading after it: writable and clean. */
	pattern_fill(mem, len, SEED_A);
	ASSERT_EQ(0, madvise(mem, len, MADV_FREE));
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED_C));
	page_out(mem, len);
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_C));

	/* The test can tell: without a write, pages are discarded. */
	pattern_fill(other, len, SEED_A);
	ASSERT_EQ(0, madvise(other, len, MADV_FREE));
	page_out(other, len);
	for (i = 0; i < len; i += page)
		lost += *(volatile uint64_t *)(other + i + 8) == 0;
	EXPECT_NE(0, lost);
}

TEST_F(svm, huge_page_paged_out)
{
	size_t len = 2 * huge_size();
	char *mem = map_huge(len);
	volatile char sum = 0;
	size_t i;

	NEED_SWAP();
	ASSERT_NE(NULL, mem);
	pattern_fill(mem, len, SEED_A);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	page_out_all(_metadata, mem, len);
	for (i = 0; i < len; i += page_size())
		sum += mem[i];
	GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED_B));
	page_out_all(_metadata, mem, len);
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_B));
}

TEST_F(svm, shared_memory_paged_out)
{
	size_t len = 32 * page_size(), i;
	char *mem = mmap(NULL, len, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	volatile char sum = 0;

	NEED_SWAP();
	ASSERT_NE(MAP_FAILED, mem);
	pattern_fill(mem, len, SEED_A);
	page_out_all(_metadata, mem, len);
	for (i = 0; i < len; i += page_size())
		sum += mem[i];
	GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED_B));
	page_out_all(_metadata, mem, len);
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_B));
}

struct span {
	char *mem;
	size_t len;
	size_t left;
};

static void *page_out_span(void *arg)
{
	struct span *span = arg;

	span->left = page_out(span->mem, span->len);
	return NULL;
}

/*
 * Two invalidations of neighbours, the first of which waits for a flush that is slow. The second
 * finds nothing mapped any more, and must wait all the same: its page may be freed as soon as it
 * returns, while the GPU still has the translation.
 */
TEST_F(svm, slow_flush_while_a_neighbour_is_paged_out)
{
	size_t page = page_size(), n = 16, i;
	struct drm_vsvm_stats before, after;
	struct span span[2];
	char *mem = map_small(n * page);
	pthread_t thread[2];
	bool both = false;
	uint64_t seqno;
	int round;

	NEED_DEBUG();
	NEED_SWAP();
	STATS(&before);
	for (round = 0; round < 5; round++) {
		struct list list = {};

		pattern_fill(mem, n * page, round);
		GPU_OK(gpu_check_pattern(self->gpu, mem, n * page, round));
		DEBUG(DELAY, FLUSH, 100);
		/* A list that keeps on using the translations of the span. */
		for (i = 0; i < LIST_MAX; i++)
			list_add(&list, mem + (i % n) * page, 8, 1);
		for (i = 0; i < 8; i++)
			ASSERT_EQ(0, gpu_submit(self->gpu, 1, &list, NULL, 0, &seqno));
		for (i = 0; i < 2; i++) {
			span[i] = (struct span){ .mem = mem + (i * 3 + 1) * page, .len = page };
			ASSERT_EQ(0, pthread_create(&thread[i], NULL, page_out_span, &span[i]));
		}
		for (i = 0; i < 2; i++)
			ASSERT_EQ(0, pthread_join(thread[i], NULL));
		both |= !span[0].left && !span[1].left;
		GPU_OK(gpu_wait(self->gpu, 1, seqno, NULL, 0, 20000, NULL));
		DEBUG(DELAY, FLUSH, 0);
		for (i = 0; i < n; i++)
			ASSERT_EQ(pattern_word(round, i * page) + 8 * LIST_MAX / n,
				  *(uint64_t *)(mem + i * page));
	}
	STATS(&after);
	EXPECT_LT(before.injected, after.injected);
	EXPECT_EQ(0, after.stale_uses);
	EXPECT_TRUE(both)
		TH_LOG("at no time were both pages paged out");
	TH_LOG("%llu uses of translations before the end of their flush", after.late_uses);
}

static void *page_out_once(void *arg)
{
	struct span *span = arg;

	madvise(span->mem, span->len, MADV_PAGEOUT);
	__atomic_store_n(&span->left, 0, __ATOMIC_RELEASE);
	return NULL;
}

/*
 * While a flush runs, the old translation is used and nothing is lost. It also shows that the
 * translations of the model outlive their page table entries: else the test above would prove
 * nothing.
 */
TEST_F(svm, translations_live_until_the_flush)
{
	size_t page = page_size();
	char *mem = map_small(page);
	struct span span = { .mem = mem, .len = page };
	uint64_t end = now_ms() + 15000, added = 0;
	struct drm_vsvm_stats after;
	struct list list = {};
	pthread_t thread;
	int i;

	NEED_DEBUG();
	NEED_SWAP();
	for (i = 0; i < LIST_MAX; i++)
		list_add(&list, mem, 8, 1);
	do {
		DEBUG(DELAY, FLUSH, 100);
		span.left = 1;
		ASSERT_EQ(0, pthread_create(&thread, NULL, page_out_once, &span));
		do {
			GPU_OK(gpu_run(self->gpu, 0, &list, NULL, 0, NULL));
			added += LIST_MAX;
		} while (__atomic_load_n(&span.left, __ATOMIC_ACQUIRE));
		ASSERT_EQ(0, pthread_join(thread, NULL));
		DEBUG(DELAY, FLUSH, 0);
		ASSERT_EQ(added, *(uint64_t *)mem);
		STATS(&after);
	} while (!after.late_uses && now_ms() < end);
	EXPECT_NE(0, after.late_uses);
}

/* More memory than the group may have: reclaim runs under the GPU all the time. */
TEST_F_TIMEOUT(svm, memory_pressure, 120)
{
	size_t page = page_size(), len = 2048 * page, i;
	long long swapped;
	char *mem;
	int round;

	NEED_SWAP();
	/* Half of what the test uses, and room for the program itself. */
	if (limit_memory("gpusvm-reclaim", len / 2 + (2 << 20)))
		SKIP(GPU_OK(gpu_fill(self->gpu, &len, 8, 1)); return, "no memory cgroup");
	mem = map_small(len);
	swapped = read_key("/proc/vmstat", "pswpout");
	for (i = 0; i < len; i += 64 * page)
		GPU_OK(gpu_write_pattern(self->gpu, mem + i, 64 * page, i));
	for (round = 0; round < 2; round++) {
		for (i = 0; i < len; i += 64 * page) {
			GPU_OK(gpu_check_pattern(self->gpu, mem + i, 64 * page, i + round));
			GPU_OK(gpu_write_pattern(self->gpu, mem + i, 64 * page, i + round + 1));
		}
	}
	for (i = 0; i < len; i += 64 * page)
		ASSERT_EQ(-1, pattern_check(mem + i, 64 * page, i + round));
	EXPECT_LT(swapped + 500, read_key("/proc/vmstat", "pswpout"));
}

TEST_HARNESS_MAIN
