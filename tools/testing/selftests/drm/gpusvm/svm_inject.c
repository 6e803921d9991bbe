// SPDX-License-Identifier: GPL-2.0
/*
 * Allocations and user copies that fail, one after the other at every place: the caller sees an
 * error or nothing at all, nothing is leaked, and the next try works.
 *
 * /proc/thread-self/fail-nth lets exactly the n-th call of this thread fail that can be made to
 * (failslab, fail_page_alloc, fail_usercopy), so that n = 1, 2, ... visits them all.
 */
#include "svm.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#define SEED_A 0xa11ce
#define SEED_B 0xb0b

/* More places than any operation has. */
#define NTH_MAX 3000

/* Processes after which a leak would show. */
#define LIVES 200

static int nth_fd;

static void set_up_injection(struct __test_metadata *_metadata)
{
	static const char *const fault[] = { "failslab", "fail_page_alloc", "fail_usercopy" };
	static const struct {
		const char *file;
		const char *value;
	} setting[] = {
		{ "ignore-gfp-wait", "N" }, { "ignore-gfp-highmem", "N" }, { "min-order", "0" },
		{ "cache-filter", "N" }, { "verbose", "0" }, { "task-filter", "Y" },
		{ "probability", "0" }, { "times", "-1" },
	};
	char path[128];
	size_t i, j;

	for (i = 0; i < ARRAY_SIZE(fault); i++) {
		for (j = 0; j < ARRAY_SIZE(setting); j++) {
			snprintf(path, sizeof(path), "/sys/kernel/debug/%s/%s", fault[i],
				 setting[j].file);
			change_setting(path, "%s", setting[j].value);
		}
	}
	nth_fd = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, nth_fd)
		TH_LOG("the kernel has no fault injection");
}

/* This write can be what fails: then nothing else will any more. */
static void no_nth(void)
{
	while (pwrite(nth_fd, "0", 1, 0) != 1)
		;
}

/*
 * Run `step` with its n-th allocation or copy failing, for n = 1, 2, ... until it needs less.
 * Returns the number of failures that were injected; `refused` counts how often `step` noticed.
 */
static unsigned int fail_everywhere(struct __test_metadata *_metadata,
				    int (*step)(void *), void *arg, unsigned int *refused)
{
	unsigned int n, left, reason[256] = {};
	char text[16];
	ssize_t len;
	int ret;

	*refused = 0;
	for (n = 1; n < NTH_MAX; n++) {
		len = snprintf(text, sizeof(text), "%u", n);
		/* Neither of these writes and reads allocates. */
		ASSERT_EQ(len, pwrite(nth_fd, text, len, 0));
		ret = step(arg);
		len = pread(nth_fd, text, sizeof(text) - 1, 0);
		if (len < 0)
			break;
		text[len] = '\0';
		left = strtoul(text, NULL, 10);
		no_nth();
		ASSERT_TRUE(ret == 0 || ret == -ENOMEM || ret == -EFAULT || ret == -EAGAIN ||
			    ret == -EINTR || ret == -EIO || ret == -ETIME)
			TH_LOG("failure %u: %s", n, ret > 0 ? gpu_reason(ret) : strerror(-ret));
		if (left) {
			/* This one needs fewer calls than n; it must have worked. */
			ASSERT_EQ(0, ret);
			break;
		}
		*refused += ret != 0;
		reason[-ret]++;
	}
	no_nth();
	ASSERT_GT(NTH_MAX, n);
	TH_LOG("%u failures injected, %u noticed by the caller", n - 1, *refused);
	for (left = 1; left < ARRAY_SIZE(reason); left++)
		if (reason[left])
			TH_LOG("  %u: %s", reason[left], strerror(left));
	return n - 1;
}

/* Nothing is mapped for the GPU that was not before. */
#define NOTHING_NEW(before) do { \
	struct drm_vsvm_stats _now; \
	STATS(&_now); \
	EXPECT_EQ((before)->mapped_bytes, _now.mapped_bytes); \
	EXPECT_EQ((before)->segments, _now.segments); \
	EXPECT_EQ((before)->leaves_4k, _now.leaves_4k); \
	EXPECT_EQ((before)->leaves_2m, _now.leaves_2m); \
} while (0)

struct target {
	int gpu;
	char *mem;
	size_t len;
	unsigned int flags;
};

