// SPDX-License-Identifier: GPL-2.0
/*
 * Allocations and user copies that fail, one after the other at every place: the caller sees an
 * error or nothing at all, nothing is leaked, and the next try works.
 *
 * /proc/thread-self/fail-nth lets exactly the n-th call of this thread fail that can be made to
 * (failslab, fail_page_alloc, fail_usercopy), so that n = 1, 2, ... visits them all.
 */
#include "svm.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#define SEED_A 0xa11ce
#define SEED_B 0xb0b

/* More places than any operation has. */
#define NTH_MAX 3000

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
		{ "probability", "0" },
	};
	char path[128];
	size_t i, j;

	for (i = 0; i < ARRAY_SIZE(fault); i++) {
		for (j = 0; j < ARRAY_SIZE(setting); j++) {
			snprintf(path, sizeof(path), "/sys/kernel/debug/%s/%s", fault[i],
				 setting[j].file);
			write_text(path, "%s", setting[j].value);
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
	struct drm_vsvm_stats before, after;
	unsigned int refused;

	set_up_injection(_metadata);
	STATS(&before);
	t.mem = map_small(t.len);
	EXPECT_LT(3, fail_everywhere(_metadata, step_map_ahead, &t, &refused));
	EXPECT_NE(0, refused);
	GPU_OK(gpu_write_pattern(self->gpu, t.mem, t.len, SEED_A));
	ASSERT_EQ(-1, pattern_check(t.mem, t.len, SEED_A));
	ASSERT_EQ(0, munmap(t.mem, t.len));
	STATS(&after);
	EXPECT_EQ(before.mapped_bytes, after.mapped_bytes);
	EXPECT_EQ(before.segments, after.segments);
	EXPECT_EQ(before.leaves_4k, after.leaves_4k);
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
 * The GPU's own faults are resolved in a kernel thread of its queue; its allocations fail one by
 * one as well.
 */
static size_t engine_threads(pid_t *tid, size_t max)
{
	char path[32], text[32];
	size_t n = 0;
	pid_t pid;

	for (pid = 1; pid < 32768 && n < max; pid++) {
		snprintf(path, sizeof(path), "/proc/%d/comm", pid);
		if (read_text(path, text, sizeof(text)) > 0 && !strcmp(text, "vsvm\n"))
			tid[n++] = pid;
	}
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

/* Failures inside the driver's callbacks. */
TEST_F(svm, prepare_fails)
{
	struct drm_vsvm_stats before, after;
	size_t len = 4 * page_size();
	char *mem = map_small(len);

	NEED_DEBUG();
	pattern_fill(mem, len, SEED_A);
	STATS(&before);
	ASSERT_EQ(0, gpu_debug(self->gpu, VSVM_DEBUG_FAIL, VSVM_POINT_PREPARE, 1, 0));
	GPU_FAILS(VSVM_REASON_NO_MEMORY, gpu_fill(self->gpu, mem, 8, 1));
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_A));
	ASSERT_EQ(0, gpu_debug(self->gpu, VSVM_DEBUG_FAIL, VSVM_POINT_PREPARE, 1, 0));
	ASSERT_EQ(-ENOMEM, gpu_map_ahead(self->gpu, mem, len, 0));
	STATS(&after);
	EXPECT_EQ(before.injected + 2, after.injected);
	EXPECT_EQ(before.mapped_bytes, after.mapped_bytes);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
}

/* EAGAIN of the driver is no error but a reason to begin anew. */
TEST_F(svm, commit_is_retried)
{
	struct drm_vsvm_stats before, after;
	size_t len = 4 * page_size();
	char *mem = map_small(len);

	NEED_DEBUG();
	pattern_fill(mem, len, SEED_A);
	STATS(&before);
	ASSERT_EQ(0, gpu_debug(self->gpu, VSVM_DEBUG_FAIL, VSVM_POINT_COMMIT, 3, 0));
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	STATS(&after);
	EXPECT_EQ(before.injected + 3, after.injected);
	EXPECT_LE(before.retries + 3, after.retries);
}

/* A request has a bound on that; a fault of the engine waits, as hardware does. */
TEST_F(svm, commit_never_succeeds)
{
	uint64_t *mem = map_small(page_size());
	uint64_t start = now_ms(), seqno;
	struct drm_vsvm_stats before, after;
	struct list list = {};
	int ret;

	NEED_DEBUG();
	STATS(&before);
	ASSERT_EQ(0, gpu_debug(self->gpu, VSVM_DEBUG_FAIL, VSVM_POINT_COMMIT, 1ULL << 40, 0));
	ret = gpu_map_ahead(self->gpu, mem, page_size(), VSVM_MAP_WRITE);
	EXPECT_TRUE(ret == -ETIME || ret == -EAGAIN)
		TH_LOG("%s", strerror(-ret));
	EXPECT_GT(start + 15000, now_ms());
	STATS(&after);
	EXPECT_EQ(before.mapped_bytes, after.mapped_bytes);
	EXPECT_EQ(before.segments, after.segments);
	EXPECT_EQ(before.leaves_4k, after.leaves_4k);
	list_fill(&list, mem, 8, 1);
	ASSERT_EQ(0, gpu_submit(self->gpu, 0, &list, NULL, 0, &seqno));
	ASSERT_EQ(-ETIME, gpu_wait(self->gpu, 0, seqno, NULL, 0, 500, NULL));
	ASSERT_EQ(0, gpu_debug(self->gpu, VSVM_DEBUG_FAIL, VSVM_POINT_COMMIT, 0, 0));
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

/* A request has a bound on its retries; a fault of the engine waits, as hardware does. */
TEST_F(svm, storm_of_invalidations)
{
	struct storm s = { .mem = map_small(page_size()) };
	struct drm_vsvm_stats before, after;
	uint64_t start, seqno;
	struct list list = {};
	pthread_t thread;
	int ret;

	NEED_DEBUG();
	STATS(&before);
	ASSERT_EQ(0, gpu_debug(self->gpu, VSVM_DEBUG_DELAY, VSVM_POINT_WALKED, 200, 0));
	ASSERT_EQ(0, pthread_create(&thread, NULL, storm, &s));
	start = now_ms();
	ret = gpu_map_ahead(self->gpu, s.mem, page_size(), VSVM_MAP_WRITE);
	TH_LOG("map ahead ended after %llu ms", (unsigned long long)(now_ms() - start));
	EXPECT_TRUE(ret == -ETIME || ret == -EAGAIN)
		TH_LOG("%s", strerror(-ret));
	EXPECT_GT(start + 15000, now_ms());
	list_fill(&list, s.mem, 8, 1);
	ASSERT_EQ(0, gpu_submit(self->gpu, 0, &list, NULL, 0, &seqno));
	EXPECT_EQ(-ETIME, gpu_wait(self->gpu, 0, seqno, NULL, 0, 1500, NULL));
	__atomic_store_n(&s.over, true, __ATOMIC_RELAXED);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	GPU_OK(gpu_wait(self->gpu, 0, seqno, NULL, 0, 10000, NULL));
	ASSERT_EQ(1, *(uint64_t *)s.mem);
	STATS(&after);
	EXPECT_LT(before.retries + 5, after.retries);
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
	ASSERT_EQ(0, gpu_debug(other, VSVM_DEBUG_DELAY, VSVM_POINT_WALKED, 200, 0));
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

/* What the kernel has of a kind of object, by /proc/slabinfo. */
static long long objects(const char *cache)
{
	return read_key("/proc/slabinfo", cache);
}

static int one_life(bool fail)
{
	size_t len = 32 * page_size();
	char *mem = map_small(len);
	int gpu, ret = 0;

	gpu = gpu_open(0);
	if (gpu < 0)
		return 1;
	if (gpu_write_pattern(gpu, mem, len, SEED_A))
		ret = 2;
	mprotect(mem, len / 2, PROT_NONE);
	if (fail)
		gpu_fill(gpu, mem, 8, 1);
	if (fail && gpu_map_ahead(gpu, mem, len, 0) != -EFAULT)
		ret = 3;
	/* The memory goes before the descriptor, or after it, or both with the process. */
	if (fail)
		munmap(mem, len);
	if (!fail)
		close(gpu);
	return ret;
}

/* Nothing is left of address spaces that are gone: no mm, no file, no IOVA, no slab memory. */
TEST_F_TIMEOUT(svm, nothing_is_left, 120)
{
	static const char *const cache[] = { "mm_struct", "filp", "iommu_iova", "vm_area_struct" };
	long long before[ARRAY_SIZE(cache)], slab, after;
	const unsigned int lives = 150;
	unsigned int i, round;
	uint64_t word;

	/* The first round warms caches up. */
	for (round = 0; round < 2; round++) {
		for (i = 0; i < ARRAY_SIZE(cache); i++)
			before[i] = objects(cache[i]);
		slab = read_key("/proc/meminfo", "SUnreclaim");
		for (i = 0; i < lives; i++) {
			pid_t child = fork();

			ASSERT_LE(0, child);
			if (!child)
				_exit(one_life(i & 1));
			ASSERT_EQ(0, wait_child(child, 10000));
		}
		/* What is freed after a grace period or by a work item. */
		sleep_ms(500);
	}
	for (i = 0; i < ARRAY_SIZE(cache); i++) {
		after = objects(cache[i]);
		TH_LOG("%s: %lld objects, before %lld", cache[i], after, before[i]);
		EXPECT_GT(before[i] + lives / 2, after);
	}
	after = read_key("/proc/meminfo", "SUnreclaim");
	TH_LOG("slab: %lld KiB, before %lld", after, slab);
	/* Less than 4 KiB for each life. */
	EXPECT_GT(slab + 4 * lives, after);
	GPU_OK(gpu_fill(self->gpu, &word, 8, 1));
}

TEST_HARNESS_MAIN
