// SPDX-License-Identifier: GPL-2.0
/*
 * The device goes away while processes use it: it is unbound from its driver, or pulled out. That
 * must not wait for any of them, they must get errors and nothing worse, and when the device comes
 * back it works.
 */
#include "kselftest_harness.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <lib/test_hmm_uapi.h>

#include "gpu.h"
#include "mem.h"
#include "sys.h"
#include "uffd.h"

#define SEED_A 0xa11ce
#define SEED_B 0xb0b

#define DEVICES "/sys/bus/pci/devices/"
#define DRIVER "/sys/bus/pci/drivers/vsvm/"

/* How long the way out may take, on an emulated machine. */
#define END_MS 20000

FIXTURE(unbind)
{
	/* Where the device is on the bus. */
	char slot[300];
	int gpu;
	int dmirror;
	char *mem;
	size_t len;
};

/* Opens the render node of the device in a slot: a descriptor or -errno. */
static int open_slot(const char *slot)
{
	char path[400];
	struct dirent *entry;
	int fd = -ENODEV;
	DIR *dir;

	snprintf(path, sizeof(path), DEVICES "%s/drm", slot);
	dir = opendir(path);
	if (!dir)
		return -ENODEV;
	while ((entry = readdir(dir))) {
		if (strncmp(entry->d_name, "renderD", 7))
			continue;
		snprintf(path, sizeof(path), "/dev/dri/%s", entry->d_name);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			fd = -errno;
		break;
	}
	closedir(dir);
	return fd;
}

/* Writes to a file of the bus, in a process of its own, and in time. */
static int on_bus(const char *path, const char *text)
{
	pid_t child = fork();

	if (child < 0)
		return -errno;
	if (!child)
		_exit(-write_text(path, "%s", text));
	return wait_child(child, END_MS);
}

#define UNBIND() \
	ASSERT_EQ(0, on_bus(DRIVER "unbind", self->slot)) \
		TH_LOG("the device cannot be unbound")

#define BIND() \
	ASSERT_EQ(0, on_bus(DRIVER "bind", self->slot)) \
		TH_LOG("the device cannot be bound again")

static int dmirror(int fd, unsigned long request, void *addr, void *buf, size_t len)
{
	struct hmm_dmirror_cmd cmd = {
		.addr = (uintptr_t)addr,
		.ptr = (uintptr_t)buf,
		.npages = len / page_size(),
	};

	return ioctl(fd, request, &cmd) ? -errno : 0;
}

/* The first device on the bus, which is the one behind /dev/hmm_dmirror0. */
static void first_slot(char *slot, size_t size)
{
	struct dirent *entry;
	DIR *dir = opendir(DRIVER);

	slot[0] = '\0';
	while (dir && (entry = readdir(dir)))
		if (strchr(entry->d_name, ':') && (!slot[0] || strcmp(entry->d_name, slot) < 0))
			snprintf(slot, size, "%s", entry->d_name);
	if (dir)
		closedir(dir);
}

FIXTURE_SETUP(unbind)
{
	first_slot(self->slot, sizeof(self->slot));
	ASSERT_NE(0, self->slot[0])
		TH_LOG("no vsvm device");
	self->gpu = open_slot(self->slot);
	ASSERT_LE(0, self->gpu);
	self->dmirror = open("/dev/hmm_dmirror0", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->dmirror);
	self->len = 64 * page_size();
	self->mem = map_small(self->len);
	ASSERT_NE(NULL, self->mem);
	pattern_fill(self->mem, self->len, SEED_A);
	ASSERT_EQ(0, gpu_check_pattern(self->gpu, self->mem, self->len, SEED_A));
}

/* Whatever was done to it, the device can be used again by whoever opens it. */
FIXTURE_TEARDOWN(unbind)
{
	uint64_t word = 0;
	int gpu, i;

	close(self->gpu);
	close(self->dmirror);
	for (i = 0; i < 2; i++) {
		gpu = gpu_open(i);
		EXPECT_LE(0, gpu)
			TH_LOG("only %d devices", i);
		EXPECT_EQ(0, gpu_fill(gpu, &word, 8, 42 + i));
		EXPECT_EQ(42 + i, word);
		close(gpu);
	}
	i = open("/dev/hmm_dmirror0", O_RDWR | O_CLOEXEC);
	EXPECT_LE(0, i);
	close(i);
}