static int step_map_ahead(void *arg)
{
	struct target *t = arg;
	struct drm_vsvm_map_ahead map = {
		.addr = (uintptr_t)t->mem, .len = t->len, .flags = t->flags,
	};
	int ret = ioctl(t->gpu, DRM_IOCTL_VSVM_MAP_AHEAD, &map) ? -errno : 0;

	/* From the beginning for the next one; an madvise that fails is tried again. */
	while (syscall(SYS_madvise, t->mem, t->len, MADV_DONTNEED) && errno != EINVAL)
		;
	return ret;
}

TEST_F_TIMEOUT(svm, map_ahead, 120)
{
	struct target t = { .gpu = self->gpu, .len = 8 * page_size(), .flags = VSVM_MAP_WRITE };
	struct drm_vsvm_stats before;
	unsigned int refused;

	set_up_injection(_metadata);
	STATS(&before);
	t.mem = map_small(t.len);
	EXPECT_LT(3, fail_everywhere(_metadata, step_map_ahead, &t, &refused));
	EXPECT_NE(0, refused);
	GPU_OK(gpu_write_pattern(self->gpu, t.mem, t.len, SEED_A));
	ASSERT_EQ(-1, pattern_check(t.mem, t.len, SEED_A));
	ASSERT_EQ(0, munmap(t.mem, t.len));
	NOTHING_NEW(&before);
}

/* A range that did not exist before: at a new place each time. */
static int step_map_ahead_elsewhere(void *arg)
{
	struct target *t = arg;
	struct drm_vsvm_map_ahead map = { .addr = (uintptr_t)t->mem, .len = t->len };
	int ret = ioctl(t->gpu, DRM_IOCTL_VSVM_MAP_AHEAD, &map) ? -errno : 0;

	t->mem += huge_size();
	return ret;
}

TEST_F_TIMEOUT(svm, map_ahead_of_new_ranges, 120)
{
	size_t room = 1500 * huge_size();
	struct target t = { .gpu = self->gpu, .len = page_size() };
	unsigned int refused;
	char *mem;

	set_up_injection(_metadata);
	mem = mmap(NULL, room, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, mem);
	madvise(mem, room, MADV_NOHUGEPAGE);
	t.mem = mem;
	EXPECT_LT(3, fail_everywhere(_metadata, step_map_ahead_elsewhere, &t, &refused));
	EXPECT_NE(0, refused);
	ASSERT_GT(mem + room, t.mem);
	GPU_OK(gpu_fill(self->gpu, mem, 8, 1));
	ASSERT_EQ(0, munmap(mem, room));
}

static int step_map_ahead_huge(void *arg)
{
	struct target *t = arg;
	struct drm_vsvm_map_ahead map = {
		.addr = (uintptr_t)t->mem, .len = t->len, .flags = VSVM_MAP_WRITE,
	};
	int ret = ioctl(t->gpu, DRM_IOCTL_VSVM_MAP_AHEAD, &map) ? -errno : 0;

	/* The pages stay, the mapping goes. */
	while (syscall(SYS_mprotect, t->mem, t->len, PROT_READ))
		;
	while (syscall(SYS_mprotect, t->mem, t->len, RW))
		;
	return ret;
}

TEST_F_TIMEOUT(svm, map_ahead_of_huge_pages, 120)
{
	struct target t = { .gpu = self->gpu, .len = 2 * huge_size() };
	unsigned int refused;

	t.mem = map_huge(t.len);
	ASSERT_NE(NULL, t.mem);
	pattern_fill(t.mem, t.len, SEED_A);
	set_up_injection(_metadata);
	fail_everywhere(_metadata, step_map_ahead_huge, &t, &refused);
	GPU_OK(gpu_check_pattern(self->gpu, t.mem, t.len, SEED_A));
	ASSERT_EQ(-1, pattern_check(t.mem, t.len, SEED_A));
}

