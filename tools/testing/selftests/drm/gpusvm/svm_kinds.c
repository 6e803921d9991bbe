// SPDX-License-Identifier: GPL-2.0
/* Every kind of memory that a process can have, and what the kernel does to it behind its back. */
#include "svm.h"

#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "uffd.h"

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#endif

#ifndef __NR_memfd_secret
#define __NR_memfd_secret 447
#endif

#define SEED_A 0xa11ce
#define SEED_B 0xb0b
#define PAGES 16

TEST_F(svm, shared_file)
{
	size_t len = PAGES * page_size();
	int fd = temp_file("/tmp", len);
	char *mem, *buf = malloc(len);

	ASSERT_LE(0, fd);
	mem = mmap(NULL, len, RW, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, mem);
	pattern_fill(buf, len, SEED_A);
	ASSERT_EQ(len, pwrite(fd, buf, len, 0));
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	/* What the GPU writes is in the file, what is written to the file is seen by the GPU. */
	GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED_B));
	ASSERT_EQ(len, pread(fd, buf, len, 0));
	ASSERT_EQ(-1, pattern_check(buf, len, SEED_B));
	pattern_fill(buf, len, SEED_A);
	ASSERT_EQ(len, pwrite(fd, buf, len, 0));
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));

	/* Beyond the end of the file there is nothing, as for the CPU. */
	ASSERT_EQ(0, ftruncate(fd, len / 2));
	GPU_OK(gpu_check_pattern(self->gpu, mem, len / 2, SEED_A));
	GPU_FAILS(VSVM_REASON_INACCESSIBLE, gpu_read(self->gpu, mem + len / 2, buf, 8));
	close(fd);
}

/* A file system with write-back: dirty pages are cleaned and write protected behind the GPU. */
TEST_F(svm, shared_file_on_disk)
{
	size_t len = PAGES * page_size(), round;
	const char *dir = getenv("GPUSVM_DISK");
	char *mem, *buf = malloc(len);
	int fd;

	if (!dir)
		SKIP(GPU_OK(gpu_read(self->gpu, &len, buf, 8)); return, "GPUSVM_DISK is not set");
	fd = temp_file(dir, len);
	ASSERT_LE(0, fd);
	mem = mmap(NULL, len, RW, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, mem);
	for (round = 0; round < 5; round++) {
		GPU_OK(gpu_write_pattern(self->gpu, mem, len, round));
		ASSERT_EQ(0, fsync(fd));
		/* Clean now. The next write must fault, or this data never reaches the disk. */
		GPU_OK(gpu_write_pattern(self->gpu, mem + len / 2, len / 2, ~round));
		ASSERT_EQ(0, fsync(fd));
		ASSERT_EQ(0, posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
		ASSERT_EQ(0, madvise(mem, len, MADV_DONTNEED));
		ASSERT_EQ(0, posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
		ASSERT_EQ(-1, pattern_check(mem, len / 2, round));
		ASSERT_EQ(-1, pattern_check(mem + len / 2, len / 2, ~round));
	}
	close(fd);
}

/*
 * The first write to each page of such a file is a fault, since the file system has to know. A GPU
 * that writes page after page does not have the whole block mapped anew for each of them.
 */
TEST_F(svm, shared_file_filled_in_order)
{
	size_t len = 2 * huge_size(), pages = len / page_size(), i;
	struct drm_vsvm_stats before, after;
	const char *dir = getenv("GPUSVM_DISK");
	uint64_t commits, mapped;
	char *mem;
	int fd;

	if (!dir)
		SKIP(GPU_OK(gpu_read(self->gpu, &len, &fd, 4)); return, "GPUSVM_DISK is not set");
	fd = temp_file(dir, len);
	ASSERT_LE(0, fd);
	mem = mmap(NULL, len, RW, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, mem);
	STATS(&before);
	GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED_A));
	STATS(&after);
	commits = after.commits - before.commits;
	mapped = (after.mapped_bytes_total - before.mapped_bytes_total) / len;
	TH_LOG("%zu pages: %llu commits, each byte mapped %llu times", pages,
	       (unsigned long long)commits, (unsigned long long)mapped);
	/* Up to three blocks, ten faults each; some more if the file is written back meanwhile. */
	EXPECT_GT(pages / 16, commits);
	EXPECT_GT(32, mapped);
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_A));

	/* Here and there: only what is written gets dirty, so each page takes a fault. */
	ASSERT_EQ(0, msync(mem, len, MS_SYNC));
	STATS(&before);
	for (i = 0; i < 8; i++)
		GPU_OK(gpu_fill(self->gpu, mem + (7 * i + 3) * page_size(), 8, i));
	STATS(&after);
	EXPECT_LE(8, after.commits - before.commits);
	for (i = 0; i < 8; i++)
		ASSERT_EQ(i, *(uint64_t *)(mem + (7 * i + 3) * page_size()));
	close(fd);
}

