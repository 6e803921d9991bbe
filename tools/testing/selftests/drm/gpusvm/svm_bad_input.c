// SPDX-License-Identifier: GPL-2.0
/*
 * Arguments that are wrong, for every ioctl: the documented error, and nothing changed.
 *
 * Each test ends with a proof that the address space still works (in the fixture's end: it must
 * have moved bytes).
 */
#include "svm.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define BAD_POINTER 0xdead000000000000ULL
#define LIMIT (1ULL << VSVM_ADDRESS_BITS)

static int submit_one(int gpu, const struct drm_vsvm_command *cmd, void *data, size_t size)
{
	struct list list = { .count = 1 };
	uint64_t seqno;

	list.cmd[0] = *cmd;
	return gpu_submit(gpu, 0, &list, data, size, &seqno);
}

static void still_works(struct __test_metadata *_metadata, FIXTURE_DATA(svm) *self)
{
	struct drm_vsvm_queue state = {};
	uint64_t word = 0;

	ASSERT_EQ(0, gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_QUEUE, &state));
	EXPECT_EQ(0, state.stopped);
	GPU_OK(gpu_fill(self->gpu, &word, 8, 42));
	EXPECT_EQ(42, word);
}

TEST_F(svm, commands)
{
	size_t page = page_size(), i;
	char *mem = map_small(page), data[64] = {};
	uint64_t at = (uintptr_t)mem;
	/* Each differs from a good one in one point. */
	const struct drm_vsvm_command bad[] = {
		{ .op = 0, .addr = at, .len = 8 },
		{ .op = 6, .addr = at, .len = 8 },
		{ .op = ~0U, .addr = at, .len = 8 },
		{ .op = VSVM_OP_FILL, .pad = 1, .addr = at, .len = 8 },
		{ .op = VSVM_OP_FILL, .addr = at, .addr2 = 1, .len = 8 },
		{ .op = VSVM_OP_FILL, .addr = at, .len = 0 },
		{ .op = VSVM_OP_FILL, .addr = at, .len = ~0ULL },
		{ .op = VSVM_OP_FILL, .addr = at, .len = 0ULL - at },
		{ .op = VSVM_OP_FILL, .addr = ~0ULL, .len = 1 },
		{ .op = VSVM_OP_FILL, .addr = ~0ULL - 7, .len = 8 },
		{ .op = VSVM_OP_FILL, .addr = ~0ULL - 7, .len = 16 },
		{ .op = VSVM_OP_FILL, .addr = LIMIT, .len = 8 },
		{ .op = VSVM_OP_FILL, .addr = LIMIT - 4, .len = 8 },
		{ .op = VSVM_OP_FILL, .addr = 1ULL << 63, .len = 1ULL << 63 },
		{ .op = VSVM_OP_LOAD, .addr = at, .addr2 = 0, .len = 65 },
		{ .op = VSVM_OP_LOAD, .addr = at, .addr2 = 57, .len = 8 },
		{ .op = VSVM_OP_LOAD, .addr = at, .addr2 = 64, .len = 1 },
		{ .op = VSVM_OP_LOAD, .addr = at, .addr2 = ~0ULL, .len = 8 },
		{ .op = VSVM_OP_LOAD, .addr = at, .addr2 = ~0ULL - 3, .len = 8 },
		{ .op = VSVM_OP_LOAD, .addr = at, .addr2 = 0, .len = 8, .value = 1 },
		{ .op = VSVM_OP_STORE, .addr = at, .addr2 = 57, .len = 8 },
		{ .op = VSVM_OP_STORE, .addr = at, .addr2 = ~0ULL, .len = 8 },
		{ .op = VSVM_OP_STORE, .addr = at, .addr2 = 0, .len = 8, .value = 1 },
		{ .op = VSVM_OP_COPY, .addr = at, .addr2 = LIMIT - 4, .len = 8 },
		{ .op = VSVM_OP_COPY, .addr = at, .addr2 = ~0ULL, .len = 8 },
		{ .op = VSVM_OP_COPY, .addr = LIMIT - 4, .addr2 = at, .len = 8 },
		{ .op = VSVM_OP_COPY, .addr = at, .addr2 = at, .len = 8, .value = 1 },
		{ .op = VSVM_OP_ATOMIC_ADD, .addr = at + 4, .addr2 = VSVM_NO_DATA, .len = 8 },
		{ .op = VSVM_OP_ATOMIC_ADD, .addr = at, .addr2 = VSVM_NO_DATA, .len = 12 },
		{ .op = VSVM_OP_ATOMIC_ADD, .addr = at, .addr2 = 60, .len = 8 },
		{ .op = VSVM_OP_ATOMIC_ADD, .addr = at, .addr2 = 0, .len = 72 },
		{ .op = VSVM_OP_ATOMIC_ADD, .addr = at, .addr2 = ~0ULL - 1, .len = 8 },
	};

	pattern_fill(mem, page, 1);
	for (i = 0; i < ARRAY_SIZE(bad); i++)
		EXPECT_EQ(-EINVAL, submit_one(self->gpu, &bad[i], data, sizeof(data)))
			TH_LOG("command %zu", i);

	/* A bad command behind good ones: none of them runs. */
	{
		struct list list = {};
		uint64_t seqno;

		list_fill(&list, mem, page, 0);
		list_fill(&list, mem, 8, 0);
		list.cmd[1].pad = 1;
		EXPECT_EQ(-EINVAL, gpu_submit(self->gpu, 0, &list, NULL, 0, &seqno));
	}
	sleep_ms(20);
	EXPECT_EQ(-1, pattern_check(mem, page, 1));
	still_works(_metadata, self);
}