static int step_submit(void *arg)
{
	struct target *t = arg;
	static char data[256];
	struct drm_vsvm_command cmd = {
		.op = VSVM_OP_STORE, .addr = (uintptr_t)t->mem, .len = sizeof(data),
	};
	struct drm_vsvm_submit submit = {
		.commands = (uintptr_t)&cmd,
		.num_commands = 1,
		.data = (uintptr_t)data,
		.data_size = sizeof(data),
		.queue = 1,
	};
	struct drm_vsvm_wait wait = {
		.timeout_ns = 10000000000LL,
		.data = (uintptr_t)data,
		.data_size = sizeof(data),
		.queue = 1,
	};
	int ret;

	if (ioctl(t->gpu, DRM_IOCTL_VSVM_SUBMIT, &submit)) {
		ret = -errno;
		/* It may have been queued, and only its number got lost on the way back. */
		wait.seqno = submit.seqno;
		return ret;
	}
	wait.seqno = submit.seqno;
	if (!ioctl(t->gpu, DRM_IOCTL_VSVM_WAIT, &wait))
		return wait.status == VSVM_STATUS_DONE ? 0 : -EPROTO;
	ret = -errno;
	/* A failed fetch must not lose the data. */
	if (ioctl(t->gpu, DRM_IOCTL_VSVM_WAIT, &wait))
		return errno == ENODATA ? ret : -errno;
	return ret;
}

TEST_F_TIMEOUT(svm, submit_and_wait, 120)
{
	struct target t = { .gpu = self->gpu, .mem = map_small(page_size()) };
	struct drm_vsvm_queue state = { .queue = 1 };
	unsigned int refused;

	GPU_OK(gpu_fill(self->gpu, t.mem, 8, 1));
	set_up_injection(_metadata);
	EXPECT_LT(3, fail_everywhere(_metadata, step_submit, &t, &refused));
	EXPECT_NE(0, refused);
	ASSERT_EQ(0, gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_QUEUE, &state));
	EXPECT_EQ(0, state.stopped);
	GPU_OK(gpu_write_pattern(self->gpu, t.mem, page_size(), SEED_A));
	ASSERT_EQ(-1, pattern_check(t.mem, page_size(), SEED_A));
}

static const char *node;

static int step_open(void *arg)
{
	int gpu = open(node, O_RDWR | O_CLOEXEC);

	if (gpu < 0)
		return -errno;
	close(gpu);
	return 0;
}

TEST_F_TIMEOUT(svm, open_and_close, 120)
{
	uint64_t word = 0;
	unsigned int refused;
	int gpu;

	node = gpu_path(0);
	ASSERT_NE(NULL, node);
	set_up_injection(_metadata);
	EXPECT_LT(3, fail_everywhere(_metadata, step_open, NULL, &refused));
	EXPECT_NE(0, refused);
	gpu = gpu_open(0);
	ASSERT_LE(0, gpu);
	GPU_OK(gpu_fill(gpu, &word, 8, 3));
	ASSERT_EQ(3, word);
	close(gpu);
	GPU_OK(gpu_fill(self->gpu, &word, 8, 4));
}

/* An event while its memory is short: an invalidation must not need any. */
static int step_events(void *arg)
{
	struct target *t = arg;
	int ret = 0;

	/* The middle third: the mapping is split, which takes memory, and joined again. */
	if (syscall(SYS_mprotect, t->mem + t->len / 3, t->len / 3, PROT_READ))
		ret = -errno;
	else if (syscall(SYS_mprotect, t->mem + t->len / 3, t->len / 3, RW))
		ret = -errno;
	return ret;
}

TEST_F_TIMEOUT(svm, events, 120)
{
	struct target t = { .gpu = self->gpu, .len = 9 * page_size() };
	unsigned int refused;

	t.mem = map_small(t.len);
	pattern_fill(t.mem, t.len, SEED_A);
	set_up_injection(_metadata);
	GPU_OK(gpu_check_pattern(self->gpu, t.mem, t.len, SEED_A));
	EXPECT_LT(0, fail_everywhere(_metadata, step_events, &t, &refused));
	ASSERT_EQ(0, mprotect(t.mem, t.len, RW));
	GPU_OK(gpu_write_pattern(self->gpu, t.mem, t.len, SEED_B));
	ASSERT_EQ(-1, pattern_check(t.mem, t.len, SEED_B));
}

/*
 * The GPU's own faults are resolved in a kernel thread of its queue. All of these that there are;
 * those of this test, if nobody else has a GPU.
 */