/* Descriptors of a device that is gone: every ioctl says so. */
static void all_refuse(struct __test_metadata *_metadata, FIXTURE_DATA(unbind) *self)
{
	struct drm_vsvm_queue queue = {};
	struct drm_vsvm_stats stats;
	struct list list = {};
	uint64_t seqno;
	char *buf = map_small(page_size());

	list_fill(&list, self->mem, 8, 1);
	EXPECT_EQ(-ENODEV, gpu_submit(self->gpu, 0, &list, NULL, 0, &seqno));
	EXPECT_EQ(-ENODEV, gpu_wait(self->gpu, 0, 1, NULL, 0, 0, NULL));
	EXPECT_EQ(-ENODEV, gpu_ioctl(self->gpu, DRM_IOCTL_VSVM_QUEUE, &queue));
	EXPECT_EQ(-ENODEV, gpu_map_ahead(self->gpu, self->mem, page_size(), 0));
	EXPECT_EQ(-ENODEV, gpu_stats(self->gpu, &stats));
	EXPECT_EQ(-ENODEV, gpu_debug(self->gpu, VSVM_DEBUG_DELAY, VSVM_POINT_ACCESS, 0, 0));
	EXPECT_NE(0, dmirror(self->dmirror, HMM_DMIRROR_READ, self->mem, buf, page_size()));
	EXPECT_NE(0, dmirror(self->dmirror, HMM_DMIRROR_WRITE, self->mem, buf, page_size()));
	munmap(buf, page_size());
}

/* The memory is the process's as before, and all that can be done with it can be done. */
static void memory_works(struct __test_metadata *_metadata, FIXTURE_DATA(unbind) *self)
{
	size_t part = self->len / 4;
	pid_t child;

	ASSERT_EQ(-1, pattern_check(self->mem, self->len, SEED_A));
	ASSERT_EQ(0, mprotect(self->mem, part, PROT_READ));
	ASSERT_EQ(0, mprotect(self->mem, part, RW));
	ASSERT_EQ(0, madvise(self->mem + part, part, MADV_DONTNEED));
	ASSERT_EQ(0, munmap(self->mem + 2 * part, part));
	child = fork();
	ASSERT_LE(0, child);
	/* It ends with copies of all descriptors. */
	if (!child)
		_exit(pattern_check(self->mem, part, SEED_A) != -1);
	ASSERT_EQ(0, wait_child(child, END_MS));
	ASSERT_EQ(-1, pattern_check(self->mem, part, SEED_A));
	ASSERT_EQ(0, *(uint64_t *)(self->mem + part));
}

TEST_F_TIMEOUT(unbind, open_descriptors, 60)
{
	int other = open_slot(self->slot), again;
	char *buf = map_small(self->len);

	ASSERT_LE(0, other);
	ASSERT_EQ(0, gpu_check_pattern(other, self->mem, self->len, SEED_A));
	ASSERT_EQ(0, dmirror(self->dmirror, HMM_DMIRROR_READ, self->mem, buf, self->len));
	ASSERT_EQ(-1, pattern_check(buf, self->len, SEED_A));

	UNBIND();
	all_refuse(_metadata, self);
	memory_works(_metadata, self);
	EXPECT_EQ(0, close(other));

	BIND();
	/* A new descriptor is one of the device, an old one never will be again. */
	again = open_slot(self->slot);
	ASSERT_LE(0, again);
	ASSERT_EQ(0, gpu_write_pattern(again, self->mem, self->len / 2, SEED_B));
	ASSERT_EQ(-1, pattern_check(self->mem, self->len / 2, SEED_B));
	all_refuse(_metadata, self);
	close(again);
}