/* The whole of the address space in one command is well-formed, and ends at the first hole. */
TEST_F(svm, spans_that_only_look_bad)
{
	struct drm_vsvm_command all = { .op = VSVM_OP_FILL, .addr = 0, .len = LIMIT };
	struct drm_vsvm_command null = { .op = VSVM_OP_FILL, .addr = 0, .len = 1 };
	struct drm_vsvm_command last = { .op = VSVM_OP_FILL, .addr = LIMIT - 1, .len = 1 };
	const struct drm_vsvm_command *cmd[] = { &all, &null, &last };
	struct drm_vsvm_error error;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(cmd); i++) {
		struct list list = { .count = 1 };

		list.cmd[0] = *cmd[i];
		GPU_FAILS(VSVM_REASON_UNMAPPED, gpu_run(self->gpu, 0, &list, NULL, 0, &error));
		EXPECT_EQ(cmd[i]->addr, error.address);
	}
	still_works(_metadata, self);
}

TEST_F(svm, submit)
{
	struct drm_vsvm_command cmd = { .op = VSVM_OP_FILL, .len = 8 };
	struct drm_vsvm_submit good, s;
	uint64_t *mem = map_small(page_size());
	uint64_t data = 1;
	char *half;

	cmd.addr = (uintptr_t)mem;
	good = (struct drm_vsvm_submit){ .commands = (uintptr_t)&cmd, .num_commands = 1 };

#define REFUSE(error, field, wrong) do { \
	s = good; \
	s.field = (wrong); \
	EXPECT_EQ(-(error), gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_SUBMIT, &s)); \
	EXPECT_EQ(0, s.seqno); \
} while (0)
	REFUSE(EINVAL, num_commands, 0);
	REFUSE(EINVAL, num_commands, VSVM_MAX_COMMANDS + 1);
	REFUSE(EINVAL, num_commands, ~0U);
	REFUSE(EINVAL, queue, VSVM_QUEUES);
	REFUSE(EINVAL, queue, ~0U);
	REFUSE(EINVAL, flags, 1);
	REFUSE(EINVAL, flags, 1U << 31);
	REFUSE(EINVAL, pad, 1);
	REFUSE(EINVAL, data_size, VSVM_MAX_DATA + 1ULL);
	REFUSE(EINVAL, data_size, ~0ULL);
	REFUSE(EFAULT, commands, 0);
	REFUSE(EFAULT, commands, BAD_POINTER);
	REFUSE(EFAULT, commands, ~0ULL - 8);
	good.data_size = 8;
	good.data = (uintptr_t)&data;
	REFUSE(EFAULT, data, 0);
	REFUSE(EFAULT, data, BAD_POINTER);
	/* The second half of the data is not there. */
	good.data_size = 2 * page_size();
	half = map_small(2 * page_size());
	ASSERT_EQ(0, munmap(half + page_size(), page_size()));
	REFUSE(EFAULT, data, (uintptr_t)half);
	REFUSE(EFAULT, commands, (uintptr_t)half + page_size() - sizeof(cmd) / 2);
#undef REFUSE
	EXPECT_EQ(0, *mem);
	still_works(_metadata, self);
}