TEST_F(svm, private_file)
{
	size_t len = PAGES * page_size();
	int fd = temp_file("/tmp", len);
	char *mem, *buf = malloc(len);

	ASSERT_LE(0, fd);
	mem = mmap(NULL, len, RW, MAP_PRIVATE, fd, 0);
	ASSERT_NE(MAP_FAILED, mem);
	pattern_fill(buf, len, SEED_A);
	ASSERT_EQ(len, pwrite(fd, buf, len, 0));
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	GPU_OK(gpu_write_pattern(self->gpu, mem, len / 2, SEED_B));
	ASSERT_EQ(-1, pattern_check(mem, len / 2, SEED_B));
	/* The file keeps what it had. */
	ASSERT_EQ(len, pread(fd, buf, len, 0));
	ASSERT_EQ(-1, pattern_check(buf, len, SEED_A));
	close(fd);
}

TEST_F(svm, read_only_file)
{
	size_t len = PAGES * page_size();
	int fd = temp_file("/tmp", len);
	char *mem, *buf = malloc(len);

	pattern_fill(buf, len, SEED_A);
	ASSERT_EQ(len, pwrite(fd, buf, len, 0));
	mem = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, mem);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	GPU_FAILS(VSVM_REASON_ACCESS, gpu_fill(self->gpu, mem, len, 0));
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_A));
	close(fd);
}

TEST_F(svm, shared_anonymous)
{
	size_t len = PAGES * page_size();
	char *mem = mmap(NULL, len, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t child;

	ASSERT_NE(MAP_FAILED, mem);
	pattern_fill(mem, len, SEED_A);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		pattern_fill(mem, len, SEED_B);
		_exit(0);
	}
	ASSERT_EQ(0, wait_child(child, 10000));
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_B));
}

/* The child has a GPU of its own; both GPUs see one memory. */
TEST_F(svm, shared_between_two_processes)
{
	size_t len = PAGES * page_size();
	char *mem = mmap(NULL, len, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t child;

	ASSERT_NE(MAP_FAILED, mem);
	GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED_A));
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		int gpu = gpu_open(0);

		if (gpu < 0 || gpu_check_pattern(gpu, mem, len, SEED_A) ||
		    gpu_write_pattern(gpu, mem, len, SEED_B))
			_exit(1);
		_exit(0);
	}
	ASSERT_EQ(0, wait_child(child, 10000));
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_B));
}

/* After a fork, what either side's GPU or CPU writes stays on its side. */
TEST_F(svm, fork_separates)
{
	int *step = mmap(NULL, page_size(), RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	size_t len = PAGES * page_size();
	char *mem = map_small(len);
	pid_t child;

	ASSERT_NE(MAP_FAILED, step);
	pattern_fill(mem, len, SEED_A);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	GPU_OK(gpu_fill(self->gpu, mem, 8, pattern_word(SEED_A, 0)));
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		int gpu = gpu_open(0);

		if (gpu < 0 || gpu_check_pattern(gpu, mem, len, SEED_A))
			_exit(1);
		if (gpu_write_pattern(gpu, mem, len, SEED_B))
			_exit(2);
		__atomic_store_n(step, 1, __ATOMIC_SEQ_CST);
		if (!wait_for(__atomic_load_n(step, __ATOMIC_SEQ_CST) == 2, 10000))
			_exit(3);
		_exit(pattern_check(mem, len, SEED_B) == -1 ? 0 : 4);
	}
	ASSERT_TRUE(wait_for(__atomic_load_n(step, __ATOMIC_SEQ_CST) == 1, 10000));
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	GPU_OK(gpu_write_pattern(self->gpu, mem, len, 77));
	__atomic_store_n(step, 2, __ATOMIC_SEQ_CST);
	ASSERT_EQ(0, wait_child(child, 10000));
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, 77));
	ASSERT_EQ(-1, pattern_check(mem, len, 77));
}