/* Not the driver goes, but the device itself. */
TEST_F_TIMEOUT(unbind, pulled_out, 60)
{
	char path[400];

	snprintf(path, sizeof(path), DEVICES "%s/remove", self->slot);
	ASSERT_EQ(0, on_bus(path, "1"));
	EXPECT_FALSE(path_exists(path));
	all_refuse(_metadata, self);
	memory_works(_metadata, self);
	ASSERT_EQ(0, on_bus("/sys/bus/pci/rescan", "1"));
	ASSERT_TRUE(path_exists(path));
}

struct submitter {
	int gpu;
	unsigned int queue;
	char *mem;
	size_t len;
	int ret;
	uint64_t done;
};

/* What can become of a list whose device goes. */
static bool is_cut_off(int ret)
{
	return ret == VSVM_REASON_KILLED || ret == VSVM_REASON_GONE;
}

/* Submits and waits until there is no device. */
static void *submitter(void *arg)
{
	struct submitter *s = arg;
	struct list list = {};
	uint64_t seqno;
	unsigned int i;

	for (i = 0; i < LIST_MAX; i++)
		list_fill(&list, s->mem + i * s->len / LIST_MAX, s->len / LIST_MAX, i);
	for (;;) {
		s->ret = gpu_submit(s->gpu, s->queue, &list, NULL, 0, &seqno);
		if (!s->ret)
			s->ret = gpu_wait(s->gpu, s->queue, seqno, NULL, 0, -1, NULL);
		if (is_cut_off(s->ret))
			continue;
		if (s->ret)
			return NULL;
		__atomic_add_fetch(&s->done, 1, __ATOMIC_RELAXED);
		madvise(s->mem, s->len, MADV_DONTNEED);
	}
}

TEST_F_TIMEOUT(unbind, running_queues, 60)
{
	struct submitter s[VSVM_QUEUES];
	pthread_t thread[VSVM_QUEUES];
	size_t len = 2 << 20;
	char *mem = map_small(VSVM_QUEUES * len);
	unsigned int i;

	for (i = 0; i < VSVM_QUEUES; i++) {
		s[i] = (struct submitter) {
			.gpu = self->gpu, .queue = i, .mem = mem + i * len, .len = len,
		};
		ASSERT_EQ(0, pthread_create(&thread[i], NULL, submitter, &s[i]));
	}
	for (i = 0; i < VSVM_QUEUES; i++)
		ASSERT_TRUE(wait_for(__atomic_load_n(&s[i].done, __ATOMIC_RELAXED), END_MS));
	UNBIND();
	for (i = 0; i < VSVM_QUEUES; i++) {
		ASSERT_EQ(0, pthread_join(thread[i], NULL));
		EXPECT_EQ(-ENODEV, s[i].ret)
			TH_LOG("queue %u: %s", i, s[i].ret < 0 ? strerror(-s[i].ret) :
			       gpu_reason(s[i].ret));
	}
	/* Nobody writes any more. */
	pattern_fill(mem, VSVM_QUEUES * len, SEED_B);
	sleep_ms(50);
	EXPECT_EQ(-1, pattern_check(mem, VSVM_QUEUES * len, SEED_B));
	all_refuse(_metadata, self);
	BIND();
}

struct reader {
	int fd;
	char *mem;
	char *buf;
	int ret;
};

static void *reader(void *arg)
{
	struct reader *r = arg;

	r->ret = dmirror(r->fd, HMM_DMIRROR_READ_UNLOCKED, r->mem, r->buf, page_size());
	return NULL;
}

/*
 * A queue, and a process, are in faults that user space has to answer, and does not. The device goes
 * all the same.
 */
