// SPDX-License-Identifier: GPL-2.0
/*
 * Shared virtual memory in action: a program hands the pointers of its ordinary memory to a GPU,
 * as they are. Nothing is registered, pinned or copied before.
 *
 * Four kinds of memory (malloc, mmap, a file, huge pages) are each given to one queue of the GPU,
 * which reads them, computes with them and writes them, while other threads of the program fork,
 * munmap, mprotect and madvise. Every byte is checked. Exit status 0 means: all were right.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gpu.h"
#include "mem.h"
#include "sys.h"

/* One kind of memory. The GPU reads `source` and writes `result`, both of `len` bytes. */
struct buffer {
	const char *name;
	char *source, *result;
	size_t len;
	unsigned int queue;
	uint64_t rounds, bytes;
};

static struct buffer buffers[VSVM_QUEUES] = {
	{ .name = "malloc" },
	{ .name = "mmap, anonymous" },
	{ .name = "mmap, file" },
	{ .name = "mmap, huge pages" },
};

static int gpu;
static bool over;
static unsigned long forks, unmaps, protects, advices;
static unsigned int wrong;

static bool is_over(void)
{
	return __atomic_load_n(&over, __ATOMIC_RELAXED);
}

static void complain(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	printf("  WRONG: ");
	vprintf(fmt, args);
	printf("\n");
	va_end(args);
	fflush(stdout);
	__atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
	__atomic_store_n(&over, true, __ATOMIC_RELAXED);
}

static bool worked(const char *what, const char *where, int ret)
{
	if (!ret)
		return true;
	complain("%s, %s: %s", where, what, ret < 0 ? strerror(-ret) : gpu_reason(ret));
	return false;
}

static bool set_up(void)
{
	size_t huge = huge_size() ? huge_size() : 2 << 20;
	unsigned int i;
	int fd;

	for (i = 0; i < VSVM_QUEUES; i++) {
		buffers[i].queue = i;
		buffers[i].len = 128 << 10;
	}
	buffers[0].source = malloc(buffers[0].len);
	buffers[0].result = malloc(buffers[0].len);

	buffers[1].source = map_small(buffers[1].len);
	buffers[1].result = map_small(buffers[1].len);

	fd = temp_file("/tmp", 2 * buffers[2].len);
	if (fd < 0)
		return false;
	buffers[2].source = mmap(NULL, 2 * buffers[2].len, RW, MAP_SHARED, fd, 0);
	if (buffers[2].source == MAP_FAILED)
		return false;
	buffers[2].result = buffers[2].source + buffers[2].len;
	close(fd);

	buffers[3].len = huge;
	buffers[3].source = map_huge(huge);
	buffers[3].result = map_huge(huge);

	for (i = 0; i < VSVM_QUEUES; i++) {
		if (!buffers[i].source || !buffers[i].result)
			return false;
		pattern_fill(buffers[i].source, buffers[i].len, i);
	}
	return true;
}