TEST_F(svm, inherited_descriptor_is_refused)
{
	size_t len = page_size();
	char *mem = map_small(len);
	pid_t child;

	pattern_fill(mem, len, SEED_A);
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		struct drm_vsvm_stats stats;
		struct drm_vsvm_queue queue = {};

		if (gpu_fill(self->gpu, mem, 8, 1) != -EPERM)
			_exit(1);
		if (gpu_map_ahead(self->gpu, mem, len, 0) != -EPERM)
			_exit(2);
		if (gpu_stats(self->gpu, &stats) != -EPERM)
			_exit(3);
		if (gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_QUEUE, &queue) != -EPERM)
			_exit(4);
		if (gpu_wait(self->gpu, 0, 1, NULL, 0, 0, NULL) != -EPERM)
			_exit(5);
		if (gpu_debug(self->gpu, VSVM_DEBUG_DELAY, VSVM_POINT_ACCESS, 0, 0) != -EPERM)
			_exit(6);
		_exit(0);
	}
	ASSERT_EQ(0, wait_child(child, 10000));
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_A));
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
}

TEST_F(svm, hugetlb)
{
	size_t len = 2 * huge_size();
	uint64_t word;
	char *mem;

	change_setting("/proc/sys/vm/nr_hugepages", "4");
	mem = mmap(NULL, len, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (mem == MAP_FAILED)
		SKIP(GPU_OK(gpu_fill(self->gpu, &len, 8, 1)); return, "no hugetlb pages");
	GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED_A));
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_A));
	pattern_fill(mem, len, SEED_B);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_B));
	/* Moving it is announced as an event of another kind than for other memory. */
	ASSERT_EQ(0, mprotect(mem, len, PROT_READ));
	GPU_FAILS(VSVM_REASON_ACCESS, gpu_fill(self->gpu, mem, 8, 1));
	ASSERT_EQ(0, munmap(mem, huge_size()));
	GPU_FAILS(VSVM_REASON_UNMAPPED, gpu_fill(self->gpu, mem, 8, 1));
	GPU_OK(gpu_read(self->gpu, mem + huge_size(), &word, 8));
	ASSERT_EQ(pattern_word(SEED_B, huge_size()), word);
}

TEST_F(svm, hugetlb_moved)
{
	size_t huge = huge_size();
	char *mem, *target, *moved;

	change_setting("/proc/sys/vm/nr_hugepages", "4");
	mem = mmap(NULL, huge, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (mem == MAP_FAILED)
		SKIP(GPU_OK(gpu_fill(self->gpu, &huge, 8, 1)); return, "no hugetlb pages");
	pattern_fill(mem, huge, SEED_A);
	GPU_OK(gpu_check_pattern(self->gpu, mem, huge, SEED_A));
	target = map_huge(huge);
	moved = mremap(mem, huge, huge, MREMAP_MAYMOVE | MREMAP_FIXED, target);
	ASSERT_EQ(target, moved);
	GPU_FAILS(VSVM_REASON_UNMAPPED, gpu_check_pattern(self->gpu, mem, 4096, SEED_A));
	GPU_OK(gpu_check_pattern(self->gpu, moved, huge, SEED_A));
	munmap(moved, huge);
}

TEST_F(svm, mlocked)
{
	size_t len = PAGES * page_size();
	char *mem = map_small(len);

	ASSERT_EQ(0, mlock(mem, len));
	GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED_A));
	ASSERT_EQ(0, munlock(mem, len));
	ASSERT_EQ(0, mlock(mem, len));
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_A));
}

TEST_F(svm, mremap_moves_the_data)
{
	size_t len = 2 * huge_size(), page = page_size();
	char *mem = map_huge(len), *room = map_small(len + page), *moved;

	pattern_fill(mem, len, SEED_A);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	/* To an address that is not aligned to a huge page, which splits them. */
	moved = (char *)(((uintptr_t)room + page) & ~(page - 1));
	ASSERT_EQ(moved, mremap(mem, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, moved));
	GPU_FAILS(VSVM_REASON_UNMAPPED, gpu_fill(self->gpu, mem, 8, 1));
	GPU_OK(gpu_check_pattern(self->gpu, moved, len, SEED_A));
	GPU_OK(gpu_write_pattern(self->gpu, moved, len, SEED_B));
	ASSERT_EQ(-1, pattern_check(moved, len, SEED_B));
	/* Smaller in place, and larger again. */
	ASSERT_EQ(moved, mremap(moved, len, page, 0));
	GPU_FAILS(VSVM_REASON_UNMAPPED, gpu_fill(self->gpu, moved + page, 8, 1));
	GPU_OK(gpu_check_pattern(self->gpu, moved, page, SEED_B));
}

