// SPDX-License-Identifier: GPL-2.0
/*
 * GPU accesses against everything that changes the address space. Each race takes a fixed time.
 *
 * Most of them count: the GPU, on several queues, and the CPU add to counters in the memory that
 * is being disturbed, and in the end each counter has to be exactly the sum of what was added.
 * One addition that went to an old page, or that was lost when a page was moved, shows. Where
 * the disturbance takes the memory away, the content carries its generation instead.
 */
#include "svm.h"

#include <dirent.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <linux/mempolicy.h>

#include "race.h"

#define COUNTERS 64
#define ADDERS 2

/* The memory under test: one counter in each page, and a pattern around it. */
static struct {
	int gpu;
	char *mem;
	size_t len;
	size_t pages;
	/* Where the memory is now, if it moves. */
	char *now;
	char *places[2];
	/* Reasons (bit mask) for which an addition may be refused. */
	unsigned int allowed;
	unsigned int refused;
	/* What each adder (the last one is the CPU) added. */
	uint64_t added[ADDERS + 1][1024];
	/* Of the disturber. */
	uint64_t disturbed;
} t;

static size_t counter_offset(size_t i)
{
	return i * page_size() + (i * 40) % (page_size() - 8);
}

static uint64_t *counter(char *mem, size_t i)
{
	return (uint64_t *)(mem + counter_offset(i));
}

static void counters_init(struct __test_metadata *_metadata, int gpu, char *mem, size_t len)
{
	size_t i;

	ASSERT_NE(NULL, mem);
	/* No thread may map memory of its own where a racer has just unmapped some. */
	mallopt(M_ARENA_MAX, 1);
	mallopt(M_MMAP_THRESHOLD, 1 << 26);
	mallopt(M_TRIM_THRESHOLD, 1 << 28);
	memset(&t, 0, sizeof(t));
	t.gpu = gpu;
	t.mem = mem;
	t.now = mem;
	t.len = len;
	t.pages = len / page_size();
	ASSERT_GE(1024, t.pages);
	pattern_fill(mem, len, 1);
	for (i = 0; i < t.pages; i++)
		*counter(mem, i) = 0;
}

/* All counters, and everything around them. */
static void counters_check(struct __test_metadata *_metadata)
{
	uint64_t total = 0;
	size_t i, a, off;

	for (i = 0; i < t.pages; i++) {
		uint64_t want = 0;

		for (a = 0; a <= ADDERS; a++)
			want += t.added[a][i];
		ASSERT_EQ(want, *counter(t.now, i))
			TH_LOG("counter %zu: additions were lost or went elsewhere", i);
		total += want;
		for (off = i * page_size(); off < (i + 1) * page_size(); off += 8) {
			if (off != counter_offset(i))
				ASSERT_EQ(pattern_word(1, off), *(uint64_t *)(t.now + off));
		}
	}
	for (a = 0; a < ADDERS; a++) {
		uint64_t mine = 0;

		for (i = 0; i < t.pages; i++)
			mine += t.added[a][i];
		EXPECT_NE(0, mine)
			TH_LOG("queue %zu did not add anything", a);
	}
	TH_LOG("%llu additions, %u refused, disturbed %llu times", (unsigned long long)total,
	       t.refused, (unsigned long long)t.disturbed);
}

/* A list of additions; what was executed before a refusal counts. */
static void gpu_adder(struct racer *racer)
{
	struct drm_vsvm_error error;
	struct list list = {};
	size_t index[16], n, i;
	char *mem = __atomic_load_n(&t.now, __ATOMIC_ACQUIRE);
	int ret;

	for (i = 0; i < 16; i++) {
		index[i] = race_random(racer) % t.pages;
		list_add(&list, counter(mem, index[i]), 8, 1);
	}
	ret = gpu_run(t.gpu, racer->id, &list, NULL, 0, &error);
	n = 16;
	if (ret > 0 && (t.allowed & (1U << ret))) {
		n = error.command;
		__atomic_add_fetch(&t.refused, 1, __ATOMIC_RELAXED);
	} else if (ret) {
		race_fail(racer, "%s at %#llx, command %u",
			  ret < 0 ? strerror(-ret) : gpu_reason(ret),
			  (unsigned long long)error.address, error.command);
		n = 0;
	}
	for (i = 0; i < n; i++)
		t.added[racer->id][index[i]]++;
}

