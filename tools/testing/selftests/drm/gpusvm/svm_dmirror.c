// SPDX-License-Identifier: GPL-2.0
/*
 * The interface of lib/test_hmm.c beside hmm-tests: bad arguments, whose memory it is, and that a
 * snapshot only looks.
 */
#include "kselftest_harness.h"

#include <fcntl.h>
#include <sys/ioctl.h>

#include <lib/test_hmm_uapi.h>

#include "mem.h"
#include "sys.h"

#define SEED_A 0xa11ce

FIXTURE(dmirror)
{
	int fd;
};

FIXTURE_SETUP(dmirror)
{
	self->fd = open("/dev/hmm_dmirror0", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(dmirror)
{
	close(self->fd);
}

static int command(int fd, unsigned long request, void *addr, void *ptr, uint64_t npages,
		   struct hmm_dmirror_cmd *out)
{
	struct hmm_dmirror_cmd cmd = {
		.addr = (uintptr_t)addr,
		.ptr = (uintptr_t)ptr,
		.npages = npages,
		.cpages = 77,
		.faults = 77,
	};
	int ret;

	while ((ret = ioctl(fd, request, &cmd)) && errno == EINTR)
		;
	if (out)
		*out = cmd;
	return ret ? -errno : 0;
}

TEST_F(dmirror, bad_arguments)
{
	static const unsigned long request[] = {
		HMM_DMIRROR_READ, HMM_DMIRROR_WRITE, HMM_DMIRROR_SNAPSHOT,
		HMM_DMIRROR_READ_UNLOCKED,
	};
	size_t page = page_size(), i;
	char *mem = map_small(4 * page), *buf = map_small(4 * page);
	struct hmm_dmirror_cmd out;

	pattern_fill(mem, 4 * page, SEED_A);
	pattern_fill(buf, 4 * page, SEED_A);
	for (i = 0; i < ARRAY_SIZE(request); i++) {
		EXPECT_EQ(-EINVAL, command(self->fd, request[i], mem + 1, buf, 1, &out));
		/* On an error, nothing is copied back. */
		EXPECT_EQ(77, out.cpages);
		EXPECT_EQ(77, out.faults);
		EXPECT_EQ(-EINVAL, command(self->fd, request[i], mem + page / 2, buf, 1, NULL));
		EXPECT_EQ(-EINVAL, command(self->fd, request[i], mem, buf, 0, NULL));
		EXPECT_EQ(-EINVAL, command(self->fd, request[i], (void *)-page, buf, 1, NULL));
		EXPECT_EQ(-EINVAL, command(self->fd, request[i], (void *)-page, buf, 2, NULL));
		/* More than there is; a snapshot of it would be well-formed. */
		if (request[i] != HMM_DMIRROR_SNAPSHOT)
			EXPECT_NE(0, command(self->fd, request[i], mem, buf, 1ULL << 40, NULL));
		EXPECT_EQ(-EFAULT, command(self->fd, request[i], mem, (void *)0x1000, 1, NULL));
		ASSERT_EQ(-1, ioctl(self->fd, request[i], NULL));
		ASSERT_EQ(EFAULT, errno);
	}
	/* Numbers that there are not. */
	EXPECT_NE(0, command(self->fd, _IOWR('H', 0x0a, struct hmm_dmirror_cmd), mem, buf, 1,
			     NULL));
	EXPECT_NE(0, command(self->fd, _IOWR('X', 0x00, struct hmm_dmirror_cmd), mem, buf, 1,
			     NULL));
	EXPECT_EQ(-1, pattern_check(mem, 4 * page, SEED_A));
	EXPECT_EQ(-1, pattern_check(buf, 4 * page, SEED_A));
	EXPECT_EQ(0, command(self->fd, HMM_DMIRROR_READ, mem, buf, 4, &out));
	EXPECT_EQ(4, out.cpages);
	EXPECT_EQ(1, out.faults);
}

/* What this driver cannot do fails, and does nothing. */
TEST_F(dmirror, device_memory)
{
	static const unsigned long request[] = {
		HMM_DMIRROR_MIGRATE_TO_DEV, HMM_DMIRROR_MIGRATE_TO_SYS, HMM_DMIRROR_EXCLUSIVE,
		HMM_DMIRROR_CHECK_EXCLUSIVE, HMM_DMIRROR_RELEASE,
	};
	size_t page = page_size(), i;
	char *mem = map_small(page), *buf = map_small(page);

	pattern_fill(mem, page, SEED_A);
	for (i = 0; i < ARRAY_SIZE(request); i++)
		EXPECT_EQ(-EOPNOTSUPP, command(self->fd, request[i], mem, buf, 1, NULL));
	EXPECT_EQ(-1, pattern_check(mem, page, SEED_A));
	EXPECT_EQ(0, buf[0]);
}

/* The addresses are those of the opener, the buffer is the caller's. */
TEST_F(dmirror, memory_of_the_opener)
{
	size_t page = page_size();
	char *mem = map_small(page), *buf = map_small(page);
	int fds[2];
	pid_t child;
	char byte;

	pattern_fill(mem, page, SEED_A);
	ASSERT_EQ(0, pipe(fds));
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		/* Wait until the opener has changed its memory; this copy stays. */
		if (read(fds[0], &byte, 1) != 1)
			_exit(1);
		if (command(self->fd, HMM_DMIRROR_READ, mem, buf, 1, NULL))
			_exit(2);
		if (pattern_check(mem, page, SEED_A) != -1)
			_exit(3);
		_exit(pattern_check(buf, page, 2) == -1 ? 0 : 4);
	}
	pattern_fill(mem, page, 2);
	ASSERT_EQ(1, write(fds[1], "x", 1));
	ASSERT_EQ(0, wait_child(child, 10000));
}

TEST_F(dmirror, snapshot_only_looks)
{
	size_t page = page_size(), huge = huge_size(), i;
	unsigned char *seen = calloc(1, 512);
	char *mem = map_small(6 * page), *thp;
	volatile char sum = 0;

	ASSERT_EQ(0, munmap(mem, page));
	/* A hole, nothing, the zero page, read-only, writable, no access. */
	sum += mem[2 * page];
	mem[3 * page] = 1;
	ASSERT_EQ(0, mprotect(mem + 3 * page, page, PROT_READ));
	mem[4 * page] = 1;
	mem[5 * page] = 1;
	ASSERT_EQ(0, mprotect(mem + 5 * page, page, PROT_NONE));
	ASSERT_EQ(0, command(self->fd, HMM_DMIRROR_SNAPSHOT, mem + page, seen + 1, 5, NULL));
	ASSERT_EQ(0, command(self->fd, HMM_DMIRROR_SNAPSHOT, mem, seen, 1, NULL));
	EXPECT_EQ(HMM_DMIRROR_PROT_ERROR, seen[0]);
	EXPECT_EQ(HMM_DMIRROR_PROT_NONE, seen[1]);
	EXPECT_EQ(HMM_DMIRROR_PROT_ZERO | HMM_DMIRROR_PROT_READ, seen[2]);
	EXPECT_EQ(HMM_DMIRROR_PROT_READ, seen[3]);
	EXPECT_EQ(HMM_DMIRROR_PROT_WRITE, seen[4]);
	EXPECT_EQ(HMM_DMIRROR_PROT_ERROR, seen[5]);
	EXPECT_FALSE(is_present(mem + page));

	thp = map_huge(huge);
	ASSERT_NE(NULL, thp);
	thp[0] = 1;
	if (is_huge(thp)) {
		ASSERT_EQ(0, command(self->fd, HMM_DMIRROR_SNAPSHOT, thp, seen, 512, NULL));
		for (i = 0; i < 512; i++)
			ASSERT_EQ(HMM_DMIRROR_PROT_WRITE | HMM_DMIRROR_PROT_PMD, seen[i]);
	}
	free(seen);
}

TEST_F(dmirror, large_and_sparse)
{
	size_t page = page_size(), len = 64 << 20;
	char *mem = mmap(NULL, len, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *buf = mmap(NULL, len, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct hmm_dmirror_cmd out;

	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_NE(MAP_FAILED, buf);
	madvise(mem, len, MADV_HUGEPAGE);
	madvise(buf, len, MADV_HUGEPAGE);
	pattern_fill(mem + len - page, page, SEED_A);
	ASSERT_EQ(0, command(self->fd, HMM_DMIRROR_READ, mem, buf, len / page, &out));
	EXPECT_EQ(len / page, out.cpages);
	EXPECT_EQ(1, out.faults);
	EXPECT_EQ(-1, pattern_check(buf + len - page, page, SEED_A));
	EXPECT_EQ(0, *(uint64_t *)(buf + len / 2));
}

TEST_HARNESS_MAIN