TEST_F(svm, mremap_keeps_the_mapping)
{
	size_t len = PAGES * page_size(), i;
	char *mem = map_small(len), *room = map_small(len);
	uint64_t word;

	pattern_fill(mem, len, SEED_A);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	ASSERT_EQ(room, mremap(mem, len, len, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
			       room));
	GPU_OK(gpu_check_pattern(self->gpu, room, len, SEED_A));
	for (i = 0; i < len; i += page_size()) {
		GPU_OK(gpu_read(self->gpu, mem + i, &word, 8));
		ASSERT_EQ(0, word);
	}
}

/* A soft-dirty bit must come back when the GPU writes: checkpointing programs rely on it. */
TEST_F(svm, soft_dirty)
{
	size_t page = page_size(), len = 4 * page;
	char *mem = map_small(len);

	pattern_fill(mem, len, SEED_A);
	GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED_B));
	if (!(pagemap(mem) & PM_SOFT_DIRTY))
		SKIP(return, "no soft-dirty bits");
	ASSERT_EQ(0, write_text("/proc/self/clear_refs", "4"));
	ASSERT_FALSE(pagemap(mem) & PM_SOFT_DIRTY);
	ASSERT_FALSE(pagemap(mem + page) & PM_SOFT_DIRTY);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_B));
	ASSERT_FALSE(pagemap(mem) & PM_SOFT_DIRTY);
	GPU_OK(gpu_write_pattern(self->gpu, mem + page, page, SEED_A));
	EXPECT_TRUE(pagemap(mem + page) & PM_SOFT_DIRTY);
	ASSERT_EQ(-1, pattern_check(mem + page, page, SEED_A));
}

TEST_F(svm, ksm_merged)
{
	size_t page = page_size(), len = 8 * page, i;
	char *mem = map_small(len);

	for (i = 0; i < len; i += page)
		pattern_fill(mem + i, page, SEED_A);
	GPU_OK(gpu_check_pattern(self->gpu, mem, page, SEED_A));
	if (madvise(mem, len, MADV_MERGEABLE))
		SKIP(return, "no KSM");
	change_setting("/sys/kernel/mm/ksm/sleep_millisecs", "1");
	change_setting("/sys/kernel/mm/ksm/pages_to_scan", "1000");
	ASSERT_EQ(0, change_setting("/sys/kernel/mm/ksm/run", "1"));
	/* Map while it merges. */
	ASSERT_TRUE(wait_for(!gpu_check_pattern(self->gpu, mem, page, SEED_A) &&
			     kpageflags(mem) & kpageflags(mem + 3 * page) & KPF_BIT_KSM, 20000));
	for (i = 0; i < len; i += page)
		GPU_OK(gpu_check_pattern(self->gpu, mem + i, page, SEED_A));
	/* Writing to one of the merged pages must not write to all of them. */
	GPU_OK(gpu_write_pattern(self->gpu, mem + 3 * page, page, SEED_B));
	for (i = 0; i < len; i += page)
		ASSERT_EQ(-1, pattern_check(mem + i, page, i == 3 * page ? SEED_B : SEED_A));
	ASSERT_EQ(0, change_setting("/sys/kernel/mm/ksm/run", "2"));
	for (i = 0; i < len; i += page)
		GPU_OK(gpu_check_pattern(self->gpu, mem + i, page,
					 i == 3 * page ? SEED_B : SEED_A));
}

