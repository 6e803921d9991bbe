// SPDX-License-Identifier: GPL-2.0
/*
 * What a user of the GPU relies on: its pointers work, its errors are reported, its counters tell
 * what happened.
 */
#include "svm.h"

#include <malloc.h>

#include "uffd.h"

#define SEED_A 0xa11ce
#define SEED_B 0xb0b

static char in_data[3 * 4096] = "data";
static char in_bss[3 * 4096];
static const char in_rodata[64] = "a constant";

TEST_F(svm, write_then_read)
{
	struct drm_vsvm_stats before, after;
	size_t len = 64 * page_size();
	char *mem = malloc(len);

	ASSERT_NE(NULL, mem);
	STATS(&before);
	pattern_fill(mem, len, SEED_A);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED_B));
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_B));
	STATS(&after);
	EXPECT_EQ(before.bytes_read + len, after.bytes_read);
	EXPECT_EQ(before.bytes_written + len, after.bytes_written);
	EXPECT_LT(before.gpu_faults, after.gpu_faults);
	EXPECT_LE(before.jobs_done + 2, after.jobs_done);
	EXPECT_EQ(0, after.jobs_failed);
	free(mem);
}

TEST_F(svm, every_command)
{
	size_t page = page_size();
	uint64_t *mem = map_small(4 * page), *old;
	struct list list = {};
	size_t i;

	ASSERT_NE(NULL, mem);
	old = calloc(page, 1);
	ASSERT_NE(NULL, old);

	GPU_OK(gpu_fill(self->gpu, mem, page, 0x0807060504030201ULL));
	for (i = 0; i < page / 8; i++)
		ASSERT_EQ(0x0807060504030201ULL, mem[i]);

	GPU_OK(gpu_copy(self->gpu, mem + page / 8, mem, page));
	ASSERT_EQ(0, memcmp(mem, mem + page / 8, page));

	list_add(&list, mem, page, 5);
	list.cmd[0].addr2 = 0;
	GPU_OK(gpu_run(self->gpu, 0, &list, old, page, NULL));
	for (i = 0; i < page / 8; i++) {
		ASSERT_EQ(0x0807060504030201ULL, old[i]);
		ASSERT_EQ(0x0807060504030206ULL, mem[i]);
	}

	/* A fill starts with byte 0 wherever it starts, and touches nothing around it. */
	memset(mem, 0xee, page);
	GPU_OK(gpu_fill(self->gpu, (char *)mem + 3, 11, 0x0807060504030201ULL));
	ASSERT_EQ(0, memcmp(mem, "\xee\xee\xee\1\2\3\4\5\6\7\10\1\2\3\xee", 15));
	free(old);
}

TEST_F(svm, odd_addresses)
{
	size_t page = page_size(), len = 5 * page, start, size;
	unsigned char *mem = map_small(len), *buf = malloc(len), *want = malloc(len);

	ASSERT_NE(NULL, mem);
	for (start = 0; start < 2 * page; start += page / 2 - 1) {
		for (size = 1; start + size < len; size = size * 3 + 1) {
			pattern_fill(mem, len, start);
			memcpy(want, mem, len);
			GPU_OK(gpu_read(self->gpu, mem + start, buf, size));
			ASSERT_EQ(0, memcmp(buf, want + start, size));
			memset(buf, (int)size, size);
			memset(want + start, (int)size, size);
			GPU_OK(gpu_write(self->gpu, mem + start, buf, size));
			ASSERT_EQ(0, memcmp(mem, want, len));
		}
	}
	free(buf);
	free(want);
}