TEST_F(svm, the_most_of_everything)
{
	size_t n = VSVM_MAX_COMMANDS, i;
	struct drm_vsvm_command *cmd = calloc(n, sizeof(*cmd));
	struct drm_vsvm_submit s = {};
	char *data = malloc(VSVM_MAX_DATA);
	uint64_t *mem = map_small(page_size());
	struct list list = {};
	uint64_t seqno;

	for (i = 0; i < n; i++)
		cmd[i] = (struct drm_vsvm_command){
			.op = VSVM_OP_ATOMIC_ADD,
			.addr = (uintptr_t)mem,
			.addr2 = VSVM_NO_DATA,
			.len = 8,
			.value = 1,
		};
	s.commands = (uintptr_t)cmd;
	s.num_commands = n;
	ASSERT_EQ(0, gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_SUBMIT, &s));
	GPU_OK(gpu_wait(self->gpu, 0, s.seqno, NULL, 0, 20000, NULL));
	ASSERT_EQ(n, *mem);

	pattern_fill(data, VSVM_MAX_DATA, 3);
	list_store(&list, mem, 8, VSVM_MAX_DATA - 8);
	GPU_OK(gpu_run(self->gpu, 0, &list, data, VSVM_MAX_DATA, NULL));
	ASSERT_EQ(pattern_word(3, VSVM_MAX_DATA - 8), *mem);
	ASSERT_EQ(-1, pattern_check(data, VSVM_MAX_DATA, 3));

	/* Lists whose data nobody fetches fill the queue, and fetching makes room. */
	list.count = 0;
	list_store(&list, mem, 8, 0);
	for (i = 0; i < VSVM_MAX_JOBS; i++)
		ASSERT_EQ(0, gpu_submit(self->gpu, 1, &list, data, 8, &seqno));
	ASSERT_EQ(-EBUSY, gpu_submit(self->gpu, 1, &list, data, 8, &seqno));
	GPU_OK(gpu_wait(self->gpu, 1, seqno, data, 8, 20000, NULL));
	ASSERT_EQ(-ENODATA, gpu_wait(self->gpu, 1, seqno, data, 8, 20000, NULL));
	ASSERT_EQ(0, gpu_submit(self->gpu, 1, &list, data, 8, &seqno));

	/* So does their data, if it is too much. */
	for (i = 0; i < VSVM_MAX_DATA_HELD / VSVM_MAX_DATA; i++)
		ASSERT_EQ(0, gpu_submit(self->gpu, 2, &list, data, VSVM_MAX_DATA, &seqno));
	ASSERT_EQ(-EBUSY, gpu_submit(self->gpu, 2, &list, data, 8, &seqno));
	GPU_OK(gpu_wait(self->gpu, 2, seqno, data, VSVM_MAX_DATA, 20000, NULL));
	ASSERT_EQ(0, gpu_submit(self->gpu, 2, &list, data, 8, &seqno));
	free(cmd);
	free(data);
}

TEST_F(svm, too_many_descriptors)
{
	const char *path = gpu_path(0);
	int fd[VSVM_MAX_FILES], n = 0;

	ASSERT_NE(NULL, path);
	while (n < VSVM_MAX_FILES) {
		fd[n] = open(path, O_RDWR | O_CLOEXEC);
		if (fd[n] < 0)
			break;
		n++;
	}
	/* One is that of the test. */
	EXPECT_EQ(EMFILE, errno);
	EXPECT_EQ(VSVM_MAX_FILES - 1, n);
	still_works(_metadata, self);
	while (n)
		close(fd[--n]);
	n = open(path, O_RDWR | O_CLOEXEC);
	EXPECT_LE(0, n);
	close(n);
}

TEST_F(svm, wait)
{
	uint64_t data[2] = {}, *mem = map_small(page_size());
	struct drm_vsvm_wait good = {}, w;
	struct list list = {};
	uint64_t seqno;

	list_store(&list, mem, 8, 0);
	ASSERT_EQ(0, gpu_submit(self->gpu, 0, &list, data, 8, &seqno));
	good.seqno = seqno;
	good.timeout_ns = -1;

#define REFUSE(error, field, wrong) do { \
	w = good; \
	w.field = (wrong); \
	EXPECT_EQ(-(error), gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_WAIT, &w)); \
} while (0)
	REFUSE(EINVAL, queue, VSVM_QUEUES);
	REFUSE(EINVAL, queue, ~0U);
	REFUSE(EINVAL, flags, 1);
	REFUSE(EINVAL, pad, 1);
	REFUSE(EINVAL, data_size, 7);
	REFUSE(EINVAL, data_size, 16);
	REFUSE(EINVAL, data_size, ~0ULL);
	REFUSE(ENOENT, seqno, 0);
	REFUSE(ENOENT, seqno, seqno + 1);
	REFUSE(ENOENT, seqno, ~0ULL);
	/* The list of another queue. */
	REFUSE(ENOENT, queue, 1);
	good.data_size = 8;
	REFUSE(EFAULT, data, 0);
	REFUSE(EFAULT, data, BAD_POINTER);
