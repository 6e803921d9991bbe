// SPDX-License-Identifier: GPL-2.0
/*
 * What the library tells about itself: a directory in debugfs for each mirror, and tracepoints.
 * Both must agree with what the test makes happen.
 */
#include "svm.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define ROOT "/sys/kernel/debug/gpusvm"
#define TRACING "/sys/kernel/tracing"
#define EVENTS TRACING "/events/gpusvm"
#define SEED 0xdeb06

static const char constant[64] = "a constant";

/* What the files "segments" and "ranges" of a mirror say. */
struct view {
	size_t ranges, segments;
	unsigned long long bytes_of_ranges, bytes_of_segments;
	/* Of the segments that hold the address. */
	size_t hits;
	bool writable;
	unsigned long dma;
	/* Of the ranges that hold the address. */
	size_t range_hits;
};

/* The lines of a file that were understood, counted in `view`. Returns 0 or -errno. */
static int read_view(const char *dir, const void *addr, struct view *view)
{
	unsigned long at = (unsigned long)addr, start, end, dma;
	unsigned long long bytes, segments;
	char path[320], line[256], mode[8];
	FILE *file;

	memset(view, 0, sizeof(*view));
	snprintf(path, sizeof(path), "%s/segments", dir);
	file = fopen(path, "r");
	if (!file)
		return -errno;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "0x%lx-0x%lx dma=0x%lx %7s", &start, &end, &dma, mode) != 4) {
			fclose(file);
			return -EINVAL;
		}
		view->segments++;
		view->bytes_of_segments += end - start;
		if (start <= at && at < end) {
			view->hits++;
			view->writable = !strcmp(mode, "rw");
			view->dma = dma + (at - start);
		}
	}
	fclose(file);

	snprintf(path, sizeof(path), "%s/ranges", dir);
	file = fopen(path, "r");
	if (!file)
		return -errno;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "0x%lx-0x%lx bytes=%llu segments=%llu", &start, &end, &bytes,
			   &segments) != 4) {
			fclose(file);
			return -EINVAL;
		}
		view->ranges++;
		view->bytes_of_ranges += bytes;
		view->range_hits += start <= at && at < end;
	}
	fclose(file);
	return 0;
}

/* The directory of the mirror that has `addr` mapped, with its number: 0 or -errno. */
static int find_dir(const void *addr, char *dir, size_t size, unsigned int *number)
{
	struct dirent *entry;
	struct view view;
	DIR *root = opendir(ROOT);
	int ret = -ENOENT;

	if (!root)
		return -errno;
	while ((entry = readdir(root))) {
		const char *dash = strrchr(entry->d_name, '-');

		if (!dash)
			continue;
		snprintf(dir, size, ROOT "/%s", entry->d_name);
		if (!read_view(dir, addr, &view) && view.hits) {
			*number = strtoul(dash + 1, NULL, 10);
			ret = 0;
			break;
		}
	}
	closedir(root);
	return ret;
}

static size_t count_dirs(void)
{
	struct dirent *entry;
	DIR *root = opendir(ROOT);
	size_t count = 0;

	if (!root)
		return 0;
	while ((entry = readdir(root)))
		count += entry->d_name[0] != '.';
	closedir(root);
	return count;
}

static long long counter(const char *dir, const char *key)
{
	char path[320];

	snprintf(path, sizeof(path), "%s/counters", dir);
	return read_key(path, key);
}

/* Whether the files say the same, which they do unless something goes on in between. */
static bool files_agree(const char *dir)
{
	struct view view;

	return !read_view(dir, NULL, &view) && view.ranges == counter(dir, "ranges") &&
	       view.segments == counter(dir, "segments") &&
	       view.bytes_of_segments == view.bytes_of_ranges &&
	       view.bytes_of_segments == counter(dir, "mapped_bytes");
}

static bool in_a_range(const char *dir, const void *addr)
{
	struct view view;

	return read_view(dir, addr, &view) || view.range_hits;
}

TEST_F(svm, directory_tells_what_is_mapped)
{
	size_t page = page_size(), len = 4 * page;
	char *mem = map_small(len), dir[300];
	struct view view;
	unsigned int number;
	long long collected;

	ASSERT_NE(NULL, mem);
	GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED));
	ASSERT_EQ(0, find_dir(mem, dir, sizeof(dir), &number));
	EXPECT_LT(0, number);
	EXPECT_LT(0, counter(dir, "faults"));
	EXPECT_LT(0, counter(dir, "walks"));
	EXPECT_LE((long long)len, counter(dir, "mapped_bytes_total"));

	/* The GPU's page, and one that it may only read. */
	ASSERT_EQ(0, read_view(dir, mem + page, &view));
	EXPECT_EQ(1, view.hits);
	EXPECT_TRUE(view.writable);
	GPU_OK(gpu_read(self->gpu, constant, (char [64]) {}, sizeof(constant)));
	ASSERT_EQ(0, read_view(dir, constant, &view));
	EXPECT_EQ(1, view.hits);
	EXPECT_FALSE(view.writable);

	EXPECT_TRUE(wait_for(files_agree(dir), 10000));

	/* Pages are gone when munmap() returns, their range a little later. */
	collected = counter(dir, "collected");
	munmap(mem, len);
	ASSERT_EQ(0, read_view(dir, mem, &view));
	EXPECT_EQ(0, view.hits);
	EXPECT_TRUE(wait_for(!in_a_range(dir, mem), 10000));
	EXPECT_LT(collected, counter(dir, "collected"));
}