TEST_F(svm, any_pointer)
{
	char on_stack[200], buf[200] = {};

	/* Initialised data, zeroed data, constants, the stack. */
	GPU_OK(gpu_read(self->gpu, in_data, buf, 5));
	ASSERT_STREQ("data", buf);
	GPU_OK(gpu_write(self->gpu, in_bss + 4090, "crosses a page", 15));
	ASSERT_STREQ("crosses a page", in_bss + 4090);
	GPU_OK(gpu_read(self->gpu, in_rodata, buf, sizeof(in_rodata)));
	ASSERT_STREQ("a constant", buf);
	memset(on_stack, 0, sizeof(on_stack));
	GPU_OK(gpu_write(self->gpu, on_stack, "on the stack", 13));
	ASSERT_STREQ("on the stack", on_stack);

	GPU_FAILS(VSVM_REASON_ACCESS, gpu_write(self->gpu, (void *)in_rodata, "x", 1));
	ASSERT_STREQ("a constant", in_rodata);
}

TEST_F(svm, untouched_memory_reads_zero)
{
	size_t len = 4 * huge_size(), i;
	uint64_t *mem = mmap(NULL, len, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t *buf = malloc(len);

	ASSERT_NE(MAP_FAILED, mem);
	memset(buf, 0xff, len);
	GPU_OK(gpu_read(self->gpu, mem, buf, len));
	for (i = 0; i < len / 8; i++)
		ASSERT_EQ(0, buf[i]);
	/* Reading brought the zero page, or the huge one; writing must replace it. */
	GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED_A));
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_A));
	free(buf);
}

TEST_F(svm, huge_page_is_one_leaf)
{
	struct drm_vsvm_stats before, after;
	size_t len = huge_size();
	char *mem = map_huge(len);

	ASSERT_NE(NULL, mem);
	pattern_fill(mem, len, SEED_A);
	if (!is_huge(mem))
		SKIP(return, "no huge page to be had");
	STATS(&before);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	STATS(&after);
	EXPECT_EQ(before.leaves_2m + 1, after.leaves_2m);
	EXPECT_EQ(before.gpu_faults + 1, after.gpu_faults);
	EXPECT_EQ(before.mapped_bytes + len, after.mapped_bytes);
	EXPECT_EQ(before.segments + 1, after.segments);
	GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED_B));
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_B));
}

TEST_F(svm, second_access_does_not_fault)
{
	struct drm_vsvm_stats first, second;
	size_t len = 4 * page_size();
	char *mem = map_small(len);

	pattern_fill(mem, len, SEED_A);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	STATS(&first);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	/* The pages are writable in the process: reading them mapped them writable. */
	GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED_B));
	STATS(&second);
	EXPECT_EQ(first.gpu_faults, second.gpu_faults);
	EXPECT_EQ(first.walks, second.walks);
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_B));
}

TEST_F(svm, map_ahead)
{
	struct drm_vsvm_stats before, mapped, after;
	size_t len = 300 * page_size();
	char *mem = map_small(len);

	pattern_fill(mem, len, SEED_A);
	STATS(&before);
	ASSERT_EQ(0, gpu_map_ahead(self->gpu, mem, len, VSVM_MAP_WRITE));
	STATS(&mapped);
	EXPECT_LE(before.mapped_bytes + len, mapped.mapped_bytes);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED_B));
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_B));
	STATS(&after);
	EXPECT_EQ(mapped.gpu_faults, after.gpu_faults);
}

TEST_F(svm, map_ahead_in_vain)
{
	size_t page = page_size(), len = 16 * page;
	char *mem = map_small(len);

	pattern_fill(mem, len, SEED_A);
	ASSERT_EQ(0, mprotect(mem + 8 * page, page, PROT_READ));
	ASSERT_EQ(0, gpu_map_ahead(self->gpu, mem, len, 0));
	ASSERT_EQ(-EPERM, gpu_map_ahead(self->gpu, mem, len, VSVM_MAP_WRITE));
	ASSERT_EQ(0, mprotect(mem + 8 * page, page, PROT_NONE));
	ASSERT_EQ(-EFAULT, gpu_map_ahead(self->gpu, mem, len, 0));
	ASSERT_EQ(0, munmap(mem + 8 * page, page));
	ASSERT_EQ(-EFAULT, gpu_map_ahead(self->gpu, mem, len, 0));
	/* What is there works all the same. */
	GPU_OK(gpu_check_pattern(self->gpu, mem, 8 * page, SEED_A));
}