static size_t engine_threads(pid_t *tid, size_t max)
{
	DIR *proc = opendir("/proc");
	char path[300], text[32];
	struct dirent *entry;
	size_t n = 0;

	if (!proc)
		return 0;
	while (n < max && (entry = readdir(proc))) {
		snprintf(path, sizeof(path), "/proc/%s/comm", entry->d_name);
		if (atoi(entry->d_name) > 0 && read_text(path, text, sizeof(text)) > 0 &&
		    !strcmp(text, "vsvm\n"))
			tid[n++] = atoi(entry->d_name);
	}
	closedir(proc);
	return n;
}

static void set_nth(pid_t tid, unsigned int n)
{
	char path[48];

	snprintf(path, sizeof(path), "/proc/%d/fail-nth", tid);
	write_text(path, "%u", n);
}

static unsigned int get_nth(pid_t tid)
{
	char path[48], text[16] = "0";

	snprintf(path, sizeof(path), "/proc/%d/fail-nth", tid);
	read_text(path, text, sizeof(text));
	return strtoul(text, NULL, 10);
}

/* Its allocations fail one by one. */
TEST_F_TIMEOUT(svm, faults_of_the_engine, 120)
{
	unsigned int n, reason[32] = {}, i;
	size_t len = 8 * page_size(), count;
	char *mem = map_small(len);
	struct drm_vsvm_stats before, after;
	pid_t tid[64], mine = 0;
	int ret;

	set_up_injection(_metadata);
	/* The thread comes with the first list. */
	GPU_OK(gpu_fill(self->gpu, &n, sizeof(n), 0));
	count = engine_threads(tid, ARRAY_SIZE(tid));
	ASSERT_LE(1, count);
	/* Which one is that of queue 0? The one that allocates when it has a fault. */
	for (i = 0; i < count; i++)
		set_nth(tid[i], 1000000);
	GPU_OK(gpu_fill(self->gpu, mem, len, 0));
	for (i = 0; i < count; i++) {
		if (get_nth(tid[i]) != 1000000)
			mine = tid[i];
		set_nth(tid[i], 0);
	}
	ASSERT_NE(0, mine);

	STATS(&before);
	for (n = 1; n < NTH_MAX; n++) {
		ASSERT_EQ(0, madvise(mem, len, MADV_DONTNEED));
		set_nth(mine, n);
		ret = gpu_fill(self->gpu, mem, len, n);
		i = get_nth(mine);
		set_nth(mine, 0);
		ASSERT_LE(0, ret);
		if (i) {
			ASSERT_EQ(0, ret);
			break;
		}
		reason[ret % ARRAY_SIZE(reason)]++;
		if (!ret)
			ASSERT_EQ(n, *(uint64_t *)(mem + len - 8));
		/* The queue was restarted, and goes on. */
		GPU_OK(gpu_fill(self->gpu, mem, 8, 1));
	}
	ASSERT_GT(NTH_MAX, n);
	EXPECT_LT(1, n);
	for (i = 0; i < ARRAY_SIZE(reason); i++)
		if (reason[i])
			TH_LOG("%u failures: %s", reason[i], gpu_reason(i));
	/* Memory that is short is not the user's mistake. */
	EXPECT_EQ(n - 1, reason[VSVM_REASON_NONE] + reason[VSVM_REASON_NO_MEMORY]);
	ASSERT_EQ(0, munmap(mem, len));
	STATS(&after);
	EXPECT_EQ(0, after.mapped_bytes - before.mapped_bytes + len);
}

/*
 * Allocations in all threads of the engine fail by chance, while they add to counters in memory that
 * is taken away from them all the time: what was reported as done is done, once.
 */
