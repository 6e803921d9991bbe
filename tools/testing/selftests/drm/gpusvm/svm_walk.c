// SPDX-License-Identifier: GPL-2.0
/*
 * How the library looks at the process's page table: parts of huge pages, walks in several
 * windows, walks side by side. What has to happen in between two steps is arranged by a
 * userfaultfd or by a barrier in the driver, never by timing.
 */
#include "svm.h"

#include <pthread.h>

#include "uffd.h"

#define SEED_A 0xa11ce
#define SEED_B 0xb0b

/*
 * Pieces of one huge page of which the GPU gets to see one each, with a neighbour before and
 * behind that it must not touch: the order of a huge page must not be taken for the size of
 * the piece.
 */
static void one_piece(struct __test_metadata *_metadata, FIXTURE_DATA(svm) *self, char *huge,
		      size_t offset, size_t len)
{
	struct drm_vsvm_stats before, after;
	size_t size = huge_size();

	pattern_fill(huge, size, SEED_A);
	STATS(&before);
	ASSERT_EQ(0, gpu_map_ahead(self->gpu, huge + offset, len, VSVM_MAP_WRITE));
	STATS(&after);
	EXPECT_LE(before.mapped_bytes + len, after.mapped_bytes);
	EXPECT_GE(before.mapped_bytes + size, after.mapped_bytes);
	GPU_OK(gpu_fill(self->gpu, huge + offset, len, offset));
	ASSERT_EQ(-1, pattern_check(huge, offset, SEED_A));
	for (size_t i = offset; i < offset + len; i += 8)
		ASSERT_EQ(offset, *(uint64_t *)(huge + i));
	for (size_t i = offset + len; i < size; i += 8)
		ASSERT_EQ(pattern_word(SEED_A, i), *(uint64_t *)(huge + i));
}

TEST_F(svm, one_page_inside_a_huge_page)
{
	size_t page = page_size(), huge = huge_size(), len, i;
	size_t pages[] = { 0, 1, 5, 15, 16, 17, 255, huge / page - 1 };
	char *room = map_huge(3 * huge), *mem = room + huge;

	ASSERT_NE(NULL, room);
	pattern_fill(room, 3 * huge, SEED_B);
	if (!is_huge(mem))
		SKIP(GPU_OK(gpu_fill(self->gpu, mem, 8, 1)); return, "no huge page to be had");
	/* One page in the middle of a huge page, all of which is mapped for the process. */
	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		ASSERT_EQ(0, madvise(mem, huge, MADV_DONTNEED));
		ASSERT_EQ(0, madvise(mem, huge, MADV_HUGEPAGE));
		len = page;
		one_piece(_metadata, self, mem, pages[i] * page, len);
	}
	for (len = 2 * page; len <= huge / 2; len *= 4) {
		ASSERT_EQ(0, madvise(mem, huge, MADV_DONTNEED));
		one_piece(_metadata, self, mem, huge / 2 - page, len);
	}
	/* Nothing outside of the huge page was touched. */
	for (i = 0; i < huge; i += 8) {
		ASSERT_EQ(pattern_word(SEED_B, i), *(uint64_t *)(room + i));
		ASSERT_EQ(pattern_word(SEED_B, 2 * huge + i), *(uint64_t *)(room + 2 * huge + i));
	}
}

/* The same where the VMA ends inside of the huge page: only a part may be mapped. */
TEST_F(svm, huge_page_cut_by_a_vma)
{
	size_t page = page_size(), huge = huge_size(), i;
	char *mem = map_huge(huge);
	struct drm_vsvm_stats before, after;
	uint64_t word;

	ASSERT_NE(NULL, mem);
	pattern_fill(mem, huge, SEED_A);
	if (!is_huge(mem))
		SKIP(GPU_OK(gpu_fill(self->gpu, mem, 8, 1)); return, "no huge page to be had");
	/* Read-only pages on both sides of pages 37 to 99. */
	ASSERT_EQ(0, mprotect(mem, 37 * page, PROT_READ));
	ASSERT_EQ(0, mprotect(mem + 100 * page, huge - 100 * page, PROT_READ));
	STATS(&before);
	GPU_OK(gpu_write_pattern(self->gpu, mem + 37 * page, 63 * page, SEED_B));
	STATS(&after);
	EXPECT_LT(before.mapped_bytes, after.mapped_bytes);
	ASSERT_EQ(-1, pattern_check(mem + 37 * page, 63 * page, SEED_B));
	GPU_FAILS(VSVM_REASON_ACCESS, gpu_fill(self->gpu, mem + 36 * page, 8, 1));
	GPU_FAILS(VSVM_REASON_ACCESS, gpu_fill(self->gpu, mem + 100 * page, 8, 1));
	for (i = 0; i < huge; i += page) {
		if (i >= 37 * page && i < 100 * page)
			continue;
		GPU_OK(gpu_read(self->gpu, mem + i, &word, 8));
		ASSERT_EQ(pattern_word(SEED_A, i), word);
	}
	/* The first and the last page of the span disappear. */
	ASSERT_EQ(0, munmap(mem + 37 * page, page));
	ASSERT_EQ(0, munmap(mem + 99 * page, page));
	GPU_FAILS(VSVM_REASON_UNMAPPED, gpu_fill(self->gpu, mem + 37 * page, 8, 1));
	GPU_FAILS(VSVM_REASON_UNMAPPED, gpu_fill(self->gpu, mem + 99 * page, 8, 1));
	for (i = 38; i < 99; i++) {
		GPU_OK(gpu_read(self->gpu, mem + i * page, &word, 8));
		ASSERT_EQ(pattern_word(SEED_B, (i - 37) * page), word);
	}
}