/* The collector comes a little later than the munmap() that gives it work. */
#define RANGES_BECOME(want) EXPECT_TRUE(wait_for(STAT(ranges) == (want), 10000))

TEST_F(svm, large_span_in_few_segments)
{
	struct drm_vsvm_stats before, mapped, after;
	size_t huge = huge_size(), len = 48 * huge, i;
	char *mem = map_huge(len);

	ASSERT_NE(NULL, mem);
	ASSERT_EQ(0, madvise(mem, len, MADV_POPULATE_WRITE));
	for (i = 0; i < len; i += huge)
		if (!is_huge(mem + i))
			SKIP(return, "no 48 huge pages to be had");
	for (i = 0; i < len; i += huge)
		pattern_fill(mem + i + huge / 2, 4096, i);
	STATS(&before);
	ASSERT_EQ(0, gpu_map_ahead(self->gpu, mem, len, 0));
	STATS(&mapped);
	EXPECT_EQ(before.mapped_bytes + len, mapped.mapped_bytes);
	EXPECT_EQ(before.leaves_2m + len / huge, mapped.leaves_2m);
	EXPECT_EQ(before.leaves_4k, mapped.leaves_4k);
	EXPECT_GE(before.segments + len / huge, mapped.segments);
	for (i = 0; i < len; i += huge)
		GPU_OK(gpu_check_pattern(self->gpu, mem + i + huge / 2, 4096, i));
	ASSERT_EQ(0, munmap(mem, len));
	STATS(&after);
	EXPECT_EQ(before.mapped_bytes, after.mapped_bytes);
	EXPECT_EQ(before.segments, after.segments);
	EXPECT_EQ(before.leaves_2m, after.leaves_2m);
	EXPECT_NE(mapped.invalidations, after.invalidations);
	/* The pages are gone for the GPU as well, and in the end the ranges are. */
	GPU_FAILS(VSVM_REASON_UNMAPPED, gpu_fill(self->gpu, mem, 8, 1));
	RANGES_BECOME(before.ranges);
	STATS(&after);
	EXPECT_EQ(before.collected + mapped.ranges - before.ranges, after.collected);
}

/* Ranges go when their memory does, wholly or in part, and what is left gets new ones. */
TEST_F(svm, ranges_go_with_their_memory)
{
	struct drm_vsvm_stats before, mapped, after;
	size_t page = page_size(), huge = huge_size(), n = 8, i;
	char *mem = map_huge(n * huge);
	uint64_t word;

	ASSERT_NE(NULL, mem);
	ASSERT_EQ(0, madvise(mem, n * huge, MADV_NOHUGEPAGE));
	STATS(&before);
	for (i = 0; i < n; i++)
		GPU_OK(gpu_write_pattern(self->gpu, mem + i * huge, 32 * page, i));
	STATS(&mapped);
	ASSERT_EQ(before.ranges + n, mapped.ranges);

	/* All the memory of some. */
	ASSERT_EQ(0, munmap(mem, 3 * huge));
	RANGES_BECOME(before.ranges + n - 3);
	/* A page of another one. */
	ASSERT_EQ(0, munmap(mem + 4 * huge + 16 * page, page));
	RANGES_BECOME(before.ranges + n - 4);
	STATS(&after);
	EXPECT_EQ(before.collected + 4, after.collected);
	GPU_OK(gpu_check_pattern(self->gpu, mem + 4 * huge, 16 * page, 4));
	GPU_OK(gpu_read(self->gpu, mem + 4 * huge + 17 * page, &word, 8));
	ASSERT_EQ(pattern_word(4, 17 * page), word);
	GPU_FAILS(VSVM_REASON_UNMAPPED, gpu_fill(self->gpu, mem + 4 * huge + 16 * page, 8, 1));
	STATS(&after);
	EXPECT_LT(before.ranges + n - 4, after.ranges);

	ASSERT_EQ(0, munmap(mem + 3 * huge, (n - 3) * huge));
	RANGES_BECOME(before.ranges);
	STATS(&after);
	EXPECT_LE(before.collected + n, after.collected);
	EXPECT_EQ(before.mapped_bytes, after.mapped_bytes);
}