/* One queue of the GPU and one kind of memory, round after round. */
static void *work(void *arg)
{
	struct buffer *b = arg;
	uint64_t *copy = mmap(NULL, b->len, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t *result = (uint64_t *)b->result;
	size_t i;

	while (!is_over()) {
		struct list list = {};

		/* The GPU writes: result = source + round. */
		list_copy(&list, b->result, b->source, b->len);
		list_add(&list, b->result, b->len, b->rounds);
		if (!worked("compute", b->name, gpu_run(gpu, b->queue, &list, NULL, 0, NULL)))
			break;
		/* Every byte of it, as the CPU sees it ... */
		for (i = 0; i < b->len / 8; i++) {
			if (result[i] != pattern_word(b->queue, i * 8) + b->rounds) {
				complain("%s: byte %zu of what the GPU wrote", b->name, i * 8);
				return NULL;
			}
		}
		/* ... and what the GPU reads where the CPU has written. */
		result[b->rounds % (b->len / 8)] = b->rounds;
		if (!worked("read", b->name,
			    gpu_read_on(gpu, b->queue, b->result, copy, b->len)))
			break;
		if (memcmp(copy, result, b->len)) {
			complain("%s: the GPU read something else than the CPU", b->name);
			break;
		}
		b->rounds++;
		b->bytes += 2 * b->len;
	}
	munmap(copy, b->len);
	return NULL;
}

/* Children get copies of all the memory, which nobody may change. */
static void *do_fork(void *arg)
{
	while (!is_over()) {
		pid_t child = fork();
		int status;

		if (child < 0) {
			complain("fork: %s", strerror(errno));
			break;
		}
		if (!child) {
			uint64_t seen[VSVM_QUEUES];
			unsigned int i;

			for (i = 0; i < VSVM_QUEUES; i++)
				seen[i] = *(volatile uint64_t *)buffers[i].result;
			sleep_ms(20);
			for (i = 0; i < VSVM_QUEUES; i++) {
				/* Not the file: it is shared, and shall change. */
				if (i != 2 && seen[i] != *(volatile uint64_t *)buffers[i].result)
					_exit(1);
			}
			_exit(0);
		}
		status = wait_child(child, 20000);
		if (status)
			complain("the GPU changed the memory of a child (%d)", status);
		forks++;
		sleep_ms(20);
	}
	return NULL;
}

/* Memory disappears while the GPU knows it, and new memory comes to the same address. */
static void *do_munmap(void *arg)
{
	size_t len = 64 << 10;
	char *mem = map_small(len);
	uint64_t *copy = calloc(1, len);

	while (!is_over()) {
		pattern_fill(mem, len, unmaps);
		/* Queue 0 is shared with the first buffer: lists run one after the other. */
		if (!worked("read new memory", "munmap", gpu_read_on(gpu, 0, mem, copy, len)))
			break;
		if (pattern_check(copy, len, unmaps) >= 0) {
			complain("munmap: the GPU read old memory");
			break;
		}
		if (munmap(mem, len) ||
		    mmap(mem, len, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
			 0) != mem) {
			complain("munmap: %s", strerror(errno));
			break;
		}
		unmaps++;
		sleep_ms(2);
	}
	free(copy);
	return NULL;
}

/* What the GPU only reads is made read-only, and writable again. */
static void *do_mprotect(void *arg)
{
	unsigned int i = 0;

	while (!is_over()) {
		struct buffer *b = &buffers[1 + i++ % 3];

		if (mprotect(b->source, b->len, PROT_READ) || mprotect(b->source, b->len, RW)) {
			complain("mprotect: %s", strerror(errno));
			break;
		}
		protects += 2;
		sleep_ms(3);
	}
	return NULL;
}

/* Pages are swapped out (where there is swap), put together to huge ones, and split. */
static void *do_madvise(void *arg)
{
	unsigned int i = 0;

	while (!is_over()) {
		struct buffer *b = &buffers[i++ % VSVM_QUEUES];
		size_t page = page_size();
		char *start = (char *)(((uintptr_t)b->result + page - 1) & ~(page - 1));

		madvise(start + (i % 7) * 8 * page, 8 * page, MADV_PAGEOUT);
		if (b == &buffers[3])
			madvise(b->result, b->len, MADV_COLLAPSE);
		advices++;
		sleep_ms(3);
	}
	return NULL;
}

static void row(const char *name, unsigned long long value, const char *meaning)
{
	printf("  %-14s %12llu   %s\n", name, value, meaning);
}

static bool report(void)
{
	unsigned long long mapped = 0, rounds = 0, bytes = 0;
	struct drm_vsvm_stats stats;
	unsigned int i;

	if (gpu_stats(gpu, &stats)) {
		complain("no counters");
		return false;
	}
	printf("\n  memory                  rounds    bytes checked\n");
	for (i = 0; i < VSVM_QUEUES; i++) {
		printf("  %-18s %11llu %16llu\n", buffers[i].name,
		       (unsigned long long)buffers[i].rounds,
		       (unsigned long long)buffers[i].bytes);
		rounds += buffers[i].rounds;
		bytes += buffers[i].bytes;
		if (!buffers[i].rounds)
			complain("%s: not one round was made", buffers[i].name);
	}
	mapped = stats.mapped_bytes;
	printf("\n  Meanwhile: %lu forks, %lu munmaps, %lu mprotects, %lu madvises.\n\n", forks,
	       unmaps, protects, advices);
	row("DMA bytes", stats.bytes_read + stats.bytes_written,
	    "moved by the GPU through its own page table");
	row("faults", stats.gpu_faults, "the GPU met an address it did not know yet");
	row("invalidations", stats.invalidations, "the kernel took memory back that it knew");
	row("retries", stats.retries, "an address changed while it was looked up");
	row("ranges", stats.ranges, "spans of addresses that the GPU shares now");
	row("segments", stats.segments, "contiguous pieces they are mapped in");
	row("bytes mapped", mapped, "in these segments");
	row("stale uses", stats.stale_uses, "of memory that was taken back: must be 0");
	row("bus errors", stats.bus_errors, "addresses that led nowhere: must be 0");
	printf("\n");
	if (stats.stale_uses || stats.bus_errors)
		complain("the GPU used memory that was not its own");
	if (!stats.gpu_faults || !stats.invalidations || stats.bytes_read < bytes / 2)
		complain("the GPU did not do the work");
	if (!forks || !unmaps || !protects || !advices)
		complain("nothing disturbed the GPU");
	return !wrong;
}

int main(int argc, char **argv)
{
	void *(*const disturb[])(void *) = { do_fork, do_munmap, do_mprotect, do_madvise };
	unsigned int seconds = argc > 1 ? strtoul(argv[1], NULL, 10) : 5, i;
	pthread_t thread[2 * VSVM_QUEUES];

	printf("One program, its ordinary memory, and a GPU that uses the same pointers.\n\n");
	gpu = gpu_open(0);
	if (gpu < 0) {
		printf("No GPU: %s. Is the vsvm driver loaded?\n", strerror(-gpu));
		return 1;
	}
	if (!set_up()) {
		printf("Not enough memory.\n");
		return 1;
	}
	printf("For %u seconds, four queues of the GPU read, compute on and write memory of four\n"
	       "kinds, while other threads fork, munmap, mprotect and madvise it.\n", seconds);
	fflush(stdout);
	for (i = 0; i < VSVM_QUEUES; i++) {
		if (pthread_create(&thread[i], NULL, work, &buffers[i]) ||
		    pthread_create(&thread[VSVM_QUEUES + i], NULL, disturb[i], NULL)) {
			printf("No threads.\n");
			return 1;
		}
	}
	for (i = 0; i < seconds * 10 && !is_over(); i++)
		sleep_ms(100);
	__atomic_store_n(&over, true, __ATOMIC_RELAXED);
	for (i = 0; i < 2 * VSVM_QUEUES; i++)
		pthread_join(thread[i], NULL);

	if (!report()) {
		printf("SOMETHING WAS WRONG.\n");
		return 1;
	}
	printf("All data was right.\n");
	return 0;
}