/*
 * Behind an IOMMU, a range has addresses of its own as long as it lives: neighbours for the process
 * are neighbours for the device, and memory that comes back is found where it was.
 */
TEST_F(svm, device_addresses_are_kept)
{
	size_t page = page_size(), len = 8 * page, i;
	char *mem = map_huge(huge_size()), dir[300];
	unsigned long first = 0;
	struct view view;
	unsigned int number, round;

	if (access("/sys/class/iommu/dmar0", F_OK))
		SKIP(GPU_OK(gpu_read(self->gpu, &len, dir, 8)); return, "no IOMMU");
	ASSERT_NE(NULL, mem);
	/* One range of small pages. */
	ASSERT_EQ(0, madvise(mem, huge_size(), MADV_NOHUGEPAGE));
	for (round = 0; round < 3; round++) {
		GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED));
		ASSERT_EQ(0, find_dir(mem, dir, sizeof(dir), &number));
		for (i = 0; i < 8; i++) {
			ASSERT_EQ(0, read_view(dir, mem + i * page, &view));
			ASSERT_EQ(1, view.hits);
			if (!first)
				first = view.dma;
			EXPECT_EQ(first + i * page, view.dma);
		}
		ASSERT_EQ(0, madvise(mem, len, MADV_DONTNEED));
		/* Other memory of the process takes the pages. */
		memset(map_small(64 * page), 1, 64 * page);
	}
}

TEST_F(svm, directory_lives_as_long_as_the_mirror)
{
	size_t page = page_size(), before = count_dirs();
	char *mem = map_small(page), dir[300], path[320], line[256];
	unsigned int number, other_number;
	int other = gpu_open(0);
	FILE *held;

	ASSERT_NE(NULL, mem);
	ASSERT_LE(0, other);
	EXPECT_EQ(before + 1, count_dirs());
	GPU_OK(gpu_write_pattern(self->gpu, mem, page, SEED));
	ASSERT_EQ(0, find_dir(mem, dir, sizeof(dir), &number));
	munmap(mem, page);

	/* A file that is held open does not hold the mirror. */
	mem = map_small(page);
	ASSERT_NE(NULL, mem);
	GPU_OK(gpu_write_pattern(other, mem, page, SEED));
	ASSERT_EQ(0, find_dir(mem, dir, sizeof(dir), &other_number));
	EXPECT_LT(number, other_number);
	snprintf(path, sizeof(path), "%s/segments", dir);
	held = fopen(path, "r");
	ASSERT_NE(NULL, held);
	close(other);
	EXPECT_TRUE(wait_for(!path_exists(path), 10000));
	EXPECT_EQ(NULL, fgets(line, sizeof(line), held));
	fclose(held);
}

/* Whether the trace has a line with all of these in it. */
static bool traced(const char *event, const char *what, const char *more)
{
	FILE *file = fopen(TRACING "/trace", "r");
	bool found = false;
	char line[512];

	while (file && !found && fgets(line, sizeof(line), file))
		found = strstr(line, event) && strstr(line, what) && strstr(line, more);
	if (file)
		fclose(file);
	return found;
}

/* The collector's event comes later than what causes it. */
#define TRACED(event, what, more) EXPECT_TRUE(wait_for(traced(event, what, more), 10000))

TEST_F(svm, tracepoints)
{
	size_t page = page_size();
	char *mem = map_small(page), *gone = map_small(page), dir[300], svm[32], span[64], at[32];
	unsigned int number;
	FILE *trace;

	if (!path_exists(EVENTS))
		SKIP(return, "the kernel has no tracing");
	ASSERT_NE(NULL, mem);
	ASSERT_NE(NULL, gone);
	munmap(gone, page);
	GPU_OK(gpu_write_pattern(self->gpu, mem, page, SEED));
	ASSERT_EQ(0, find_dir(mem, dir, sizeof(dir), &number));
	madvise(mem, page, MADV_DONTNEED);

	/* Truncating it empties the buffer. Only our mirror, which is a field like others. */
	trace = fopen(TRACING "/trace", "w");
	ASSERT_NE(NULL, trace);
	fclose(trace);
	ASSERT_EQ(0, write_text(EVENTS "/gpusvm_fault/filter", "svm == %u", number));
	ASSERT_EQ(0, change_setting(EVENTS "/enable", "1"));

	GPU_OK(gpu_write_pattern(self->gpu, mem, page, SEED));
	GPU_FAILS(VSVM_REASON_UNMAPPED, gpu_write(self->gpu, gone, "x", 1));
	munmap(mem, page);

	snprintf(svm, sizeof(svm), "svm=%u ", number);
	snprintf(span, sizeof(span), "span=0x%lx-0x%lx ", (unsigned long)mem,
		 (unsigned long)mem + page);
	TRACED("gpusvm_fault: ", svm, span);
	TRACED("gpusvm_fault: ", span, "access=write result=0 walks=");
	snprintf(at, sizeof(at), "span=0x%lx-", (unsigned long)gone);
	TRACED("gpusvm_fault: ", at, "access=write result=-14 ");
	TRACED("gpusvm_map: ", svm, " segments=");
	TRACED("gpusvm_invalidate: ", svm, "event=unmap outcome=deferred");
	TRACED("gpusvm_collect: ", svm, "span=0x");
	write_text(EVENTS "/gpusvm_fault/filter", "0");
}

TEST_HARNESS_MAIN