/* How many events the library is told of when a page goes. */
static uint64_t events(int gpu, char *page)
{
	struct drm_vsvm_stats before, after;

	*(volatile char *)page = 1;
	if (gpu_stats(gpu, &before) || madvise(page, page_size(), MADV_DONTNEED) ||
	    gpu_stats(gpu, &after))
		return ~0ULL;
	return after.invalidations - before.invalidations;
}

/* A window of addresses in which nothing is mapped any more is not followed any more. */
TEST_F(svm, empty_window_is_removed)
{
	const size_t window = 512 << 20;
	struct drm_vsvm_stats before, after;
	size_t page = page_size();
	char *room, *mem, *other;

	/* No memory of anybody else is in the window. */
	room = mmap(NULL, 2 * window, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, room);
	mem = (char *)(((uintptr_t)room + window - 1) & ~(window - 1));
	other = mem + window / 2;
	ASSERT_EQ(0, mprotect(mem, page, RW));
	ASSERT_EQ(0, mprotect(other, page, RW));

	GPU_OK(gpu_fill(self->gpu, mem, 8, 1));
	STATS(&before);
	EXPECT_LT(0, events(self->gpu, other));
	STATS(&after);
	EXPECT_EQ(before.blocks_invalidated, after.blocks_invalidated);

	ASSERT_EQ(0, munmap(mem, page));
	RANGES_BECOME(before.ranges - 1);
	EXPECT_TRUE(wait_for(!events(self->gpu, other), 10000))
		TH_LOG("events in a window without ranges are still counted");
	/* It comes back when it is needed. */
	GPU_OK(gpu_fill(self->gpu, other, 8, 2));
	ASSERT_EQ(2, *other);
	ASSERT_EQ(0, madvise(other, page, MADV_DONTNEED));
	STATS(&after);
	EXPECT_LT(before.invalidations, after.invalidations);
	EXPECT_LT(before.blocks_invalidated, after.blocks_invalidated);
}