#undef REFUSE
	/* A failed fetch did not consume the data. */
	w = good;
	w.data = (uintptr_t)data;
	EXPECT_EQ(0, gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_WAIT, &w));
	EXPECT_EQ(VSVM_STATUS_DONE, w.status);
	EXPECT_EQ(-ENODATA, gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_WAIT, &w));
	still_works(_metadata, self);
}

TEST_F(svm, wait_after_reset)
{
	char *mem = map_small(page_size());
	struct list list = {};
	uint64_t seqno;

	ASSERT_EQ(0, munmap(mem, page_size()));
	list_fill(&list, mem, 8, 1);
	ASSERT_EQ(0, gpu_submit(self->gpu, 0, &list, NULL, 0, &seqno));
	GPU_FAILS(VSVM_REASON_UNMAPPED, gpu_wait(self->gpu, 0, seqno, NULL, 0, 20000, NULL));
	ASSERT_EQ(0, gpu_reset(self->gpu, 0));
	ASSERT_EQ(-ESTALE, gpu_wait(self->gpu, 0, seqno, NULL, 0, 20000, NULL));
	/* Resetting a queue that runs changes nothing. */
	ASSERT_EQ(0, gpu_reset(self->gpu, 0));
	still_works(_metadata, self);
}

TEST_F(svm, queue)
{
	struct drm_vsvm_queue q;

	q = (struct drm_vsvm_queue){ .queue = VSVM_QUEUES };
	EXPECT_EQ(-EINVAL, gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_QUEUE, &q));
	q = (struct drm_vsvm_queue){ .queue = ~0U };
	EXPECT_EQ(-EINVAL, gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_QUEUE, &q));
	q = (struct drm_vsvm_queue){ .flags = 2 };
	EXPECT_EQ(-EINVAL, gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_QUEUE, &q));
	q = (struct drm_vsvm_queue){ .flags = VSVM_QUEUE_RESET | 1U << 31 };
	EXPECT_EQ(-EINVAL, gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_QUEUE, &q));
	q = (struct drm_vsvm_queue){ .pad = 1 };
	EXPECT_EQ(-EINVAL, gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_QUEUE, &q));
	still_works(_metadata, self);
}

TEST_F(svm, map_ahead)
{
	size_t page = page_size(), i;
	char *mem = map_small(2 * page);
	uint64_t at = (uintptr_t)mem;
	const struct drm_vsvm_map_ahead bad[] = {
		{ .addr = at + 1, .len = page },
		{ .addr = at + page / 2, .len = page },
		{ .addr = at, .len = page + 1 },
		{ .addr = at, .len = 0 },
		{ .addr = at, .len = page, .flags = 2 },
		{ .addr = at, .len = page, .flags = 1U << 31 },
		{ .addr = at, .len = page, .pad = 1 },
		{ .addr = at, .len = 0ULL - page },
		{ .addr = at, .len = 0ULL - at },
		{ .addr = 0ULL - page, .len = page },
		{ .addr = 0ULL - page, .len = 2 * page },
		{ .addr = LIMIT, .len = page },
		{ .addr = LIMIT - page, .len = 2 * page },
		{ .addr = 1ULL << 63, .len = page },
		{ .addr = 1ULL << 63, .len = 1ULL << 63 },
	};
	struct drm_vsvm_map_ahead all = { .addr = 0, .len = LIMIT };
	struct drm_vsvm_map_ahead most = { .addr = page, .len = (1ULL << 46) - page };
	struct drm_vsvm_stats before, after;

	STATS(&before);
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		struct drm_vsvm_map_ahead map = bad[i];

		EXPECT_EQ(-EINVAL, gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_MAP_AHEAD, &map))
			TH_LOG("argument %zu", i);
	}
	STATS(&after);
	EXPECT_EQ(before.mapped_bytes, after.mapped_bytes);
	EXPECT_EQ(before.ranges, after.ranges);
	EXPECT_EQ(before.walks, after.walks);
	/* Well-formed, but mostly holes: it must not take for ever to say so. */
	EXPECT_EQ(-EFAULT, gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_MAP_AHEAD, &most));
	EXPECT_EQ(-EFAULT, gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_MAP_AHEAD, &all));
	still_works(_metadata, self);
}