TEST_F(svm, guard_region)
{
	size_t page = page_size(), len = 8 * page;
	char *mem = map_small(len);

	pattern_fill(mem, len, SEED_A);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	if (madvise(mem + 3 * page, page, MADV_GUARD_INSTALL))
		SKIP(return, "no guard regions");
	GPU_FAILS(VSVM_REASON_INACCESSIBLE, gpu_fill(self->gpu, mem + 3 * page, 8, 1));
	GPU_FAILS(VSVM_REASON_INACCESSIBLE, gpu_check_pattern(self->gpu, mem, len, SEED_A));
	GPU_OK(gpu_check_pattern(self->gpu, mem, 3 * page, SEED_A));
	ASSERT_EQ(0, madvise(mem + 3 * page, page, MADV_GUARD_REMOVE));
	GPU_OK(gpu_write_pattern(self->gpu, mem + 3 * page, page, SEED_B));
	ASSERT_EQ(-1, pattern_check(mem + 3 * page, page, SEED_B));
	ASSERT_EQ(-1, pattern_check(mem, 3 * page, SEED_A));
}

static sigjmp_buf bus_jump;

static void on_bus(int signal)
{
	siglongjmp(bus_jump, 1);
}

TEST_F(svm, poisoned)
{
	size_t page = page_size(), len = 4 * page;
	struct drm_vsvm_error error;
	struct list list = {};
	char *mem = map_small(len);

	pattern_fill(mem, len, SEED_A);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	signal(SIGBUS, on_bus);
	if (!sigsetjmp(bus_jump, 1) && madvise(mem + page, page, MADV_HWPOISON))
		SKIP(return, "no memory failure handling: %s", strerror(errno));
	signal(SIGBUS, SIG_DFL);

	list_fill(&list, mem + page, 8, 1);
	GPU_FAILS(VSVM_REASON_POISONED, gpu_run(self->gpu, 0, &list, NULL, 0, &error));
	EXPECT_EQ((uintptr_t)(mem + page), error.address);
	EXPECT_EQ(-EHWPOISON, gpu_map_ahead(self->gpu, mem, len, 0));
	/* Its neighbours are as good as before. */
	GPU_OK(gpu_check_pattern(self->gpu, mem, page, SEED_A));
	ASSERT_EQ(-1, pattern_check(mem, page, SEED_A));
	/* New memory at the address works. */
	ASSERT_EQ(0, munmap(mem + page, page));
	ASSERT_EQ(mem + page, mmap(mem + page, page, RW,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	GPU_OK(gpu_write_pattern(self->gpu, mem + page, page, SEED_B));
	ASSERT_EQ(-1, pattern_check(mem + page, page, SEED_B));
}

/* The registers of the device itself: memory without pages, which is not for GPUs. */
static int open_registers(void)
{
	char path[96], text[32];
	unsigned int slot;

	for (slot = 0; slot < 32; slot++) {
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/0000:00:%02x.0/vendor", slot);
		if (read_text(path, text, sizeof(text)) <= 0 || strncmp(text, "0x1234", 6))
			continue;
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/0000:00:%02x.0/device", slot);
		if (read_text(path, text, sizeof(text)) <= 0 || strncmp(text, "0x11e8", 6))
			continue;
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/0000:00:%02x.0/resource0",
			 slot);
		return open(path, O_RDWR | O_CLOEXEC);
	}
	return -1;
}

TEST_F(svm, device_registers_are_refused)
{
	size_t page = page_size();
	int fd = open_registers();
	char *mem, *regs;
	uint64_t word;

	ASSERT_LE(0, fd);
	mem = map_small(3 * page);
	pattern_fill(mem, 3 * page, SEED_A);
	regs = mmap(mem + page, page, RW, MAP_SHARED | MAP_FIXED, fd, 0);
	ASSERT_EQ(mem + page, regs)
		TH_LOG("mmap of the registers: %s", strerror(errno));
	GPU_FAILS(VSVM_REASON_INACCESSIBLE, gpu_read(self->gpu, regs, &word, 8));
	GPU_FAILS(VSVM_REASON_INACCESSIBLE, gpu_fill(self->gpu, regs, 8, 1));
	ASSERT_EQ(-EFAULT, gpu_map_ahead(self->gpu, mem, 3 * page, 0));
	/* Ordinary memory on both sides is not spoilt by it. */
	GPU_OK(gpu_check_pattern(self->gpu, mem, page, SEED_A));
	GPU_OK(gpu_read(self->gpu, mem + 2 * page, &word, 8));
	ASSERT_EQ(pattern_word(SEED_A, 2 * page), word);
	close(fd);
}

/* Secret memory at an address, or anywhere; NULL where the kernel has none. */
static char *secret(char *addr, size_t len)
{
	int fd = syscall(__NR_memfd_secret, O_CLOEXEC);
	char *mem;

	if (fd < 0)
		return NULL;
	if (ftruncate(fd, len)) {
		close(fd);
		return NULL;
	}
	mem = mmap(addr, len, RW, MAP_SHARED | (addr ? MAP_FIXED : 0), fd, 0);
	close(fd);
	return mem == MAP_FAILED ? NULL : mem;
}

/* Memory that not even the kernel may look at is not for devices either, and stays what it was. */
TEST_F(svm, secret_memory)
{
	size_t page = page_size(), len = 4 * page;
	struct drm_vsvm_error error;
	struct list list = {};
	char *mem = secret(NULL, len);
	uint64_t word;

	if (!mem)
		SKIP(GPU_OK(gpu_fill(self->gpu, &word, 8, 1)); return, "no secret memory");
	pattern_fill(mem, len, SEED_A);
	list_load(&list, mem + page, 8, 0);
	GPU_FAILS(VSVM_REASON_INACCESSIBLE,
		  gpu_run(self->gpu, 0, &list, &word, 8, &error));
	EXPECT_EQ((uintptr_t)(mem + page), error.address);
	GPU_FAILS(VSVM_REASON_INACCESSIBLE, gpu_fill(self->gpu, mem, 8, 1));
	ASSERT_EQ(-EFAULT, gpu_map_ahead(self->gpu, mem, len, 0));
	ASSERT_EQ(-EFAULT, gpu_map_ahead(self->gpu, mem, len, VSVM_MAP_WRITE));
	EXPECT_EQ(0, STAT(mapped_bytes));
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_A));
	/* Ordinary memory can follow at the address. */
	ASSERT_EQ(mem, mmap(mem, len, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED_B));
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_B));
}