TEST_F(svm, hole_stops_one_queue)
{
	struct drm_vsvm_queue state = { .queue = 1 };
	size_t page = page_size();
	char *mem = map_small(4 * page), *gate = map_small(page), byte = 0;
	struct list list = {}, behind = {};
	struct drm_vsvm_error error;
	uint64_t first, second;
	uintptr_t addr;
	int uffd = uffd_open();

	if (uffd < 0)
		SKIP(GPU_OK(gpu_fill(self->gpu, mem, 8, 1)); return, "no userfaultfd");
	pattern_fill(mem, 2 * page, SEED_A);
	ASSERT_EQ(0, munmap(mem + 2 * page, page));
	/* The queue waits here until the second list is in it. */
	ASSERT_EQ(0, uffd_register(uffd, gate, page, UFFDIO_REGISTER_MODE_MISSING));

	list_fill(&list, gate, 8, 0);
	list_fill(&list, mem, 8, 0x1111);
	list_fill(&list, mem + 2 * page - 8, 24, 0x2222);
	list_fill(&list, mem + 8, 8, 0x3333);
	list_fill(&behind, mem + 16, 8, 0x4444);
	ASSERT_EQ(0, gpu_submit(self->gpu, 1, &list, NULL, 0, &first));
	ASSERT_EQ(1, uffd_next(uffd, &addr, NULL, 10000));
	ASSERT_EQ(0, gpu_submit(self->gpu, 1, &behind, NULL, 0, &second));
	ASSERT_EQ(first + 1, second);
	ASSERT_EQ(0, uffd_copy(uffd, addr, mem));
	GPU_FAILS(VSVM_REASON_UNMAPPED,
		  gpu_wait(self->gpu, 1, first, NULL, 0, 10000, &error));
	EXPECT_EQ((uintptr_t)(mem + 2 * page), error.address);
	EXPECT_EQ(VSVM_ACCESS_WRITE, error.access);
	EXPECT_EQ(VSVM_REASON_UNMAPPED, error.reason);
	EXPECT_EQ(first, error.seqno);
	EXPECT_EQ(2, error.command);
	EXPECT_EQ(-ECANCELED, gpu_wait(self->gpu, 1, second, NULL, 0, 10000, &error));
	close(uffd);

	/* What is before it ran, what is behind it did not. */
	EXPECT_EQ(0x1111, *(uint64_t *)mem);
	EXPECT_EQ(pattern_word(SEED_A, 8), *(uint64_t *)(mem + 8));
	EXPECT_EQ(pattern_word(SEED_A, 16), *(uint64_t *)(mem + 16));

	/* It stays stopped and readable; the other queues run. */
	EXPECT_EQ(-ECANCELED, gpu_submit(self->gpu, 1, &behind, NULL, 0, &second));
	GPU_OK(gpu_read_on(self->gpu, 0, mem, &byte, 1));
	GPU_OK(gpu_read_on(self->gpu, 2, mem, &byte, 1));
	ASSERT_EQ(0, gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_QUEUE, &state));
	EXPECT_EQ(1, state.stopped);
	EXPECT_EQ((uintptr_t)(mem + 2 * page), state.error.address);
	EXPECT_EQ(VSVM_REASON_UNMAPPED, state.error.reason);

	/* Until it is restarted. */
	ASSERT_EQ(0, gpu_reset(self->gpu, 1));
	memset(&state, 0, sizeof(state));
	state.queue = 1;
	ASSERT_EQ(0, gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_QUEUE, &state));
	EXPECT_EQ(0, state.stopped);
	EXPECT_EQ(VSVM_REASON_NONE, state.error.reason);
	GPU_OK(gpu_read_on(self->gpu, 1, mem, &byte, 1));
}

TEST_F(svm, permissions)
{
	size_t page = page_size();
	char *mem = map_small(2 * page);
	struct drm_vsvm_error error;
	struct list list = {};

	pattern_fill(mem, page, SEED_A);
	ASSERT_EQ(0, mprotect(mem, page, PROT_READ));
	GPU_OK(gpu_check_pattern(self->gpu, mem, page, SEED_A));
	list_fill(&list, mem + 16, 8, 0);
	GPU_FAILS(VSVM_REASON_ACCESS, gpu_run(self->gpu, 0, &list, NULL, 0, &error));
	EXPECT_EQ((uintptr_t)(mem + 16) & ~(page - 1), error.address & ~(page - 1));
	EXPECT_EQ(VSVM_ACCESS_WRITE, error.access);
	ASSERT_EQ(-1, pattern_check(mem, page, SEED_A));

	/* Read-only mapped by a read is not enough for a write after the protection is lifted. */
	ASSERT_EQ(0, mprotect(mem, page, RW));
	GPU_OK(gpu_write_pattern(self->gpu, mem, page, SEED_B));
	ASSERT_EQ(-1, pattern_check(mem, page, SEED_B));

	ASSERT_EQ(0, mprotect(mem, page, PROT_NONE));
	GPU_FAILS(VSVM_REASON_INACCESSIBLE, gpu_check_pattern(self->gpu, mem, page, SEED_B));
	GPU_FAILS(VSVM_REASON_INACCESSIBLE, gpu_fill(self->gpu, mem, 8, 1));
	ASSERT_EQ(0, mprotect(mem, page, PROT_READ));
	GPU_OK(gpu_check_pattern(self->gpu, mem, page, SEED_B));
}