TEST_F_TIMEOUT(svm, faults_of_the_engine_by_chance, 60)
{
	static const char *const fault[] = { "failslab", "fail_page_alloc" };
	size_t page = page_size(), len = 8 * page, i, count;
	uint64_t seqno[VSVM_QUEUES], want[8] = {}, end = now_ms() + 15000, done = 0, failed = 0;
	char *mem = map_small(len), path[64];
	struct drm_vsvm_error error;
	struct list list = {};
	unsigned int q, n;
	pid_t tid[64];
	int ret;

	set_up_injection(_metadata);
	memset(mem, 0, len);
	for (i = 0; i < LIST_MAX; i++)
		list_add(&list, mem + i % 8 * page, 8, 1);
	for (q = 0; q < VSVM_QUEUES; q++)
		GPU_OK(gpu_fill_on(self->gpu, q, &i, sizeof(i), 0));
	count = engine_threads(tid, ARRAY_SIZE(tid));
	ASSERT_EQ(VSVM_QUEUES, count);
	for (i = 0; i < count; i++) {
		snprintf(path, sizeof(path), "/proc/%d/make-it-fail", tid[i]);
		ASSERT_EQ(0, write_text(path, "1"));
	}
	for (i = 0; i < ARRAY_SIZE(fault); i++) {
		snprintf(path, sizeof(path), "/sys/kernel/debug/%s/probability", fault[i]);
		ASSERT_EQ(0, change_setting(path, "5"));
	}
	while ((done < 50 || failed < 20) && now_ms() < end) {
		for (q = 0; q < VSVM_QUEUES; q++)
			ASSERT_EQ(0, gpu_submit(self->gpu, q, &list, NULL, 0, &seqno[q]));
		/* The pages stay, the GPU has to fault. */
		ASSERT_EQ(0, mprotect(mem, len, PROT_READ));
		ASSERT_EQ(0, mprotect(mem, len, RW));
		for (q = 0; q < VSVM_QUEUES; q++) {
			ret = gpu_wait(self->gpu, q, seqno[q], NULL, 0, 20000, &error);
			n = ret ? error.command : list.count;
			/* While it was read-only, nobody could write either. */
			ASSERT_TRUE(ret == 0 || ret == VSVM_REASON_NO_MEMORY ||
				    ret == VSVM_REASON_DMA || ret == VSVM_REASON_ACCESS)
				TH_LOG("%s", ret < 0 ? strerror(-ret) : gpu_reason(ret));
			for (i = 0; i < n; i++)
				want[i % 8]++;
			done += !ret;
			failed += ret == VSVM_REASON_NO_MEMORY || ret == VSVM_REASON_DMA;
			ASSERT_EQ(0, gpu_reset(self->gpu, q));
		}
	}
	for (i = 0; i < ARRAY_SIZE(fault); i++) {
		snprintf(path, sizeof(path), "/sys/kernel/debug/%s/probability", fault[i]);
		ASSERT_EQ(0, change_setting(path, "0"));
	}
	TH_LOG("%llu lists done, %llu failed", (unsigned long long)done,
	       (unsigned long long)failed);
	EXPECT_LE(50, done);
	EXPECT_LE(20, failed);
	for (i = 0; i < 8; i++)
		EXPECT_EQ(want[i], *(uint64_t *)(mem + i * page));
	for (q = 0; q < VSVM_QUEUES; q++)
		GPU_OK(gpu_fill_on(self->gpu, q, mem, len, q));
}

/* Failures inside the driver's callbacks. */
TEST_F(svm, prepare_fails)
{
	struct drm_vsvm_stats before;
	size_t len = 4 * page_size();
	char *mem = map_small(len);

	NEED_DEBUG();
	pattern_fill(mem, len, SEED_A);
	STATS(&before);
	DEBUG(FAIL, PREPARE, 1);
	GPU_FAILS(VSVM_REASON_NO_MEMORY, gpu_fill(self->gpu, mem, 8, 1));
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_A));
	DEBUG(FAIL, PREPARE, 1);
	ASSERT_EQ(-ENOMEM, gpu_map_ahead(self->gpu, mem, len, 0));
	EXPECT_EQ(before.injected + 2, STAT(injected));
	NOTHING_NEW(&before);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
}

/* EAGAIN of the driver is no error but a reason to begin anew. */
TEST_F(svm, commit_is_retried)
{
	struct drm_vsvm_stats before;
	size_t len = 4 * page_size();
	char *mem = map_small(len);

	NEED_DEBUG();
	pattern_fill(mem, len, SEED_A);
	STATS(&before);
	DEBUG(FAIL, COMMIT, 3);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	EXPECT_EQ(before.injected + 3, STAT(injected));
	EXPECT_LE(before.retries + 3, STAT(retries));
}