/* The CPU adds to the same counters. */
static void cpu_adder(struct racer *racer)
{
	size_t i;

	for (i = 0; i < 64; i++) {
		size_t index = race_random(racer) % t.pages;

		__atomic_add_fetch(counter(t.mem, index), 1, __ATOMIC_RELAXED);
		t.added[ADDERS][index]++;
	}
	sleep_ms(1);
}

/* Memory that is allocated, checked and freed all the time: where a stale write would land. */
static void canary(struct racer *racer)
{
	size_t len = 64 * page_size();
	long wrong;

	pattern_fill(racer->arg, len, racer->steps);
	sleep_ms(2);
	wrong = pattern_check(racer->arg, len, racer->steps);
	if (wrong >= 0)
		race_fail(racer, "somebody wrote to fresh memory at offset %#lx", wrong);
	madvise(racer->arg, len, MADV_DONTNEED);
}

/* GPU and CPU adders against a disturber and perhaps another racer, then the counters. */
static void count_against_two(struct __test_metadata *_metadata, const char *name,
			      void (*step)(struct racer *), uint64_t min_steps, bool with_cpu,
			      struct racer *other)
{
	struct racer gpu[ADDERS] = {
		{ .name = "queue 0", .step = gpu_adder, .min_steps = 5, .id = 0 },
		{ .name = "queue 1", .step = gpu_adder, .min_steps = 5, .id = 1 },
	};
	struct racer cpu = { .name = "cpu", .step = cpu_adder, .min_steps = 1 };
	struct racer guard = { .name = "canary", .step = canary, .min_steps = 2,
		.arg = map_small(64 * page_size()) };
	struct racer disturber = { .name = name, .step = step, .min_steps = min_steps };
	struct drm_vsvm_stats before, after;
	struct race race;
	const char *wrong;

	ASSERT_EQ(0, gpu_stats(t.gpu, &before));
	race_init(&race);
	race_add(&race, &gpu[0]);
	race_add(&race, &gpu[1]);
	if (with_cpu)
		race_add(&race, &cpu);
	race_add(&race, &guard);
	race_add(&race, &disturber);
	if (other)
		race_add(&race, other);
	wrong = race_run(&race);
	ASSERT_EQ(NULL, wrong)
		TH_LOG("%s", wrong);
	t.disturbed = disturber.steps;
	ASSERT_EQ(0, gpu_stats(t.gpu, &after));
	EXPECT_LT(before.invalidations, after.invalidations)
		TH_LOG("the disturbance never met the GPU");
	counters_check(_metadata);
}

static void count_against(struct __test_metadata *_metadata, const char *name,
			  void (*step)(struct racer *), uint64_t min_steps, bool with_cpu)
{
	count_against_two(_metadata, name, step, min_steps, with_cpu, NULL);
}

/* A random span of pages of the memory. */
static char *some_pages(struct racer *racer, size_t *len)
{
	size_t first = race_random(racer) % t.pages;
	size_t n = race_random(racer) % (t.pages - first) + 1;

	*len = n * page_size();
	return t.mem + first * page_size();
}

static void disturb_fork(struct racer *racer)
{
	uint64_t seen[8];
	size_t i;
	pid_t child = fork();

	if (child < 0) {
		race_fail(racer, "fork: %s", strerror(errno));
		return;
	}
	if (!child) {
		/* The memory of the child belongs to the child: nothing may change in it. */
		for (i = 0; i < 8; i++)
			seen[i] = __atomic_load_n(counter(t.mem, i), __ATOMIC_RELAXED);
		sleep_ms(20);
		for (i = 0; i < 8; i++)
			if (seen[i] != __atomic_load_n(counter(t.mem, i), __ATOMIC_RELAXED))
				_exit(1);
		/* And what it writes stays there. */
		for (i = 0; i < 8; i++)
			*counter(t.mem, i) = 1ULL << 40;
		_exit(0);
	}
	i = wait_child(child, 10000);
	if (i)
		race_fail(racer, "the GPU of the parent wrote to memory of the child (%zx)", i);
	sleep_ms(30);
}

TEST_F(svm, fork_and_cow)
{
	size_t len = COUNTERS * page_size();

	counters_init(_metadata, self->gpu, map_small(len), len);
	count_against(_metadata, "fork", disturb_fork, 3, true);
}

TEST_F(svm, fork_and_cow_of_huge_pages)
{
	size_t len = 2 * huge_size();

	counters_init(_metadata, self->gpu, map_huge(len), len);
	count_against(_metadata, "fork", disturb_fork, 3, true);
}