TEST_F(svm, same_address_new_memory)
{
	size_t len = 32 * page_size();
	char *mem = map_small(len);
	unsigned int i;

	for (i = 0; i < 20; i++) {
		/* The first half of a range stays, the second is replaced. */
		char *half = mem + len / 2;

		pattern_fill(mem, len, i);
		GPU_OK(gpu_check_pattern(self->gpu, mem, len, i));
		ASSERT_EQ(half, mmap(half, len / 2, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
				     -1, 0));
		pattern_fill(half, len / 2, ~i);
		GPU_OK(gpu_check_pattern(self->gpu, half, len / 2, ~i));
		GPU_OK(gpu_check_pattern(self->gpu, mem, len / 2, i));
	}
}

TEST_F(svm, two_address_spaces_of_one_process)
{
	size_t len = 8 * page_size();
	char *mem = map_small(len);
	int other = gpu_open(0);
	struct drm_vsvm_stats stats;

	ASSERT_LE(0, other);
	pattern_fill(mem, len, SEED_A);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	GPU_OK(gpu_write_pattern(other, mem, len, SEED_B));
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_B));
	ASSERT_EQ(0, mprotect(mem, len, PROT_READ));
	GPU_FAILS(VSVM_REASON_ACCESS, gpu_fill(self->gpu, mem, 8, 1));
	GPU_FAILS(VSVM_REASON_ACCESS, gpu_fill(other, mem, 8, 1));
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_B));
	ASSERT_EQ(0, gpu_stats(other, &stats));
	EXPECT_EQ(0, stats.stale_uses);
	/* The end of one does not disturb the other. */
	ASSERT_EQ(0, close(other));
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_B));
}

TEST_F(svm, two_devices_share_memory)
{
	size_t len = 8 * page_size();
	char *mem = map_small(len);
	int other = gpu_open(1);
	struct drm_vsvm_stats stats;

	if (other == -ENODEV)
		SKIP(GPU_OK(gpu_fill(self->gpu, mem, 8, 1)); return, "only one device");
	ASSERT_LE(0, other);
	GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED_A));
	GPU_OK(gpu_check_pattern(other, mem, len, SEED_A));
	GPU_OK(gpu_write_pattern(other, mem, len, SEED_B));
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_B));
	ASSERT_EQ(0, gpu_stats(other, &stats));
	EXPECT_EQ(0, stats.stale_uses);
	EXPECT_EQ(0, stats.bus_errors);
	EXPECT_EQ(len, stats.bytes_read);
	EXPECT_EQ(len, stats.bytes_written);
	close(other);
}

/*
 * The tests are worth what their oracle is worth: a driver that forgets a flush must be caught, and
 * a library that does not wait for it.
 *
 * The page is of a file, and stays what it is when the process lets go of it: so the GPU, which is
 * made to use an old translation, reads nothing that belongs to somebody else.
 */
static char *page_of_a_file(struct __test_metadata *_metadata)
{
	int fd = temp_file(NULL, page_size());
	char *mem;

	ASSERT_LE(0, fd);
	mem = mmap(NULL, page_size(), RW, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, mem);
	close(fd);
	pattern_fill(mem, page_size(), SEED_A);
	return mem;
}

TEST_F(svm, oracle_notices_a_missing_flush)
{
	char *mem = page_of_a_file(_metadata);
	struct drm_vsvm_stats before, after;
	size_t page = page_size();
	unsigned int i;

	NEED_DEBUG();
	self->allow_stale = true;
	GPU_OK(gpu_check_pattern(self->gpu, mem, page, SEED_A));
	STATS(&before);
	EXPECT_EQ(0, before.stale_uses);
	DEBUG(DROP_FLUSH, FLUSH, 1);
	ASSERT_EQ(0, madvise(mem, page, MADV_DONTNEED));
	for (i = 0; i < 3; i++)
		gpu_check_pattern(self->gpu, mem, page, SEED_A);
	STATS(&after);
	EXPECT_LT(0, after.stale_uses);
	DEBUG(DROP_FLUSH, FLUSH, 0);
	GPU_OK(gpu_check_pattern(self->gpu, mem, page, SEED_A));
}