/* A request has a bound on that; a fault of the engine waits, as hardware does. */
TEST_F(svm, commit_never_succeeds)
{
	uint64_t *mem = map_small(page_size());
	uint64_t start = now_ms(), seqno;
	struct drm_vsvm_stats before;
	struct list list = {};
	int ret;

	NEED_DEBUG();
	STATS(&before);
	DEBUG(FAIL, COMMIT, 1ULL << 40);
	ret = gpu_map_ahead(self->gpu, mem, page_size(), VSVM_MAP_WRITE);
	EXPECT_TRUE(ret == -ETIME || ret == -EAGAIN)
		TH_LOG("%s", strerror(-ret));
	EXPECT_GT(start + 15000, now_ms());
	NOTHING_NEW(&before);
	list_fill(&list, mem, 8, 1);
	ASSERT_EQ(0, gpu_submit(self->gpu, 0, &list, NULL, 0, &seqno));
	ASSERT_EQ(-ETIME, gpu_wait(self->gpu, 0, seqno, NULL, 0, 500, NULL));
	DEBUG(FAIL, COMMIT, 0);
	GPU_OK(gpu_wait(self->gpu, 0, seqno, NULL, 0, 10000, NULL));
	ASSERT_EQ(1, *mem);
}

/* A thread that changes the memory all the time, faster than a delayed fault can follow. */
struct storm {
	char *mem;
	bool over;
};

static void *storm(void *arg)
{
	struct storm *s = arg;

	while (!__atomic_load_n(&s->over, __ATOMIC_RELAXED)) {
		madvise(s->mem, page_size(), MADV_DONTNEED);
		*(volatile char *)s->mem = 0;
		sleep_ms(2);
	}
	return NULL;
}

/*
 * Forward progress: a fault that loses each race holds the address space still in the end, and wins.
 * The delay makes sure that it does lose: the storm hits many times between a walk and its commit.
 */
TEST_F(svm, storm_of_invalidations)
{
	struct storm s = { .mem = map_small(page_size()) };
	struct drm_vsvm_stats before, after;
	struct list list = {};
	pthread_t thread;
	uint64_t seqno;

	NEED_DEBUG();
	STATS(&before);
	ASSERT_EQ(0, gpu_debug(self->gpu, VSVM_DEBUG_DELAY, VSVM_POINT_WALKED, 200, 0));
	ASSERT_EQ(0, pthread_create(&thread, NULL, storm, &s));
	/* It has a deadline of a second, in which it can lose five times. */
	EXPECT_EQ(0, gpu_map_ahead(self->gpu, s.mem, page_size(), VSVM_MAP_WRITE));
	STATS(&after);
	EXPECT_LT(before.retries, after.retries);
	/* The engine has no deadline. */
	list_fill(&list, s.mem, 8, 1);
	ASSERT_EQ(0, gpu_submit(self->gpu, 0, &list, NULL, 0, &seqno));
	GPU_OK(gpu_wait(self->gpu, 0, seqno, NULL, 0, 20000, NULL));
	__atomic_store_n(&s.over, true, __ATOMIC_RELAXED);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	ASSERT_EQ(0, gpu_debug(self->gpu, VSVM_DEBUG_DELAY, VSVM_POINT_WALKED, 0, 0));
	GPU_OK(gpu_fill(self->gpu, s.mem, 8, 1));
	ASSERT_EQ(1, *(uint64_t *)s.mem);
}

/* The descriptor is closed while a fault is retried without end. */
TEST_F(svm, closed_in_a_storm)
{
	struct storm s = { .mem = map_small(page_size()) };
	int other = gpu_open(0);
	struct list list = {};
	uint64_t seqno, start;
	pthread_t thread;

	NEED_DEBUG();
	ASSERT_LE(0, other);
	ASSERT_EQ(0, gpu_debug(other, VSVM_DEBUG_DELAY, VSVM_POINT_WALKED, 1000, 0));
	ASSERT_EQ(0, pthread_create(&thread, NULL, storm, &s));
	list_fill(&list, s.mem, 8, 1);
	ASSERT_EQ(0, gpu_submit(other, 0, &list, NULL, 0, &seqno));
	ASSERT_EQ(-ETIME, gpu_wait(other, 0, seqno, NULL, 0, 300, NULL));
	start = now_ms();
	ASSERT_EQ(0, close(other));
	EXPECT_GT(start + 10000, now_ms());
	__atomic_store_n(&s.over, true, __ATOMIC_RELAXED);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	ASSERT_EQ(0, *(uint64_t *)s.mem);
	GPU_OK(gpu_fill(self->gpu, s.mem, 8, 2));
}