TEST_F(svm, stats)
{
	struct drm_vsvm_stats stats = {};

	stats.flags = 1;
	EXPECT_EQ(-EINVAL, gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_STATS, &stats));
	stats.flags = 0;
	stats.engine = 1;
	EXPECT_EQ(-EINVAL, gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_STATS, &stats));
	/* Everything else is output, whatever was in it. */
	memset(&stats, 0xff, sizeof(stats));
	stats.flags = 0;
	stats.engine = 0;
	EXPECT_EQ(0, gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_STATS, &stats));
	EXPECT_EQ(0, stats.stale_uses);
	EXPECT_NE(~0ULL, stats.injected);
	still_works(_metadata, self);
}

TEST_F(svm, debug)
{
	const struct drm_vsvm_debug bad[] = {
		{ .op = 0, .point = VSVM_POINT_FLUSH },
		{ .op = VSVM_DEBUG_DROP_WAIT + 100, .point = VSVM_POINT_FLUSH },
		{ .op = ~0U, .point = VSVM_POINT_FLUSH },
		{ .op = VSVM_DEBUG_DELAY, .point = 0, .value = 1 },
		{ .op = VSVM_DEBUG_DELAY, .point = VSVM_POINT_WALKED + 100, .value = 1 },
		{ .op = VSVM_DEBUG_DELAY, .point = VSVM_POINT_FLUSH, .value = 10001 },
		{ .op = VSVM_DEBUG_DELAY, .point = VSVM_POINT_FLUSH, .value = ~0ULL },
		{ .op = VSVM_DEBUG_DELAY, .point = VSVM_POINT_FLUSH, .value = 1, .timeout_ms = 1 },
		{ .op = VSVM_DEBUG_FAIL, .point = VSVM_POINT_FLUSH, .value = 1 },
		{ .op = VSVM_DEBUG_FAIL, .point = VSVM_POINT_ACCESS, .value = 1 },
		{ .op = VSVM_DEBUG_BARRIER, .point = VSVM_POINT_PREPARE, .value = 1,
		  .timeout_ms = 1 },
		{ .op = VSVM_DEBUG_BARRIER, .point = VSVM_POINT_PREPARE, .value = 17,
		  .timeout_ms = 1 },
		{ .op = VSVM_DEBUG_BARRIER, .point = VSVM_POINT_PREPARE, .value = 2,
		  .timeout_ms = 10001 },
		{ .op = VSVM_DEBUG_BARRIER, .point = VSVM_POINT_FLUSH, .value = 2,
		  .timeout_ms = 1 },
		{ .op = VSVM_DEBUG_DROP_FLUSH, .point = VSVM_POINT_COMMIT, .value = 1 },
		{ .op = VSVM_DEBUG_DROP_FLUSH, .point = VSVM_POINT_FLUSH, .value = 2 },
		{ .op = VSVM_DEBUG_DROP_WAIT, .point = VSVM_POINT_ACCESS, .value = 1 },
		{ .op = VSVM_DEBUG_DROP_WAIT, .point = VSVM_POINT_FLUSH, .value = 2 },
	};
	size_t i;

	NEED_DEBUG();
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		struct drm_vsvm_debug debug = bad[i];

		EXPECT_EQ(-EINVAL, gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_DEBUG, &debug))
			TH_LOG("argument %zu", i);
	}
	still_works(_metadata, self);
}