TEST_F(svm, one_page_inside_a_hugetlb_page)
{
	size_t page = page_size(), huge = huge_size(), i;
	size_t pages[] = { 0, 5, 16, huge / page - 1 };
	uint64_t word;
	char *mem;

	change_setting("/proc/sys/vm/nr_hugepages", "2");
	mem = mmap(NULL, huge, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (mem == MAP_FAILED)
		SKIP(GPU_OK(gpu_fill(self->gpu, &huge, 8, 1)); return, "no hugetlb pages");
	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		pattern_fill(mem, huge, SEED_A);
		/* Read it first with a hole in what is known, then write. */
		GPU_OK(gpu_read(self->gpu, mem + pages[i] * page + 8, &word, 8));
		ASSERT_EQ(pattern_word(SEED_A, pages[i] * page + 8), word);
		GPU_OK(gpu_fill(self->gpu, mem + pages[i] * page, page, 3));
		ASSERT_EQ(-1, pattern_check(mem, pages[i] * page, SEED_A));
		ASSERT_EQ(3, *(uint64_t *)(mem + pages[i] * page));
		/* An event for the whole page, to start anew. */
		ASSERT_EQ(0, mprotect(mem, huge, PROT_READ));
		ASSERT_EQ(0, mprotect(mem, huge, RW));
	}
	munmap(mem, huge);
}

/* Every second page is of another kind: nothing to coalesce, and nothing to confuse. */
TEST_F(svm, patchwork)
{
	size_t page = page_size(), n = 96, i;
	char *mem = map_small(n * page);
	int fd = temp_file(NULL, n * page);
	uint64_t word;

	ASSERT_LE(0, fd);
	for (i = 0; i < n; i++) {
		char *at = mem + i * page;

		if (i % 4 == 1)
			ASSERT_EQ(at, mmap(at, page, RW, MAP_SHARED | MAP_FIXED, fd, i * page));
		pattern_fill(at, page, i);
		if (i % 4 == 2)
			ASSERT_EQ(0, mprotect(at, page, PROT_READ));
		if (i % 4 == 3)
			ASSERT_EQ(0, munmap(at, page));
	}
	for (i = 0; i < n; i++) {
		char *at = mem + i * page;

		if (i % 4 == 3) {
			GPU_FAILS(VSVM_REASON_UNMAPPED, gpu_read(self->gpu, at, &word, 8));
			continue;
		}
		GPU_OK(gpu_check_pattern(self->gpu, at, page, i));
		if (i % 4 == 2)
			GPU_FAILS(VSVM_REASON_ACCESS, gpu_fill(self->gpu, at, 8, 1));
		else
			GPU_OK(gpu_write_pattern(self->gpu, at, page, ~i));
	}
	for (i = 0; i < n; i++) {
		if (i % 4 != 3)
			ASSERT_EQ(-1, pattern_check(mem + i * page, page, i % 4 == 2 ? i : ~i));
	}
	close(fd);
}

struct ahead {
	int gpu;
	char *mem;
	size_t len;
	unsigned int flags;
	int ret;
};

static void *map_ahead(void *arg)
{
	struct ahead *ahead = arg;

	ahead->ret = gpu_map_ahead(ahead->gpu, ahead->mem, ahead->len, ahead->flags);
	return NULL;
}

/*
 * A walk stops in its last page, in a fault that this program answers. Before it does, it replaces
 * the memory at the beginning of the span. What was seen there is void: the GPU must find the new
 * memory, and must not write to the old pages.
 */
