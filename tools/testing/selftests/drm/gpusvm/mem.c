// SPDX-License-Identifier: GPL-2.0
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/mempolicy.h>

#include "mem.h"
#include "sys.h"

void *map_small(size_t len)
{
	void *addr = mmap(NULL, len, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (addr == MAP_FAILED)
		return NULL;
	madvise(addr, len, MADV_NOHUGEPAGE);
	return addr;
}

void *map_huge(size_t len)
{
	size_t huge = huge_size();
	uintptr_t raw, start;
	void *addr;

	if (!huge)
		return NULL;
	addr = mmap(NULL, len + huge, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (addr == MAP_FAILED)
		return NULL;
	/* Give back what lies outside of the aligned part. */
	raw = (uintptr_t)addr;
	start = (raw + huge - 1) & ~(huge - 1);
	if (start > raw)
		munmap(addr, start - raw);
	if (raw + len + huge > start + len)
		munmap((void *)(start + len), raw + huge - start);
	madvise((void *)start, len, MADV_HUGEPAGE);
	return (void *)start;
}

uint64_t pattern_word(uint64_t seed, size_t offset)
{
	uint64_t x = seed * 0x9e3779b97f4a7c15ULL + offset;

	/* The finaliser of splitmix64: neighbours have nothing in common. */
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

void pattern_fill(void *addr, size_t len, uint64_t seed)
{
	uint64_t *word = addr;
	size_t i;

	for (i = 0; i < len / 8; i++)
		word[i] = pattern_word(seed, i * 8);
}

long pattern_check(const void *addr, size_t len, uint64_t seed)
{
	const volatile uint64_t *word = addr;
	size_t i;

	for (i = 0; i < len / 8; i++)
		if (word[i] != pattern_word(seed, i * 8))
			return i * 8;
	return -1;
}

static uint64_t read_entry(const char *path, uint64_t index)
{
	uint64_t entry = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return 0;
	if (pread(fd, &entry, sizeof(entry), index * sizeof(entry)) != sizeof(entry))
		entry = 0;
	close(fd);
	return entry;
}

uint64_t pagemap(const void *addr)
{
	return read_entry("/proc/self/pagemap", (uintptr_t)addr / page_size());
}

bool is_present(const void *addr)
{
	return pagemap(addr) & PM_PRESENT;
}

bool is_swapped(const void *addr)
{
	return pagemap(addr) & PM_SWAPPED;
}

uint64_t kpageflags(const void *addr)
{
	uint64_t entry = pagemap(addr);

	if (!(entry & PM_PRESENT))
		return 0;
	return read_entry("/proc/kpageflags", entry & PM_PFN_MASK);
}

bool is_huge(const void *addr)
{
	return kpageflags(addr) & KPF_BIT_THP;
}

bool have_swap(void)
{
	char text[512];
	char *line;

	if (read_text("/proc/swaps", text, sizeof(text)) <= 0)
		return false;
	line = strchr(text, '\n');
	return line && line[1];
}

static size_t count_present(void *addr, size_t len)
{
	uint64_t entry[64];
	size_t page = page_size(), i, n, left = 0;
	uintptr_t first = (uintptr_t)addr / page;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return len / page;
	while (len) {
		n = len / page < 64 ? len / page : 64;
		if (pread(fd, entry, n * 8, first * 8) != (ssize_t)(n * 8))
			memset(entry, 0xff, sizeof(entry));
		for (i = 0; i < n; i++)
			left += !!(entry[i] & PM_PRESENT);
		first += n;
		len -= n * page;
	}
	close(fd);
	return left;
}

/* No page waits in a list of some CPU any more to be added to the LRU: what is not there stays. */
static void drain_lru(void)
{
	static char *page;
	int node = 0, status;

	if (!page)
		page = map_small(page_size());
	*(volatile char *)page = 0;
	/* Moving a page begins with it, also if the page is there already. */
	syscall(__NR_move_pages, 0, 1, &page, &node, &status, MPOL_MF_MOVE);
}

size_t page_out(void *addr, size_t len)
{
	uint64_t end = now_ms() + 20000;
	size_t left;

	for (;;) {
		madvise(addr, len, MADV_PAGEOUT);
		left = count_present(addr, len);
		if (!left || now_ms() > end)
			return left;
		/* Under write-back, perhaps. */
		drain_lru();
		sleep_ms(10);
	}
}

int temp_file(const char *dir, size_t len)
{
	char path[256];
	int fd, ret;

	if (!dir) {
		fd = memfd_create("gpusvm", MFD_CLOEXEC);
		if (fd < 0)
			return -errno;
	} else {
		snprintf(path, sizeof(path), "%s/gpusvm-XXXXXX", dir);
		fd = mkostemp(path, O_CLOEXEC);
		if (fd < 0)
			return -errno;
		unlink(path);
	}
	if (ftruncate(fd, len)) {
		ret = -errno;
		close(fd);
		return ret;
	}
	return fd;
}