TEST_F_TIMEOUT(unbind, faults_that_nobody_answers, 60)
{
	size_t page = page_size();
	char *mem = map_small(2 * page);
	struct submitter s = { .gpu = self->gpu, .mem = mem, .len = 512 };
	struct reader r = { .fd = self->dmirror, .mem = mem + page, .buf = map_small(page) };
	pthread_t waiting, reading;
	uintptr_t addr[2];
	int uffd = uffd_open(), i;

	ASSERT_LE(0, uffd);
	ASSERT_EQ(0, uffd_register(uffd, mem, 2 * page, UFFDIO_REGISTER_MODE_MISSING));
	ASSERT_EQ(0, pthread_create(&waiting, NULL, submitter, &s));
	ASSERT_EQ(0, pthread_create(&reading, NULL, reader, &r));
	for (i = 0; i < 2; i++)
		ASSERT_EQ(1, uffd_next(uffd, &addr[i], NULL, 10000));
	ASSERT_NE(addr[0], addr[1]);

	UNBIND();
	ASSERT_EQ(0, pthread_join(waiting, NULL));
	EXPECT_EQ(-ENODEV, s.ret);
	EXPECT_EQ(0, s.done);
	all_refuse(_metadata, self);
	BIND();

	/* Closing it wakes the other one, which then has memory and no device. */
	close(uffd);
	ASSERT_EQ(0, pthread_join(reading, NULL));
	EXPECT_NE(0, r.ret);
	memory_works(_metadata, self);
}

/* What the processes of a load say of themselves. */
struct load {
	bool over;
	volatile uint64_t done[2];
};

/* Open, use, close, whatever the device does meanwhile; returns what is wrong. */
static int live(const char *slot, struct load *load, unsigned int me)
{
	size_t len = 256 * page_size();
	char *mem = map_small(len);
	struct drm_vsvm_stats stats;
	struct list list = {};
	uint64_t seqno[VSVM_QUEUES], n = 0;
	int gpu, ret;
	unsigned int q;

	for (q = 0; q < LIST_MAX; q++)
		list_add(&list, mem + q * 4 * page_size(), 8, 1);
	while (!__atomic_load_n(&load->over, __ATOMIC_RELAXED)) {
		gpu = open_slot(slot);
		if (gpu < 0) {
			sleep_ms(2);
			continue;
		}
		do {
			n++;
			pattern_fill(mem, len, n);
			ret = gpu_map_ahead(gpu, mem, len / 2, VSVM_MAP_WRITE);
			if (!ret)
				ret = gpu_check_pattern(gpu, mem, len, n);
			for (q = 0; !ret && q < VSVM_QUEUES; q++)
				ret = gpu_submit(gpu, q, &list, NULL, 0, &seqno[q]);
			madvise(mem, len / 4, MADV_DONTNEED);
			/* Sometimes it ends with work in the queues. */
			for (q = 0; !ret && n % 5 && q < VSVM_QUEUES; q++)
				ret = gpu_wait(gpu, q, seqno[q], NULL, 0, -1, NULL);
			if (!ret)
				ret = gpu_stats(gpu, &stats);
			if (ret && ret != -ENODEV && ret != -ESRCH && !is_cut_off(ret))
				return 2;
			if (!ret && (stats.stale_uses || stats.bus_errors))
				return 3;
			load->done[me] += !ret;
		} while (!ret && n % 5);
		close(gpu);
		/* What the GPU should not do any more would show here. */
		pattern_fill(mem, len, ~n);
		if (pattern_check(mem, len, ~n) != -1)
			return 4;
	}
	return 0;
}

TEST_F_TIMEOUT(unbind, under_load, 120)
{
	struct load *load = mmap(NULL, page_size(), RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint64_t before;
	pid_t child[2];
	int i, round;

	ASSERT_NE(MAP_FAILED, load);
	for (i = 0; i < 2; i++) {
		child[i] = fork();
		ASSERT_LE(0, child[i]);
		if (!child[i])
			_exit(live(self->slot, load, i));
	}
	for (round = 0; round < 6; round++) {
		/* All are at work. */
		for (i = 0; i < 2; i++) {
			before = load->done[i];
			ASSERT_TRUE(wait_for(load->done[i] > before + 1, END_MS))
				TH_LOG("round %d: process %d does not get on", round, i);
		}
		UNBIND();
		sleep_ms(round * 3);
		BIND();
	}
	__atomic_store_n(&load->over, true, __ATOMIC_RELAXED);
	for (i = 0; i < 2; i++)
		EXPECT_EQ(0, wait_child(child[i], END_MS));
	TH_LOG("%llu and %llu rounds of the processes", (unsigned long long)load->done[0],
	       (unsigned long long)load->done[1]);
}

TEST_HARNESS_MAIN