static void replace_during_walk(struct __test_metadata *_metadata, FIXTURE_DATA(svm) *self,
				char *mem, size_t len)
{
	size_t page = page_size(), i;
	struct ahead ahead = { .gpu = self->gpu, .mem = mem, .len = len, .flags = VSVM_MAP_WRITE };
	struct drm_vsvm_stats before, after;
	char *source = malloc(page), *kept;
	int uffd = uffd_open(), fd;
	pthread_t thread;
	uintptr_t addr;

	if (uffd < 0)
		SKIP(GPU_OK(gpu_fill(self->gpu, mem, 8, 1)); return, "no userfaultfd");
	/* The first pages are of a file, so that the old ones can still be looked at later. */
	fd = temp_file(NULL, 16 * page);
	ASSERT_LE(0, fd);
	for (i = 0; i < len; i += page)
		*(volatile uint64_t *)(mem + i) = i;
	ASSERT_EQ(mem, mmap(mem, 16 * page, RW, MAP_SHARED | MAP_FIXED, fd, 0));
	pattern_fill(mem, 16 * page, SEED_A);
	ASSERT_EQ(0, madvise(mem + len - page, page, MADV_DONTNEED));
	ASSERT_EQ(0, uffd_register(uffd, mem + len - page, page, UFFDIO_REGISTER_MODE_MISSING));
	STATS(&before);
	ASSERT_EQ(0, pthread_create(&thread, NULL, map_ahead, &ahead));
	ASSERT_EQ(1, uffd_next(uffd, &addr, NULL, 10000));
	ASSERT_EQ((uintptr_t)(mem + len - page), addr);

	/* The walk is in its last page now. */
	ASSERT_EQ(mem, mmap(mem, 16 * page, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	pattern_fill(mem, 16 * page, SEED_B);
	pattern_fill(source, page, 9);
	ASSERT_EQ(0, uffd_copy(uffd, addr, source));
	ASSERT_EQ(0, pthread_join(thread, NULL));
	ASSERT_EQ(0, ahead.ret);

	STATS(&after);
	EXPECT_LT(before.walks, after.walks);
	GPU_OK(gpu_check_pattern(self->gpu, mem, 16 * page, SEED_B));
	GPU_OK(gpu_fill(self->gpu, mem, 16 * page, 0x5555));
	ASSERT_EQ(0x5555, *(uint64_t *)mem);
	GPU_OK(gpu_check_pattern(self->gpu, mem + len - page, page, 9));
	kept = mmap(NULL, 16 * page, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, kept);
	ASSERT_EQ(-1, pattern_check(kept, 16 * page, SEED_A))
		TH_LOG("the GPU wrote to memory that was unmapped during the walk");
	close(uffd);
	close(fd);
}

/*
 * All of it is one walk at the end: the first pages have been seen, and nothing of the block is
 * mapped for the GPU.
 */
TEST_F(svm, invalidation_during_one_walk)
{
	size_t huge = huge_size();
	char *mem = map_huge(huge);

	ASSERT_NE(NULL, mem);
	ASSERT_EQ(0, madvise(mem, huge, MADV_NOHUGEPAGE));
	replace_during_walk(_metadata, self, mem, huge);
}

/* One walk after the other: when the last one waits, the first pages are mapped already. */
TEST_F(svm, invalidation_between_two_windows)
{
	size_t len = 6 * huge_size();

	replace_during_walk(_metadata, self, map_small(len), len);
}

/*
 * Two threads fault different ranges of one address space. Both faults are answered by this
 * program, which does so only after it has seen both: they are in their walks at the same time.
 * A library with one lock around its walks never gets there.
 */
TEST_F(svm, two_walks_at_the_same_time)
{
	size_t page = page_size(), huge = huge_size(), i;
	char *mem = map_small(8 * huge), *source = malloc(page);
	struct ahead ahead[2] = {
		{ .gpu = self->gpu, .mem = mem, .len = page },
		{ .gpu = self->gpu, .mem = mem + 5 * huge, .len = page },
	};
	int uffd = uffd_open();
	pthread_t thread[2];
	uintptr_t addr[2];

	if (uffd < 0)
		SKIP(GPU_OK(gpu_fill(self->gpu, mem, 8, 1)); return, "no userfaultfd");
	ASSERT_EQ(0, uffd_register(uffd, mem, 8 * huge, UFFDIO_REGISTER_MODE_MISSING));
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, pthread_create(&thread[i], NULL, map_ahead, &ahead[i]));
	for (i = 0; i < 2; i++)
		ASSERT_EQ(1, uffd_next(uffd, &addr[i], NULL, 10000))
			TH_LOG("only %zu of two faults arrived: they wait for each other", i);
	EXPECT_NE(addr[0], addr[1]);
	for (i = 0; i < 2; i++) {
		pattern_fill(source, page, addr[i]);
		ASSERT_EQ(0, uffd_copy(uffd, addr[i], source));
	}
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, pthread_join(thread[i], NULL));
		ASSERT_EQ(0, ahead[i].ret);
		GPU_OK(gpu_check_pattern(self->gpu, ahead[i].mem, page,
					 (uintptr_t)ahead[i].mem));
	}
	close(uffd);
}