/* What there is of something in the kernel, and how much more of it says nothing. */
static const struct {
	const char *file;
	const char *key;
	unsigned int slack;
} stock[] = {
	{ "/proc/slabinfo", "mm_struct", LIVES / 8 },
	{ "/proc/slabinfo", "task_struct", LIVES / 8 },
	{ "/proc/slabinfo", "filp", LIVES / 4 },
	{ "/proc/slabinfo", "vm_area_struct", LIVES / 2 },
	{ "/proc/slabinfo", "iommu_iova", LIVES / 2 },
	/* Kilobytes. */
	{ "/proc/meminfo", "SUnreclaim", LIVES / 2 },
	{ "/proc/meminfo", "VmallocUsed", LIVES / 2 },
	{ "/proc/meminfo", "KernelStack", LIVES / 2 },
	{ "/proc/meminfo", "PageTables", LIVES / 2 },
	{ "/proc/meminfo", "Percpu", LIVES / 2 },
};

static void take_stock(struct __test_metadata *_metadata, long long *value)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(stock); i++) {
		value[i] = read_key(stock[i].file, stock[i].key);
		ASSERT_LE(0, value[i])
			TH_LOG("%s has no %s", stock[i].file, stock[i].key);
	}
}

static bool more_than(const long long *before)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(stock); i++)
		if (read_key(stock[i].file, stock[i].key) > before[i] + stock[i].slack)
			return true;
	return false;
}

/* A life in which the n-th allocation of an open, or of an engine, fails. */
static int life_with_failures(unsigned int n, bool in_engine)
{
	char *mem = map_small(page_size());
	pid_t tid[64];
	size_t count;
	int gpu, ret;

	if (!in_engine) {
		set_nth(getpid(), n);
		gpu = gpu_open(0);
		set_nth(getpid(), 0);
		if (gpu < 0)
			return gpu == -ENOMEM || gpu == -EFAULT || gpu == -ENODEV ? 0 : 11;
	} else {
		gpu = gpu_open(0);
		if (gpu < 0 || gpu_fill(gpu, mem, 8, 1))
			return 12;
		count = engine_threads(tid, ARRAY_SIZE(tid));
		munmap(mem, page_size());
		mem = map_small(page_size());
		while (count--)
			set_nth(tid[count], n);
	}
	ret = gpu_fill(gpu, mem, page_size(), n);
	return ret == 0 || ret == VSVM_REASON_NO_MEMORY ? 0 : 13;
}

static int one_life(unsigned int n)
{
	size_t len = 32 * page_size();
	bool fail = n & 1;
	char *mem;
	int gpu;

	if (n & 2)
		return life_with_failures(n / 4 % 70 + 1, fail);
	mem = map_small(len);
	gpu = gpu_open(0);
	if (gpu < 0)
		return 1;
	if (gpu_write_pattern(gpu, mem, len, SEED_A))
		return 2;
	mprotect(mem, len / 2, PROT_NONE);
	if (fail)
		gpu_fill(gpu, mem, 8, 1);
	if (fail && gpu_map_ahead(gpu, mem, len, 0) != -EFAULT)
		return 3;
	/* The memory goes before the descriptor, or after it, or both with the process. */
	if (fail)
		munmap(mem, len);
	if (!fail)
		close(gpu);
	return 0;
}

/*
 * Nothing is left of address spaces that are gone, whatever failed in their lives: no mm, no thread,
 * no file, no IOVA, no memory.
 */
TEST_F_TIMEOUT(svm, nothing_is_left, 240)
{
	long long before[ARRAY_SIZE(stock)];
	unsigned int i, round;
	uint64_t word;
	pid_t child;

	set_up_injection(_metadata);
	/* The first round warms caches up. */
	for (round = 0; round < 2; round++) {
		take_stock(_metadata, before);
		for (i = 0; i < LIVES; i++) {
			child = fork();
			ASSERT_LE(0, child);
			if (!child)
				_exit(one_life(i));
			ASSERT_EQ(0, wait_child(child, 10000));
		}
	}
	/* Some of it is freed after a grace period or by a work item. */
	wait_for(!more_than(before), 10000);
	for (i = 0; i < ARRAY_SIZE(stock); i++) {
		long long now = read_key(stock[i].file, stock[i].key);

		TH_LOG("%s: %lld, before %lld", stock[i].key, now, before[i]);
		EXPECT_GE(before[i] + stock[i].slack, now);
	}
	GPU_OK(gpu_fill(self->gpu, &word, 8, 1));
}

TEST_HARNESS_MAIN