/* The same where it comes into the middle of a block that was mapped before. */
TEST_F(svm, secret_memory_among_other)
{
	size_t page = page_size(), huge = huge_size(), at = 37 * page;
	char *mem = map_huge(huge), *buf = malloc(huge);
	uint64_t mapped, word;

	ASSERT_NE(NULL, mem);
	pattern_fill(mem, huge, SEED_A);
	GPU_OK(gpu_check_pattern(self->gpu, mem, huge, SEED_A));
	if (!secret(mem + at, page))
		SKIP(return, "no secret memory");
	pattern_fill(mem + at, page, SEED_B);

	/* Its neighbours first, which are mapped as a whole, then itself, then they again. */
	GPU_OK(gpu_check_pattern(self->gpu, mem, at, SEED_A));
	GPU_OK(gpu_read(self->gpu, mem + at + page, &word, 8));
	ASSERT_EQ(pattern_word(SEED_A, at + page), word);
	mapped = STAT(mapped_bytes);
	EXPECT_GE(huge - page, mapped);
	GPU_FAILS(VSVM_REASON_INACCESSIBLE, gpu_read(self->gpu, mem + at, buf, 8));
	GPU_FAILS(VSVM_REASON_INACCESSIBLE, gpu_fill(self->gpu, mem + at, 8, 1));
	GPU_FAILS(VSVM_REASON_INACCESSIBLE, gpu_read(self->gpu, mem, buf, huge));
	ASSERT_EQ(-EFAULT, gpu_map_ahead(self->gpu, mem, huge, 0));
	EXPECT_GE(huge - page, STAT(mapped_bytes));
	GPU_OK(gpu_read(self->gpu, mem + at - 8, &word, 8));
	ASSERT_EQ(pattern_word(SEED_A, at - 8), word);
	GPU_OK(gpu_fill(self->gpu, mem + at + page, 8, 5));
	ASSERT_EQ(5, *(uint64_t *)(mem + at + page));
	ASSERT_EQ(-1, pattern_check(mem + at, page, SEED_B));
	ASSERT_EQ(-1, pattern_check(mem, at, SEED_A));
}

/* A fault handler in user space. */
struct handler {
	int uffd;
	unsigned int missing, wp;
	unsigned int expect;
	size_t span;
	char *mem;
	char source[65536];
	int error;
};