/* The same for two queues of the engine, with a barrier in the driver. */
static void meet(struct __test_metadata *_metadata, FIXTURE_DATA(svm) *self, unsigned int point)
{
	struct drm_vsvm_stats before, after;
	char *mem = map_small(8 * huge_size());
	char *at[2] = { mem, mem + 5 * huge_size() };
	uint64_t seqno[2];
	unsigned int i;

	NEED_DEBUG();
	STATS(&before);
	ASSERT_EQ(0, gpu_debug(self->gpu, VSVM_DEBUG_BARRIER, point, 2, 10000));
	for (i = 0; i < 2; i++) {
		struct list list = {};

		list_fill(&list, at[i], page_size(), i + 1);
		ASSERT_EQ(0, gpu_submit(self->gpu, i, &list, NULL, 0, &seqno[i]));
	}
	for (i = 0; i < 2; i++) {
		GPU_OK(gpu_wait(self->gpu, i, seqno[i], NULL, 0, 20000, NULL));
		ASSERT_EQ(i + 1, *(uint64_t *)at[i]);
	}
	STATS(&after);
	EXPECT_EQ(before.barriers_met + 1, after.barriers_met);
	EXPECT_EQ(before.barriers_missed, after.barriers_missed);
}

/* Both have walked the process's page table, and neither has used what it found. */
TEST_F(svm, two_faults_meet_after_their_walks)
{
	meet(_metadata, self, VSVM_POINT_WALKED);
}

TEST_F(svm, two_faults_meet_before_page_tables)
{
	meet(_metadata, self, VSVM_POINT_PREPARE);
}

TEST_F(svm, two_faults_meet_in_commit)
{
	meet(_metadata, self, VSVM_POINT_COMMIT);
}

/*
 * The memory changes after a walk and before its result is used: the result is void, and the fault
 * looks again.
 *
 * The fault waits at a barrier for a party that never comes. That it is there, or on its last steps
 * to it, shows by a delay, which is counted before it begins.
 */
static void change_after_walk(struct __test_metadata *_metadata, FIXTURE_DATA(svm) *self,
			      char *mem, size_t len)
{
	struct drm_vsvm_stats before, after;
	uint64_t *copy = malloc(len), seqno;
	struct list list = {};

	NEED_DEBUG();
	ASSERT_NE(NULL, mem);
	pattern_fill(mem, len, SEED_A);
	STATS(&before);
	ASSERT_EQ(0, gpu_debug(self->gpu, VSVM_DEBUG_BARRIER, VSVM_POINT_WALKED, 2, 10000));
	DEBUG(DELAY, WALKED, 1);
	list_load(&list, mem, 64, 0);
	ASSERT_EQ(0, gpu_submit(self->gpu, 0, &list, copy, 64, &seqno));
	ASSERT_TRUE(wait_for(STAT(injected) > before.injected, 10000));
	ASSERT_EQ(0, madvise(mem, len, MADV_DONTNEED));
	pattern_fill(mem, len, SEED_B);
	DEBUG(DELAY, WALKED, 0);
	/* Nobody waits any more. */
	DEBUG(BARRIER, WALKED, 0);
	GPU_OK(gpu_wait(self->gpu, 0, seqno, copy, 64, 20000, NULL));
	ASSERT_EQ(-1, pattern_check(copy, 64, SEED_B));
	STATS(&after);
	EXPECT_LT(before.retries, after.retries);
	EXPECT_EQ(before.barriers_missed, after.barriers_missed)
		TH_LOG("the memory was not changed in time");
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_B));
}

TEST_F(svm, change_between_walk_and_commit)
{
	change_after_walk(_metadata, self, map_small(16 * page_size()), 16 * page_size());
}

TEST_F(svm, change_of_a_huge_page_between_walk_and_commit)
{
	change_after_walk(_metadata, self, map_huge(huge_size()), huge_size());
}

/* Two queues fault on one page: one result, and both go on. */
TEST_F(svm, two_faults_on_one_page)
{
	uint64_t seqno[VSVM_QUEUES];
	uint64_t *mem = map_small(page_size());
	unsigned int i, round;

	for (round = 0; round < 20; round++) {
		ASSERT_EQ(0, madvise(mem, page_size(), MADV_DONTNEED));
		for (i = 0; i < VSVM_QUEUES; i++) {
			struct list list = {};

			list_add(&list, mem, 8, 1);
			ASSERT_EQ(0, gpu_submit(self->gpu, i, &list, NULL, 0, &seqno[i]));
		}
		for (i = 0; i < VSVM_QUEUES; i++)
			GPU_OK(gpu_wait(self->gpu, i, seqno[i], NULL, 0, 20000, NULL));
		ASSERT_EQ(VSVM_QUEUES, *mem);
	}
}

TEST_HARNESS_MAIN