/* Copied on write by either side, where a copy is a whole huge page of a pool. */
TEST_F(svm, fork_and_cow_of_hugetlb)
{
	size_t len = 2 * huge_size();
	char *mem;

	/* For the parent, the child, and what was not given back in time. */
	change_setting("/proc/sys/vm/nr_hugepages", "12");
	mem = mmap(NULL, len, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (mem == MAP_FAILED || read_key("/proc/meminfo", "HugePages_Free") < 10)
		SKIP(GPU_OK(gpu_fill(self->gpu, &len, 8, 1)); return, "no hugetlb pages");
	counters_init(_metadata, self->gpu, mem, len);
	count_against(_metadata, "fork", disturb_fork, 3, true);
}

static void disturb_pageout(struct racer *racer)
{
	size_t len;
	char *at = some_pages(racer, &len);

	if (madvise(at, len, MADV_PAGEOUT))
		race_fail(racer, "MADV_PAGEOUT: %s", strerror(errno));
	sleep_ms(5);
}

TEST_F(svm, madv_pageout)
{
	size_t len = COUNTERS * page_size();
	long long out = read_key("/proc/vmstat", "pswpout");

	ASSERT_TRUE(have_swap());
	counters_init(_metadata, self->gpu, map_small(len), len);
	count_against(_metadata, "MADV_PAGEOUT", disturb_pageout, 5, true);
	EXPECT_LT(out, read_key("/proc/vmstat", "pswpout"));
}

TEST_F(svm, madv_pageout_of_huge_pages)
{
	size_t len = 2 * huge_size();

	ASSERT_TRUE(have_swap());
	counters_init(_metadata, self->gpu, map_huge(len), len);
	count_against(_metadata, "MADV_PAGEOUT", disturb_pageout, 3, true);
}

/* Base pages become a huge one, a huge one becomes base pages, and again. */
static void disturb_collapse(struct racer *racer)
{
	size_t huge = huge_size();
	char *at = t.mem + race_random(racer) % (t.len / huge) * huge;

	if (racer->steps & 1) {
		madvise(at, huge, MADV_COLLAPSE);
	} else {
		/* What is in the huge page survives; new base pages come in between. */
		madvise(at + huge / 2, 4 * page_size(), MADV_PAGEOUT);
		write_text("/sys/kernel/debug/split_huge_pages", "%d,0x%lx,0x%lx", getpid(),
			   (unsigned long)at, (unsigned long)(at + huge));
	}
}

TEST_F(svm, madv_collapse_and_split)
{
	size_t len = 2 * huge_size();
	long long collapsed = read_key("/proc/vmstat", "thp_collapse_alloc");
	long long split = read_key("/proc/vmstat", "thp_split_page");

	counters_init(_metadata, self->gpu, map_huge(len), len);
	count_against(_metadata, "MADV_COLLAPSE", disturb_collapse, 4, true);
	EXPECT_LT(split, read_key("/proc/vmstat", "thp_split_page"));
	EXPECT_LT(collapsed, read_key("/proc/vmstat", "thp_collapse_alloc"));
}

/* The page table of a huge page is split, the page itself stays. */
static void disturb_split(struct racer *racer)
{
	size_t huge = huge_size(), page = page_size();
	char *at = t.mem + race_random(racer) % (t.len / huge) * huge;
	size_t first = race_random(racer) % (huge / page);

	if (mprotect(at + first * page, page, RW | PROT_EXEC) ||
	    mprotect(at, huge, RW))
		race_fail(racer, "mprotect: %s", strerror(errno));
	if (racer->steps % 4 == 3)
		madvise(at, huge, MADV_COLLAPSE);
}

TEST_F(svm, split_of_the_page_table)
{
	size_t len = 2 * huge_size();
	long long split = read_key("/proc/vmstat", "thp_split_pmd");

	counters_init(_metadata, self->gpu, map_huge(len), len);
	count_against(_metadata, "split", disturb_split, 5, true);
	EXPECT_LT(split, read_key("/proc/vmstat", "thp_split_pmd"));
}

static void disturb_mprotect(struct racer *racer)
{
	uint64_t seen[COUNTERS];
	size_t i;

	if (mprotect(t.mem, t.len, PROT_READ)) {
		race_fail(racer, "mprotect: %s", strerror(errno));
		return;
	}
	/* Read-only now, for the GPU as well. */
	for (i = 0; i < t.pages; i++)
		seen[i] = __atomic_load_n(counter(t.mem, i), __ATOMIC_RELAXED);
	sleep_ms(3);
	for (i = 0; i < t.pages; i++)
		if (seen[i] != __atomic_load_n(counter(t.mem, i), __ATOMIC_RELAXED))
			race_fail(racer, "counter %zu changed in read-only memory", i);
	if (mprotect(t.mem, t.len, RW))
		race_fail(racer, "mprotect: %s", strerror(errno));
	sleep_ms(3);
}

TEST_F(svm, mprotect)
{
	size_t len = COUNTERS * page_size();

	counters_init(_metadata, self->gpu, map_small(len), len);
	t.allowed = 1U << VSVM_REASON_ACCESS;
	count_against(_metadata, "mprotect", disturb_mprotect, 5, false);
	EXPECT_NE(0, t.refused);
}

static void disturb_mremap(struct racer *racer)
{
	char *target = t.places[t.now == t.places[0]];

	if (mremap(t.now, t.len, t.len, MREMAP_MAYMOVE | MREMAP_FIXED, target) != target) {
		race_fail(racer, "mremap: %s", strerror(errno));
		return;
	}
	__atomic_store_n(&t.now, target, __ATOMIC_RELEASE);
	sleep_ms(4);
}

/* The memory moves to and fro between two places; what is added at either is added to it. */
static void move(struct __test_metadata *_metadata, FIXTURE_DATA(svm) *self, char *mem,
		 size_t len, char *other)
{
	counters_init(_metadata, self->gpu, mem, len);
	t.allowed = 1U << VSVM_REASON_UNMAPPED;
	t.places[0] = mem;
	t.places[1] = other;
	count_against(_metadata, "mremap", disturb_mremap, 5, false);
}

TEST_F(svm, mremap)
{
	size_t len = COUNTERS * page_size();

	move(_metadata, self, map_small(len), len, map_small(len));
}

TEST_F(svm, mremap_of_huge_pages)
{
	size_t len = 2 * huge_size();

	move(_metadata, self, map_huge(len), len, map_huge(len));
}

/*
 * Memory that is replaced by new memory: all words of a generation are its number. `started` is
 * the generation that is being set up, `ready` the one that is there.
 */
static struct {
	int gpu;
	char *mem;
	size_t len;
	uint64_t started, ready;
	void *(*replace)(void *mem, size_t len);
	unsigned int seen_new, refused;
} g;

static void generation_next(struct racer *racer)
{
	uint64_t next = g.ready + 1, *word = (uint64_t *)g.mem;
	size_t i;

	__atomic_store_n(&g.started, next, __ATOMIC_SEQ_CST);
	if (g.replace(g.mem, g.len) != g.mem) {
		race_fail(racer, "no new memory: %s", strerror(errno));
		return;
	}
	for (i = 0; i < g.len / 8; i++)
		__atomic_store_n(&word[i], next, __ATOMIC_RELAXED);
	__atomic_store_n(&g.ready, next, __ATOMIC_SEQ_CST);
	if (racer->steps % 3)
		sleep_ms(2);
}

static void generation_read(struct racer *racer)
{
	static __thread uint64_t buf[512];
	size_t words = 64, span = g.len / 8 - words, i;
	size_t at = race_random(racer) % span;
	uint64_t ready = __atomic_load_n(&g.ready, __ATOMIC_SEQ_CST), started;
	int ret;

	ret = gpu_read_on(g.gpu, racer->id, g.mem + at * 8, buf, words * 8);
	started = __atomic_load_n(&g.started, __ATOMIC_SEQ_CST);
	if (ret == VSVM_REASON_UNMAPPED && started != ready) {
		__atomic_add_fetch(&g.refused, 1, __ATOMIC_RELAXED);
		return;
	}
	if (ret) {
		race_fail(racer, "%s", ret < 0 ? strerror(-ret) : gpu_reason(ret));
		return;
	}
	for (i = 0; i < words; i++) {
		/* Zero is new memory that was not written yet. */
		if (!buf[i] && started != ready)
			continue;
		if (buf[i] < ready || buf[i] > started) {
			race_fail(racer, "read generation %llu, not in %llu to %llu",
				  (unsigned long long)buf[i], (unsigned long long)ready,
				  (unsigned long long)started);
			return;
		}
		if (buf[i] > 2)
			__atomic_store_n(&g.seen_new, 1, __ATOMIC_RELAXED);
	}
}

static void generations(struct __test_metadata *_metadata, int gpu, char *mem, size_t len,
			void *(*replace)(void *, size_t))
{
	struct racer reader[2] = {
		{ .name = "queue 0", .step = generation_read, .min_steps = 10, .id = 0 },
		{ .name = "queue 1", .step = generation_read, .min_steps = 10, .id = 1 },
	};
	struct racer writer = { .name = "replace", .step = generation_next, .min_steps = 4 };
	struct racer guard = { .name = "canary", .step = canary, .min_steps = 2,
		.arg = map_small(64 * page_size()) };
	struct drm_vsvm_stats before, after;
	struct race race;
	const char *wrong;
	size_t i;

	ASSERT_NE(NULL, mem);
	mallopt(M_ARENA_MAX, 1);
	memset(&g, 0, sizeof(g));
	g.gpu = gpu;
	g.mem = mem;
	g.len = len;
	g.replace = replace;
	g.started = 1;
	g.ready = 1;
	for (i = 0; i < len / 8; i++)
		((uint64_t *)mem)[i] = 1;
	ASSERT_EQ(0, gpu_stats(gpu, &before));
	race_init(&race);
	race_add(&race, &reader[0]);
	race_add(&race, &reader[1]);
	race_add(&race, &writer);
	race_add(&race, &guard);
	wrong = race_run(&race);
	ASSERT_EQ(NULL, wrong)
		TH_LOG("%s", wrong);
	ASSERT_EQ(0, gpu_stats(gpu, &after));
	EXPECT_LT(before.invalidations, after.invalidations);
	EXPECT_NE(0, g.seen_new);
	TH_LOG("%llu generations, %llu reads, %u refused", (unsigned long long)writer.steps,
	       (unsigned long long)(reader[0].steps + reader[1].steps), g.refused);
}

static void *replace_munmap(void *mem, size_t len)
{
	if (munmap(mem, len))
		return NULL;
	return mmap(mem, len, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

static void *replace_over(void *mem, size_t len)
{
	return mmap(mem, len, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

static void *replace_dontneed(void *mem, size_t len)
{
	return madvise(mem, len, MADV_DONTNEED) ? NULL : mem;
}

static int hole_fd;

static void *replace_hole(void *mem, size_t len)
{
	return fallocate(hole_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, len) ? NULL : mem;
}

TEST_F(svm, munmap)
{
	size_t len = 32 * page_size();

	generations(_metadata, self->gpu, map_small(len), len, replace_munmap);
}

TEST_F(svm, munmap_of_a_part)
{
	size_t len = 96 * page_size();
	char *mem = map_small(len);

	/* The outer thirds stay, in the same ranges of the library. */
	pattern_fill(mem, len, 5);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, 5));
	generations(_metadata, self->gpu, mem + len / 3, len / 3, replace_munmap);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len / 3, 5));
	ASSERT_EQ(-1, pattern_check(mem, len / 3, 5));
}

TEST_F(svm, munmap_of_huge_pages)
{
	size_t len = huge_size();

	generations(_metadata, self->gpu, map_huge(len), len, replace_munmap);
}

TEST_F(svm, mmap_over)
{
	size_t len = 32 * page_size();

	generations(_metadata, self->gpu, map_small(len), len, replace_over);
}

TEST_F(svm, madv_dontneed)
{
	size_t len = 32 * page_size();

	generations(_metadata, self->gpu, map_small(len), len, replace_dontneed);
}

/*
 * Memory that is emptied without a pause, faster than it can be populated and mapped. A fault that
 * only tries again never wins; every one must.
 */
static void storm(struct racer *racer)
{
	unsigned int i;

	for (i = 0; i < 100 && !race_over(racer); i++)
		madvise(t.mem, t.len, MADV_DONTNEED);
}

static void write_in_storm(struct racer *racer)
{
	char *at = t.mem + race_random(racer) % (t.len / 8) * 8;
	int ret = gpu_fill_on(t.gpu, racer->id, at, 8, racer->steps);

	if (ret)
		race_fail(racer, "%s", ret < 0 ? strerror(-ret) : gpu_reason(ret));
}

TEST_F(svm, madv_dontneed_without_a_pause)
{
	struct racer writer[2] = {
		{ .name = "queue 0", .step = write_in_storm, .min_steps = 1, .id = 0 },
		{ .name = "queue 1", .step = write_in_storm, .min_steps = 1, .id = 1 },
	};
	struct racer disturber = { .name = "storm", .step = storm, .min_steps = 1 };
	size_t len = 2 * huge_size();
	uint64_t before = STAT(retries);
	struct race race;
	const char *wrong;

	counters_init(_metadata, self->gpu, map_small(len), len);
	race_init(&race);
	race_add(&race, &writer[0]);
	race_add(&race, &writer[1]);
	race_add(&race, &disturber);
	wrong = race_run(&race);
	ASSERT_EQ(NULL, wrong)
		TH_LOG("%s", wrong);
	TH_LOG("%llu writes, %llu lost races",
	       (unsigned long long)(writer[0].steps + writer[1].steps),
	       (unsigned long long)(STAT(retries) - before));
	/* The memory is as good as any. */
	GPU_OK(gpu_write_pattern(self->gpu, t.mem, len, 3));
	ASSERT_EQ(-1, pattern_check(t.mem, len, 3));
}

TEST_F(svm, madv_dontneed_of_huge_pages)
{
	size_t len = huge_size();

	generations(_metadata, self->gpu, map_huge(len), len, replace_dontneed);
}

/* Pages that nobody has written since are lost, or not, when memory is short. */
static void *replace_free(void *mem, size_t len)
{
	if (madvise(mem, len, MADV_FREE) || madvise(mem, len, MADV_PAGEOUT))
		return NULL;
	return mem;
}

TEST_F(svm, madv_free)
{
	size_t len = 32 * page_size();
	long long lost = read_key("/proc/vmstat", "pglazyfreed");

	generations(_metadata, self->gpu, map_small(len), len, replace_free);
	EXPECT_LT(lost, read_key("/proc/vmstat", "pglazyfreed"));
}

static void *replace_dontneed_locked(void *mem, size_t len)
{
	return madvise(mem, len, MADV_DONTNEED_LOCKED) ? NULL : mem;
}

TEST_F(svm, madv_dontneed_locked)
{
	size_t len = 32 * page_size();
	char *mem = map_small(len);

	ASSERT_EQ(0, mlock(mem, len));
	generations(_metadata, self->gpu, mem, len, replace_dontneed_locked);
}

TEST_F(svm, hole_in_a_file)
{
	size_t len = 32 * page_size();
	char *mem;

	hole_fd = temp_file(NULL, len);
	ASSERT_LE(0, hole_fd);
	mem = mmap(NULL, len, RW, MAP_SHARED, hole_fd, 0);
	ASSERT_NE(MAP_FAILED, mem);
	generations(_metadata, self->gpu, mem, len, replace_hole);
}

/* What the kernel did of its own accord, by /proc/vmstat: a step is over when it did more. */
static struct {
	const char *key;
	long long value;
} doings;

static void disturb_wait(struct racer *racer)
{
	long long now;

	do {
		sleep_ms(10);
		now = read_key("/proc/vmstat", doings.key);
	} while (now == doings.value && !race_over(racer));
	doings.value = now;
}

static void watch(const char *key)
{
	doings.key = key;
	doings.value = read_key("/proc/vmstat", key);
}

/* Another process pages the memory out, and looks at how it is mapped. */
static void meddle(pid_t pid)
{
	int pidfd = syscall(SYS_pidfd_open, pid, 0);
	struct iovec span = { .iov_base = t.mem, .iov_len = t.len };
	char path[64], text[4096];

	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	while (pidfd >= 0 && syscall(SYS_process_madvise, pidfd, &span, 1, MADV_PAGEOUT, 0) > 0 &&
	       read_text(path, text, sizeof(text)) > 0)
		sleep_ms(5);
	_exit(1);
}

TEST_F(svm, process_madvise_of_another_process)
{
	size_t len = COUNTERS * page_size();
	long long out = read_key("/proc/vmstat", "pswpout");
	pid_t child, me = getpid();

	ASSERT_TRUE(have_swap());
	counters_init(_metadata, self->gpu, map_small(len), len);
	child = fork();
	ASSERT_LE(0, child);
	if (!child)
		meddle(me);
	watch("pswpout");
	count_against(_metadata, "process_madvise", disturb_wait, 5, true);
	ASSERT_EQ(0, kill(child, SIGKILL));
	ASSERT_EQ(SIGKILL, wait_child(child, 10000));
	EXPECT_LT(out, read_key("/proc/vmstat", "pswpout"));
}

/* Memory that is wanted by others, in a group that has not enough for all. */
static char *ballast;
#define BALLAST (8 << 20)

static void disturb_pressure(struct racer *racer)
{
	size_t i, n = 64;

	for (i = 0; i < n; i++)
		ballast[(racer->steps * n + i) * page_size() % BALLAST] = i;
}

TEST_F(svm, memory_pressure)
{
	size_t len = COUNTERS * page_size();
	long long out = read_key("/proc/vmstat", "pswpout");

	ASSERT_TRUE(have_swap());
	counters_init(_metadata, self->gpu, map_small(len), len);
	ballast = map_small(BALLAST);
	if (limit_memory("gpusvm-race", BALLAST / 2 + (2 << 20)))
		SKIP(GPU_OK(gpu_fill(self->gpu, t.mem, 8, 1)); return, "no memory cgroup");
	count_against(_metadata, "memory pressure", disturb_pressure, 40, true);
	EXPECT_LT(out + 100, read_key("/proc/vmstat", "pswpout"));
}

/* Events that the kernel sends by itself, while the counters run. */

TEST_F(svm, khugepaged)
{
	size_t huge = huge_size(), len = 2 * huge, i;
	char *mem = map_huge(len);
	long long collapsed;

	change_setting("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", "10");
	change_setting("/sys/kernel/mm/transparent_hugepage/khugepaged/alloc_sleep_millisecs", "10");
	change_setting("/sys/kernel/mm/transparent_hugepage/khugepaged/pages_to_scan", "100000");
	/* Base pages in memory that wants huge ones. */
	ASSERT_EQ(0, madvise(mem, len, MADV_NOHUGEPAGE));
	for (i = 0; i < len; i += page_size())
		mem[i] = 1;
	counters_init(_metadata, self->gpu, mem, len);
	ASSERT_EQ(0, gpu_map_ahead(self->gpu, mem, len, VSVM_MAP_WRITE));
	watch("thp_collapse_alloc");
	collapsed = doings.value;
	ASSERT_EQ(0, madvise(mem, len, MADV_HUGEPAGE));
	count_against(_metadata, "khugepaged", disturb_wait, 1, true);
	EXPECT_LT(collapsed, read_key("/proc/vmstat", "thp_collapse_alloc"));
}

TEST_F(svm, numa_hints)
{
	size_t len = COUNTERS * page_size();
	long long updates = read_key("/proc/vmstat", "numa_pte_updates");
	const char *debug = "/sys/kernel/debug/sched/numa_balancing/";
	static const char * const files[] = { "scan_delay_ms", "scan_period_min_ms", "scan_period_max_ms" };
	char path[128];
	size_t i;

	if (!path_exists("/sys/devices/system/node/node1") || updates < 0)
		SKIP(GPU_OK(gpu_fill(self->gpu, &len, 8, 1)); return, "one NUMA node");
	ASSERT_EQ(0, change_setting("/proc/sys/kernel/numa_balancing", "1"));
	for (i = 0; i < 3; i++) {
		snprintf(path, sizeof(path), "%s%s", debug, files[i]);
		change_setting(path, "10");
	}
	counters_init(_metadata, self->gpu, map_small(len), len);
	watch("numa_pte_updates");
	count_against(_metadata, "NUMA hints", disturb_wait, 3, true);
	EXPECT_LT(updates, read_key("/proc/vmstat", "numa_pte_updates"));
}

/* Whatever can be moved moves to other places in physical memory. */
static void disturb_compact(struct racer *racer)
{
	write_text("/proc/sys/vm/compact_memory", "1");
	sleep_ms(5);
}

static void disturb_ksm(struct racer *racer)
{
	madvise(t.mem, t.len, racer->steps & 1 ? MADV_UNMERGEABLE : MADV_MERGEABLE);
	sleep_ms(20);
}

TEST_F(svm, ksm)
{
	size_t len = COUNTERS * page_size();

	if (change_setting("/sys/kernel/mm/ksm/run", "1"))
		SKIP(GPU_OK(gpu_fill(self->gpu, &len, 8, 1)); return, "no KSM");
	change_setting("/sys/kernel/mm/ksm/sleep_millisecs", "1");
	change_setting("/sys/kernel/mm/ksm/pages_to_scan", "1000");
	counters_init(_metadata, self->gpu, map_small(len), len);
	count_against(_metadata, "KSM", disturb_ksm, 5, true);
	change_setting("/sys/kernel/mm/ksm/run", "2");
}

/* Pages move to the other node of the machine and back. */
static void disturb_migrate(struct racer *racer)
{
	void *pages[COUNTERS];
	int nodes[COUNTERS], status[COUNTERS];
	size_t i;

	for (i = 0; i < COUNTERS; i++) {
		pages[i] = t.mem + i * page_size();
		nodes[i] = racer->steps & 1;
	}
	if (syscall(__NR_move_pages, 0, COUNTERS, pages, nodes, status, MPOL_MF_MOVE) < 0)
		race_fail(racer, "move_pages: %s", strerror(errno));
	sleep_ms(2);
}

TEST_F(svm, page_migration)
{
	size_t len = COUNTERS * page_size();
	long long moved = read_key("/proc/vmstat", "pgmigrate_success");

	if (!path_exists("/sys/devices/system/node/node1"))
		SKIP(GPU_OK(gpu_fill(self->gpu, &len, 8, 1)); return, "one NUMA node");
	counters_init(_metadata, self->gpu, map_small(len), len);
	count_against(_metadata, "move_pages", disturb_migrate, 5, true);
	EXPECT_LT(moved + COUNTERS, read_key("/proc/vmstat", "pgmigrate_success"));
}

static void disturb_soft_dirty(struct racer *racer)
{
	if (write_text("/proc/self/clear_refs", "4"))
		race_fail(racer, "clear_refs: %s", strerror(errno));
	sleep_ms(5);
}

TEST_F(svm, soft_dirty)
{
	size_t len = COUNTERS * page_size();

	counters_init(_metadata, self->gpu, map_small(len), len);
	count_against(_metadata, "clear_refs", disturb_soft_dirty, 5, true);
}

/* Somebody looks at everything that the library tells of itself, while it happens. */
#define DEBUGFS "/sys/kernel/debug/gpusvm"
#define TRACING "/sys/kernel/tracing"

static struct {
	int trace;
	uint64_t files, lines;
} looks;

static void look_at_file(struct racer *racer, const char *dir, const char *name)
{
	char path[400], line[256];
	FILE *file;

	snprintf(path, sizeof(path), DEBUGFS "/%s/%s", dir, name);
	file = fopen(path, "re");
	/* A mirror may end at any time. */
	if (!file)
		return;
	looks.files++;
	while (fgets(line, sizeof(line), file)) {
		looks.lines++;
		if (line[strlen(line) - 1] != '\n')
			race_fail(racer, "%s: \"%s\" is cut off", path, line);
	}
	fclose(file);
}

static void look(struct racer *racer)
{
	static const char *const name[] = { "ranges", "segments", "counters" };
	DIR *root = opendir(DEBUGFS);
	static char text[65536];
	struct dirent *entry;
	size_t i;
	int gpu;

	if (!root) {
		race_fail(racer, "no " DEBUGFS);
		return;
	}
	while ((entry = readdir(root)))
		for (i = 0; entry->d_name[0] != '.' && i < ARRAY_SIZE(name); i++)
			look_at_file(racer, entry->d_name, name[i]);
	closedir(root);
	if (looks.trace >= 0 && read(looks.trace, text, sizeof(text)) < 0 && errno != EAGAIN)
		race_fail(racer, "trace_pipe: %s", strerror(errno));
	/* Mirrors come and go meanwhile. */
	gpu = gpu_open(0);
	if (gpu < 0 || gpu_read(gpu, name, text, sizeof(name)))
		race_fail(racer, "another GPU does not work");
	close(gpu);
}

TEST_F(svm, looked_at)
{
	struct racer looker = { .name = "looker", .step = look, .min_steps = 5 };
	size_t len = 2 * huge_size();

	memset(&looks, 0, sizeof(looks));
	looks.trace = open(TRACING "/trace_pipe", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	change_setting(TRACING "/events/gpusvm/enable", "1");
	counters_init(_metadata, self->gpu, map_huge(len), len);
	count_against_two(_metadata, "page-out", disturb_pageout, 3, true, &looker);
	close(looks.trace);
	TH_LOG("%llu files, %llu lines", (unsigned long long)looks.files,
	       (unsigned long long)looks.lines);
	EXPECT_LT(20, looks.files);
	EXPECT_LT(looks.files, looks.lines);
}

/* Everything at once. */
static void disturb_all(struct racer *racer)
{
	static void (*const step[])(struct racer *) = {
		disturb_fork, disturb_pageout, disturb_collapse, disturb_split,
		disturb_soft_dirty, disturb_compact,
	};

	step[race_random(racer) % ARRAY_SIZE(step)](racer);
}

TEST_F_TIMEOUT(svm, everything, 60)
{
	size_t len = 2 * huge_size();

	counters_init(_metadata, self->gpu, map_huge(len), len);
	count_against(_metadata, "everything", disturb_all, 4, true);
}

TEST_HARNESS_MAIN