static void *handle(void *arg)
{
	struct handler *h = arg;
	uintptr_t addr;
	uint64_t flags;
	int ret;

	while (h->missing + h->wp < h->expect) {
		ret = uffd_next(h->uffd, &addr, &flags, 10000);
		if (ret <= 0) {
			h->error = ret ? ret : -ETIME;
			break;
		}
		if (flags & UFFD_PAGEFAULT_FLAG_WP) {
			h->wp++;
			ret = uffd_protect(h->uffd, (void *)addr, page_size(), 0);
		} else {
			h->missing++;
			/* Longer than a fault may take that has to be quick. */
			if (h->missing == 1)
				sleep_ms(1500);
			pattern_fill(h->source, page_size(), addr - (uintptr_t)h->mem);
			ret = uffd_copy(h->uffd, addr, h->source);
		}
		if (ret) {
			h->error = ret;
			break;
		}
	}
	return NULL;
}

TEST_F(svm, userfaultfd_missing)
{
	size_t page = page_size(), len = 6 * page, i;
	struct handler *h = calloc(1, sizeof(*h));
	char *mem = map_small(len);
	pthread_t thread;

	h->uffd = uffd_open();
	if (h->uffd < 0)
		SKIP(GPU_OK(gpu_fill(self->gpu, &len, 8, 1)); return, "no userfaultfd");
	ASSERT_EQ(0, uffd_register(h->uffd, mem, len, UFFDIO_REGISTER_MODE_MISSING));
	h->expect = 6;
	h->mem = mem;
	ASSERT_EQ(0, pthread_create(&thread, NULL, handle, h));
	for (i = 0; i < len; i += page)
		GPU_OK(gpu_check_pattern(self->gpu, mem + i, page, i));
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_EQ(0, h->error);
	EXPECT_EQ(6, h->missing);
	GPU_OK(gpu_write_pattern(self->gpu, mem, len, SEED_B));
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_B));
	close(h->uffd);
}

TEST_F(svm, userfaultfd_write_protect)
{
	size_t page = page_size(), len = 4 * page;
	struct handler *h = calloc(1, sizeof(*h));
	char *mem = map_small(len);
	pthread_t thread;

	pattern_fill(mem, len, SEED_A);
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	h->uffd = uffd_open();
	if (h->uffd < 0 || uffd_register(h->uffd, mem, len, UFFDIO_REGISTER_MODE_WP))
		SKIP(return, "no write-protecting userfaultfd");
	ASSERT_EQ(0, uffd_protect(h->uffd, mem, len, 1));
	h->expect = 1;
	ASSERT_EQ(0, pthread_create(&thread, NULL, handle, h));
	/* Reading does not ask the handler, writing does, once. */
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	EXPECT_EQ(0, h->wp);
	GPU_OK(gpu_write_pattern(self->gpu, mem + page, page, SEED_B));
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_EQ(0, h->error);
	EXPECT_EQ(1, h->wp);
	EXPECT_EQ(0, h->missing);
	ASSERT_EQ(-1, pattern_check(mem + page, page, SEED_B));
	ASSERT_EQ(-1, pattern_check(mem, page, SEED_A));
	close(h->uffd);
}

/* A handler that never answers must not keep anything but the queue that waits for it. */
TEST_F(svm, userfaultfd_unanswered)
{
	size_t page = page_size();
	char *mem = map_small(2 * page), byte;
	struct drm_vsvm_error error;
	struct list list = {};
	uint64_t seqno;
	uintptr_t addr;
	int uffd = uffd_open();

	if (uffd < 0)
		SKIP(GPU_OK(gpu_fill(self->gpu, &page, 8, 1)); return, "no userfaultfd");
	ASSERT_EQ(0, uffd_register(uffd, mem, page, UFFDIO_REGISTER_MODE_MISSING));
	list_fill(&list, mem, 8, 1);
	ASSERT_EQ(0, gpu_submit(self->gpu, 1, &list, NULL, 0, &seqno));
	ASSERT_EQ(1, uffd_next(uffd, &addr, NULL, 10000));
	ASSERT_EQ((uintptr_t)mem, addr);
	GPU_OK(gpu_fill(self->gpu, mem + page, 8, 7));
	ASSERT_EQ(7, mem[page]);
	ASSERT_EQ(-ETIME, gpu_wait(self->gpu, 1, seqno, NULL, 0, 10, &error));
	/* Closing it wakes the fault, which then finds ordinary memory. */
	close(uffd);
	GPU_OK(gpu_wait(self->gpu, 1, seqno, NULL, 0, 10000, &error));
	GPU_OK(gpu_read(self->gpu, mem, &byte, 1));
	ASSERT_EQ(1, byte);
}

TEST_HARNESS_MAIN