/* The page is mapped again while the GPU may still use the translation of before. */
TEST_F(svm, oracle_notices_a_missing_wait)
{
	char *mem = page_of_a_file(_metadata);
	struct drm_vsvm_stats before, after;
	size_t page = page_size();

	NEED_DEBUG();
	self->allow_stale = true;
	GPU_OK(gpu_check_pattern(self->gpu, mem, page, SEED_A));
	/* With the wait, nothing is wrong with the same sequence. */
	ASSERT_EQ(0, madvise(mem, page, MADV_DONTNEED));
	ASSERT_EQ(0, gpu_map_ahead(self->gpu, mem, page, 0));
	STATS(&before);
	EXPECT_EQ(0, before.stale_uses);
	DEBUG(DROP_WAIT, FLUSH, 1);
	ASSERT_EQ(0, madvise(mem, page, MADV_DONTNEED));
	ASSERT_EQ(0, gpu_map_ahead(self->gpu, mem, page, 0));
	STATS(&after);
	EXPECT_LT(0, after.stale_uses);
	DEBUG(DROP_WAIT, FLUSH, 0);
	GPU_OK(gpu_check_pattern(self->gpu, mem, page, SEED_A));
	STATS(&before);
	EXPECT_EQ(after.stale_uses, before.stale_uses);
}

/* The page tables are released. */
TEST_F(svm, oracle_notices_a_missing_wait_before_release)
{
	char *mem = page_of_a_file(_metadata), *other = map_small(page_size());
	struct drm_vsvm_stats before, after;
	size_t page = page_size();

	NEED_DEBUG();
	self->allow_stale = true;
	STATS(&before);
	GPU_OK(gpu_check_pattern(self->gpu, mem, page, SEED_A));
	DEBUG(DROP_WAIT, FLUSH, 1);
	ASSERT_EQ(0, munmap(mem, page));
	RANGES_BECOME(before.ranges);
	STATS(&after);
	EXPECT_LT(0, after.stale_uses);
	DEBUG(DROP_WAIT, FLUSH, 0);
	GPU_FAILS(VSVM_REASON_UNMAPPED, gpu_read(self->gpu, mem, other, 8));
}

/* A request that fails says where, and has mapped what is before. */
TEST_F(svm, map_ahead_tells_where_it_failed)
{
	size_t page = page_size(), len = 2 * huge_size(), holes[] = { 0, 1, 100, 511, 513, 1000 };
	struct drm_vsvm_map_ahead map = { .len = len };
	struct drm_vsvm_stats before, after;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(holes); i++) {
		char *mem = map_small(len), *hole = mem + holes[i] * page;

		/* No VMA, a VMA without access, and one that refuses the write. */
		ASSERT_EQ(0, i % 3 == 0 ? munmap(hole, page) :
			  mprotect(hole, page, i % 3 == 1 ? PROT_NONE : PROT_READ));
		map.addr = (uintptr_t)mem;
		map.flags = VSVM_MAP_WRITE;
		map.failed = 0;
		STATS(&before);
		ASSERT_EQ(i % 3 == 2 ? -EPERM : -EFAULT,
			  gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_MAP_AHEAD, &map));
		EXPECT_EQ((uintptr_t)hole, map.failed);
		STATS(&after);
		EXPECT_EQ(holes[i] * page, after.mapped_bytes - before.mapped_bytes);
		/* What comes before it can be had. */
		map.len = holes[i] * page;
		if (map.len) {
			EXPECT_EQ(0, gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_MAP_AHEAD, &map));
			EXPECT_EQ(0, map.failed);
		}
		map.len = len;
		munmap(mem, len);
	}
	GPU_OK(gpu_fill(self->gpu, &len, 8, 0));
}

TEST_HARNESS_MAIN
