// SPDX-License-Identifier: GPL-2.0
/*
 * Shared virtual memory of KFD, end to end: a process's own memory is used by an SDMA queue, moves
 * to the GPU's memory and back, and changes under the queue, with and without retried faults
 * (XNACK). All data are checked.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kfd.h"
#include "kselftest_harness.h"

#define PAGE 4096
/* More than one granule (2 MiB), and not a whole number of them. */
#define SIZE ((4 << 20) + 5 * PAGE)
/* The parts of the over-commitment. */
#define PART (96ul << 20)

FIXTURE(svm)
{
	struct kfd kfd;
	uint32_t *a, *b;
};

FIXTURE_VARIANT(svm)
{
	bool xnack;
};

FIXTURE_VARIANT_ADD(svm, xnack_off) { .xnack = false };
FIXTURE_VARIANT_ADD(svm, xnack_on) { .xnack = true };

static uint32_t *memory(size_t size)
{
	void *mem = mmap(NULL, size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return mem == MAP_FAILED ? NULL : mem;
}

/* Different in each dword, and with each seed. */
static uint32_t pattern(size_t i, uint32_t seed)
{
	return (uint32_t)i * 2654435761u + seed;
}

static void paint(uint32_t *mem, size_t size, uint32_t seed)
{
	size_t i;

	for (i = 0; i < size / 4; i++)
		mem[i] = pattern(i, seed);
}

/* The number of dwords that are not as painted. */
static size_t wrong(const uint32_t *mem, size_t size, uint32_t seed)
{
	size_t i, found = 0;

	for (i = 0; i < size / 4; i++)
		found += mem[i] != pattern(i, seed);
	return found;
}

static size_t not_equal(const uint32_t *mem, size_t size, uint32_t value)
{
	size_t i, found = 0;

	for (i = 0; i < size / 4; i++)
		found += mem[i] != value;
	return found;
}

FIXTURE_SETUP(svm)
{
	int err = kfd_open(&self->kfd);

	if (err == -ENOENT)
		SKIP(return, "no GPU of KFD");
	ASSERT_EQ(0, err);
	ASSERT_EQ(0, kfd_set_xnack(&self->kfd, variant->xnack));
	ASSERT_EQ(0, kfd_create_queue(&self->kfd));
	self->a = memory(SIZE);
	self->b = memory(SIZE);
	ASSERT_NE(NULL, self->a);
	ASSERT_NE(NULL, self->b);
}

FIXTURE_TEARDOWN(svm)
{
	kfd_close(&self->kfd);
}

/* Gives the GPU access; without XNACK that maps the range. */
static int share(struct kfd *kfd, void *mem, size_t size)
{
	return kfd_svm_set(kfd, mem, size, KFD_IOCTL_SVM_ATTR_ACCESS, kfd->gpu);
}

static int prefetch(struct kfd *kfd, void *mem, size_t size)
{
	return kfd_svm_set(kfd, mem, size, KFD_IOCTL_SVM_ATTR_PREFETCH_LOC, kfd->gpu);
}

/* The GPU copies from one range in system memory to another one. */
TEST_F(svm, system)
{
	struct kfd *kfd = &self->kfd;

	paint(self->a, SIZE, 1);
	ASSERT_EQ(0, share(kfd, self->a, SIZE));
	ASSERT_EQ(0, share(kfd, self->b, SIZE));
	kfd_copy(kfd, self->b, self->a, SIZE);
	ASSERT_EQ(0, kfd_wait(kfd));
	EXPECT_EQ(0, wrong(self->b, SIZE, 1));
	EXPECT_EQ(0, wrong(self->a, SIZE, 1));
}

/* The range moves to the GPU's memory with its data, the GPU works on it there, the CPU takes it
 * back by touching it.
 */
TEST_F(svm, vram)
{
	struct kfd *kfd = &self->kfd;
	uint32_t where;

	paint(self->a, SIZE, 2);
	ASSERT_EQ(0, share(kfd, self->a, SIZE));
	ASSERT_EQ(0, share(kfd, self->b, SIZE));
	ASSERT_EQ(0, prefetch(kfd, self->a, SIZE));
	ASSERT_EQ(0, kfd_svm_get(kfd, self->a, SIZE, KFD_IOCTL_SVM_ATTR_PREFETCH_LOC, &where));
	EXPECT_EQ(kfd->gpu, where);
	kfd_copy(kfd, self->b, self->a, SIZE);
	kfd_fill(kfd, self->a + PAGE / 4, 0x5a5a5a5a, PAGE);
	ASSERT_EQ(0, kfd_wait(kfd));
	EXPECT_EQ(0, wrong(self->b, SIZE, 2));
	EXPECT_EQ(0, wrong(self->a, PAGE, 2));
	EXPECT_EQ(0, not_equal(self->a + PAGE / 4, PAGE, 0x5a5a5a5a));
	/* The CPU has it back; now the GPU must see what the CPU writes. */
	paint(self->a, SIZE, 3);
	kfd_copy(kfd, self->b, self->a, SIZE);
	ASSERT_EQ(0, kfd_wait(kfd));
	EXPECT_EQ(0, wrong(self->b, SIZE, 3));
}

/* The pages under a mapping change: the GPU must not use the old ones. */
TEST_F(svm, discard)
{
	struct kfd *kfd = &self->kfd;
	int round;

	ASSERT_EQ(0, share(kfd, self->a, SIZE));
	ASSERT_EQ(0, share(kfd, self->b, SIZE));
	for (round = 0; round < 4; round++) {
		paint(self->a, SIZE, 10 + round);
		kfd_copy(kfd, self->b, self->a, SIZE);
		ASSERT_EQ(0, kfd_wait(kfd));
		ASSERT_EQ(0, wrong(self->b, SIZE, 10 + round));
		ASSERT_EQ(0, madvise(self->a, SIZE, MADV_DONTNEED));
		ASSERT_EQ(0, madvise(self->b, SIZE, MADV_DONTNEED));
	}
}

/* What was discarded reads as zeros.
 *
 * The C driver fails this with XNACK. A fault moves the range to the GPU's memory. When the range's
 * pages are discarded, the range keeps its buffer object there, and the next fault moves the holes
 * into the same object, which is cleared only when it is new (svm_range_validate_svm_bo(),
 * svm_migrate_copy_to_vram()): the discarded data are back, for the CPU too.
 */
TEST_F(svm, discarded)
{
	struct kfd *kfd = &self->kfd;

	ASSERT_EQ(0, share(kfd, self->a, SIZE));
	ASSERT_EQ(0, share(kfd, self->b, SIZE));
	paint(self->a, SIZE, 5);
	kfd_copy(kfd, self->b, self->a, SIZE);
	ASSERT_EQ(0, kfd_wait(kfd));
	ASSERT_EQ(0, madvise(self->a, SIZE, MADV_DONTNEED));
	ASSERT_EQ(0, madvise(self->b, SIZE, MADV_DONTNEED));
	kfd_copy(kfd, self->b, self->a, SIZE);
	ASSERT_EQ(0, kfd_wait(kfd));
	EXPECT_EQ(0, not_equal(self->b, SIZE, 0));
	EXPECT_EQ(0, not_equal(self->a, SIZE, 0));
}

XFAIL_ADD(svm, xnack_on, discarded);

/* Nobody told the GPU about this memory: with XNACK, it finds it by its faults. */
TEST_F(svm, unregistered)
{
	struct kfd *kfd = &self->kfd;

	if (!variant->xnack)
		SKIP(return, "only with retried faults");
	paint(self->a, SIZE, 4);
	kfd_copy(kfd, self->b, self->a, SIZE);
	ASSERT_EQ(0, kfd_wait(kfd));
	EXPECT_EQ(0, wrong(self->b, SIZE, 4));
}

/* More than the GPU's memory holds is moved there; what has to go, goes with its data. */
TEST_F_TIMEOUT(svm, overcommit, 300)
{
	struct kfd *kfd = &self->kfd;
	unsigned int parts = kfd->vram / PART + 2, i;
	uint32_t *mem = memory(parts * PART);

	ASSERT_NE(0, kfd->vram);
	ASSERT_NE(NULL, mem);
	for (i = 0; i < parts; i++) {
		uint32_t *part = mem + i * (PART / 4);

		ASSERT_EQ(0, share(kfd, part, PART));
		ASSERT_EQ(0, prefetch(kfd, part, PART));
		kfd_fill(kfd, part, 0xc0000000 + i, PART);
		ASSERT_EQ(0, kfd_wait(kfd));
	}
	for (i = 0; i < parts; i++)
		EXPECT_EQ(0, not_equal(mem + i * (PART / 4), PART, 0xc0000000 + i));
}

TEST_HARNESS_MAIN