/* Numbers and directions of ioctls that do not exist; argument sizes of another version. */
TEST_F(svm, ioctl_numbers)
{
	char room[1024] = {};
	unsigned int nr;

	for (nr = DRM_COMMAND_BASE + DRM_VSVM_DEBUG + 1; nr < DRM_COMMAND_END; nr++) {
		errno = 0;
		EXPECT_EQ(-1, ioctl(self->gpu, _IOC(_IOC_READ | _IOC_WRITE, DRM_IOCTL_BASE, nr,
						    sizeof(room)), room));
		EXPECT_NE(0, errno);
	}
	for (nr = 0; nr <= DRM_VSVM_DEBUG; nr++) {
		/* No argument at all. */
		EXPECT_EQ(-1, ioctl(self->gpu, _IOC(_IOC_READ | _IOC_WRITE, DRM_IOCTL_BASE,
						    DRM_COMMAND_BASE + nr, 64), NULL));
	}
	/*
	 * A shorter structure is one of an older user: DRM fills it up with zeroes; a longer one
	 * is that of a newer user, and is cut. Neither may write outside of the user's memory.
	 */
	memset(room, 0xa5, sizeof(room));
	memset(room, 0, 8);
	ioctl(self->gpu, _IOC(_IOC_READ | _IOC_WRITE, DRM_IOCTL_BASE,
			      DRM_COMMAND_BASE + DRM_VSVM_STATS, 8), room);
	for (nr = 8; nr < sizeof(room); nr++)
		ASSERT_EQ((char)0xa5, room[nr]);
	/* The argument is in memory that cannot be written. */
	EXPECT_EQ(-1, ioctl(self->gpu, DRM_IOCTL_VSVM_STATS,
			    mmap(NULL, page_size(), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS,
				 -1, 0)));
	EXPECT_EQ(EFAULT, errno);
	still_works(_metadata, self);
}

/* The other calls that a descriptor knows. */
TEST_F(svm, descriptor)
{
	char buf[16];

	EXPECT_EQ(MAP_FAILED, mmap(NULL, page_size(), RW, MAP_SHARED, self->gpu, 0));
	EXPECT_EQ(-1, write(self->gpu, buf, sizeof(buf)));
	still_works(_metadata, self);
}

/* Arguments by chance: anything may be refused, nothing may break. */
TEST_F_TIMEOUT(svm, random_arguments, 60)
{
	static const unsigned long request[] = {
		DRM_IOCTL_VSVM_SUBMIT, DRM_IOCTL_VSVM_WAIT, DRM_IOCTL_VSVM_QUEUE,
		DRM_IOCTL_VSVM_MAP_AHEAD, DRM_IOCTL_VSVM_STATS,
	};
	uint64_t end = now_ms() + 1500, n = 0, refused = 0, accepted = 0, x;
	size_t len = 16 * page_size(), i;
	char *mem = map_small(len), *target = map_small(len);
	struct drm_vsvm_command *cmd = (struct drm_vsvm_command *)mem;
	union {
		uint64_t arg[64];
		struct drm_vsvm_wait wait;
	} u;

	/* Command lists that are good when they are read from the right place. */
	for (i = 0; i < len / sizeof(*cmd); i++) {
		x = pattern_word(5, i);
		cmd[i] = (struct drm_vsvm_command){
			.op = x % 5 + 1,
			.addr = (uintptr_t)target + (x >> 4) % len,
			.len = (x >> 24) % 256,
			.addr2 = x & 8 ? (x >> 32) % 64 : (uintptr_t)target + (x >> 32) % len,
		};
	}
	while (now_ms() < end) {
		for (i = 0; i < ARRAY_SIZE(u.arg); i++) {
			x = pattern_word(n++, i);
			/* Mostly small numbers and good pointers: they get further. */
			switch (x % 8) {
			case 0:
				u.arg[i] = x >> 3;
				break;
			case 1:
				u.arg[i] = 1ULL << (x >> 3) % 64;
				break;
			case 2:
			case 3:
				u.arg[i] = (uintptr_t)mem + (x >> 3) % len;
				break;
			case 4:
				u.arg[i] = (uintptr_t)mem & ~(page_size() - 1);
				break;
			case 5:
				u.arg[i] = (x >> 3) % 9;
				break;
			default:
				u.arg[i] = 0;
			}
		}
		i = pattern_word(n, 1) % ARRAY_SIZE(request);
		/* No waits without an end. */
		if (request[i] == DRM_IOCTL_VSVM_WAIT)
			u.wait.timeout_ns = 1000;
		if (ioctl(self->gpu, request[i], &u))
			refused++;
		else
			accepted++;
	}
	EXPECT_LT(0, refused);
	EXPECT_LT(0, accepted);
	TH_LOG("%llu refused, %llu accepted", (unsigned long long)refused,
	       (unsigned long long)accepted);
	for (i = 0; i < VSVM_QUEUES; i++)
		gpu_reset(self->gpu, i);
	{
		int other = gpu_open(0);
		uint64_t word = 0;

		ASSERT_LE(0, other);
		GPU_OK(gpu_fill(other, &word, 8, 42));
		ASSERT_EQ(42, word);
		GPU_OK(gpu_fill_on(self->gpu, 3, &word, 8, 43));
		close(other);
	}
}

TEST_HARNESS_MAIN
