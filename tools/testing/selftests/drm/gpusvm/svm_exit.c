// SPDX-License-Identifier: GPL-2.0
/*
 * The end: of processes, of threads, of descriptors, in the middle of faults. It must come soon,
 * leave nothing behind that writes to freed memory, and leave the next process undisturbed.
 */
#include "svm.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "uffd.h"

#define SEED_A 0xa11ce
#define ROUNDS 12

/* How long the end of a process may take that has a GPU, on an emulated machine. */
#define END_MS 15000

/*
 * Let all queues fault their way through fresh memory for ever. `ready` is set when they have done
 * it once. Returns only if something goes wrong.
 */
static void busy(int gpu, char *mem, size_t len, int *ready)
{
	struct list list = {};
	uint64_t seqno[VSVM_QUEUES];
	size_t step = len / LIST_MAX;
	unsigned int i, round;
	int ret;

	if (gpu < 0 || !mem)
		return;
	for (i = 0; i < LIST_MAX; i++)
		list_fill(&list, mem + i * step, step, i + 1);
	for (round = 0;; round++) {
		for (i = 0; i < VSVM_QUEUES; i++) {
			ret = gpu_submit(gpu, i, &list, NULL, 0, &seqno[i]);
			/* A queue may be full, and nothing else. */
			if (ret && ret != -EBUSY)
				return;
		}
		madvise(mem, len, MADV_DONTNEED);
		if (round % 16 == 0) {
			for (i = 0; i < VSVM_QUEUES; i++)
				if (gpu_wait(gpu, i, seqno[i], NULL, 0, -1, NULL))
					return;
			__atomic_store_n(ready, 1, __ATOMIC_SEQ_CST);
		}
	}
}

static int *shared_flag(void)
{
	return mmap(NULL, page_size(), RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static bool wait_flag(int *flag)
{
	return wait_for(__atomic_load_n(flag, __ATOMIC_SEQ_CST), 20000);
}

/* A child is killed, and must end soon, whatever its GPU does. */
static void kill_child(struct __test_metadata *_metadata, pid_t child)
{
	int status;

	ASSERT_EQ(0, kill(child, SIGKILL));
	status = wait_child(child, END_MS);
	ASSERT_LE(0, status)
		TH_LOG("the killed process does not end");
	ASSERT_TRUE(WIFSIGNALED(status))
		TH_LOG("it had ended before, with status %#x", status);
}

/* Memory that is likely to get pages that the dead process had. */
static void recycled_memory_is_clean(struct __test_metadata *_metadata, int gpu, uint64_t seed)
{
	size_t len = 512 * page_size();
	char *mem = map_small(len);

	ASSERT_NE(NULL, mem);
	pattern_fill(mem, len, seed);
	GPU_OK(gpu_check_pattern(gpu, mem, len, seed));
	sleep_ms(10);
	ASSERT_EQ(-1, pattern_check(mem, len, seed));
	munmap(mem, len);
}

TEST_F_TIMEOUT(svm, sigkill_during_faults, 120)
{
	int *ready = shared_flag(), round;
	size_t len = 4 << 20;

	for (round = 0; round < ROUNDS; round++) {
		pid_t child;

		*ready = 0;
		child = fork();
		ASSERT_LE(0, child);
		if (!child) {
			int gpu = gpu_open(0);
			/* Every second one with huge pages. */
			char *mem = round & 1 ? map_huge(len) : map_small(len);

			busy(gpu, mem, len, ready);
			_exit(1);
		}
		ASSERT_TRUE(wait_flag(ready));
		sleep_ms(round * 5 % 37);
		kill_child(_metadata, child);
		recycled_memory_is_clean(_metadata, self->gpu, round);
	}
}

TEST_F_TIMEOUT(svm, exit_during_faults, 120)
{
	int round;
	size_t len = 4 << 20;

	for (round = 0; round < ROUNDS; round++) {
		pid_t child;

		child = fork();
		ASSERT_LE(0, child);
		if (!child) {
			int gpu = gpu_open(0);
			char *mem = map_small(len);
			struct list list = {};
			struct drm_vsvm_stats stats;
			uint64_t seqno;
			int i;

			if (gpu < 0)
				_exit(1);
			for (i = 0; i < LIST_MAX; i++)
				list_fill(&list, mem + i * (len / LIST_MAX), len / LIST_MAX, 1);
			for (i = 0; i < 4 * VSVM_QUEUES; i++)
				if (gpu_submit(gpu, i % VSVM_QUEUES, &list, NULL, 0, &seqno))
					_exit(2);
			/* The end comes when they have begun, and are far from done. */
			while (!gpu_stats(gpu, &stats) && stats.bytes_written <= round << 16)
				sleep_ms(1);
			/* Some of them fault again. */
			madvise(mem, len, MADV_DONTNEED);
			/* With the descriptor open, closed, or only the memory left. */
			if (round % 3 == 1)
				close(gpu);
			if (round % 3 == 2)
				munmap(mem, len);
			_exit(0);
		}
		ASSERT_EQ(0, wait_child(child, END_MS));
		recycled_memory_is_clean(_metadata, self->gpu, round);
	}
}

struct opener {
	int gpu;
	char *mem;
	size_t len;
	int *ready;
};

static void *busy_thread(void *arg)
{
	struct opener *o = arg;

	busy(o->gpu, o->mem, o->len, o->ready);
	_exit(1);
	return NULL;
}

/* One of several threads calls exit while the others submit, map ahead and wait. */
TEST_F_TIMEOUT(svm, exit_with_threads, 60)
{
	int *ready = shared_flag(), round;

	for (round = 0; round < 4; round++) {
		pid_t child;

		*ready = 0;
		child = fork();
		ASSERT_LE(0, child);
		if (!child) {
			struct opener o = { .gpu = gpu_open(0), .len = 4 << 20, .ready = ready };
			pthread_t thread;

			o.mem = map_small(o.len);
			pthread_create(&thread, NULL, busy_thread, &o);
			pthread_create(&thread, NULL, busy_thread, &o);
			wait_flag(ready);
			gpu_map_ahead(o.gpu, o.mem, o.len, VSVM_MAP_WRITE);
			_exit(0);
		}
		ASSERT_EQ(0, wait_child(child, END_MS));
		recycled_memory_is_clean(_metadata, self->gpu, round);
	}
}

/* The address space is replaced: the GPU of the old one ends with it. */
TEST_F_TIMEOUT(svm, exec_during_faults, 60)
{
	int *ready = shared_flag(), round, status;

	for (round = 0; round < 4; round++) {
		pid_t child;

		*ready = 0;
		child = fork();
		ASSERT_LE(0, child);
		if (!child) {
			struct opener o = { .gpu = gpu_open(0), .len = 4 << 20, .ready = ready };
			pthread_t thread;

			o.mem = map_small(o.len);
			/* Every second one keeps the descriptor over the exec. */
			if (round & 1)
				fcntl(o.gpu, F_SETFD, 0);
			pthread_create(&thread, NULL, busy_thread, &o);
			wait_flag(ready);
			execl("/bin/busybox", "true", (char *)NULL);
			execl("/bin/true", "true", (char *)NULL);
			_exit(1);
		}
		status = wait_child(child, END_MS);
		ASSERT_EQ(0, status);
		recycled_memory_is_clean(_metadata, self->gpu, round);
	}
}

struct silent {
	int uffd;
	int *ready;
};

/* Takes a fault, says so, and does not answer it. */
static void *silent_handler(void *arg)
{
	struct silent *silent = arg;
	uintptr_t addr;

	if (uffd_next(silent->uffd, &addr, NULL, 10000) == 1)
		__atomic_store_n(silent->ready, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

/*
 * A fault that waits for user space (a userfaultfd) must end when its process is killed, though
 * nobody answers it.
 */
TEST_F_TIMEOUT(svm, sigkill_in_a_fault_that_nobody_answers, 60)
{
	int *ready = shared_flag(), ahead;

	for (ahead = 0; ahead < 2; ahead++) {
		pid_t child;

		*ready = 0;
		child = fork();
		ASSERT_LE(0, child);
		if (!child) {
			struct silent silent = { .uffd = uffd_open(), .ready = ready };
			int gpu = gpu_open(0);
			char *mem = map_small(page_size());
			struct list list = {};
			pthread_t thread;
			uint64_t seqno;

			if (gpu < 0 || uffd_register(silent.uffd, mem, page_size(),
						     UFFDIO_REGISTER_MODE_MISSING))
				_exit(4);
			if (pthread_create(&thread, NULL, silent_handler, &silent))
				_exit(5);
			list_fill(&list, mem, 8, 1);
			if (ahead) {
				gpu_map_ahead(gpu, mem, page_size(), 0);
			} else {
				gpu_submit(gpu, 0, &list, NULL, 0, &seqno);
				gpu_wait(gpu, 0, seqno, NULL, 0, -1, NULL);
			}
			_exit(1);
		}
		ASSERT_TRUE(wait_flag(ready));
		kill_child(_metadata, child);
	}
	GPU_OK(gpu_fill(self->gpu, ready, 8, 1));
}

/* A signal that does not kill interrupts only the wait. */
static void on_alarm(int signal)
{
}

TEST_F(svm, signals_interrupt_only_the_wait)
{
	struct sigaction action = { .sa_handler = on_alarm };
	struct drm_vsvm_wait wait = { .timeout_ns = -1 };
	uint64_t *mem = map_small(page_size());
	pid_t child, me = getpid();
	struct list list = {};
	uint64_t seqno;
	uintptr_t addr;
	int uffd = uffd_open();

	if (uffd < 0)
		SKIP(GPU_OK(gpu_fill(self->gpu, mem, 8, 1)); return, "no userfaultfd");
	sigaction(SIGUSR1, &action, NULL);
	/* The list cannot be done before this program answers. */
	ASSERT_EQ(0, uffd_register(uffd, mem, page_size(), UFFDIO_REGISTER_MODE_MISSING));
	list_fill(&list, mem, 8, 7);
	ASSERT_EQ(0, gpu_submit(self->gpu, 0, &list, NULL, 0, &seqno));
	ASSERT_EQ(1, uffd_next(uffd, &addr, NULL, 10000));
	wait.seqno = seqno;
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		/* One of them comes when the parent waits. */
		while (!kill(me, SIGUSR1))
			sleep_ms(20);
		_exit(0);
	}
	ASSERT_EQ(-1, ioctl(self->gpu, DRM_IOCTL_VSVM_WAIT, &wait));
	ASSERT_EQ(EINTR, errno);
	kill_child(_metadata, child);
	/* Closing it wakes the fault, which then finds ordinary memory. */
	close(uffd);
	GPU_OK(gpu_wait(self->gpu, 0, seqno, NULL, 0, 10000, NULL));
	ASSERT_EQ(7, *mem);
}

/* Descriptors that come and go while the memory is in use, also by another descriptor. */
TEST_F(svm, open_and_close)
{
	size_t len = 64 * page_size();
	char *mem = map_small(len), *other = map_small(len);
	int i;

	pattern_fill(mem, len, SEED_A);
	for (i = 0; i < 30; i++) {
		struct list list = {};
		uint64_t seqno;
		int gpu = gpu_open(0);

		ASSERT_LE(0, gpu);
		GPU_OK(gpu_check_pattern(gpu, mem, len, SEED_A));
		/* Leave work behind. */
		list_copy(&list, other, mem, len);
		ASSERT_EQ(0, gpu_submit(gpu, 1, &list, NULL, 0, &seqno));
		ASSERT_EQ(0, close(gpu));
	}
	GPU_OK(gpu_check_pattern(self->gpu, mem, len, SEED_A));
	ASSERT_EQ(-1, pattern_check(mem, len, SEED_A));
}

/* A descriptor outlives the process that opened it: it is of no use, and harmless. */
TEST_F(svm, descriptor_without_its_process)
{
	char *mem = map_small(page_size());
	struct drm_vsvm_stats stats;
	int fds[2], gpu;
	pid_t child;

	ASSERT_EQ(0, pipe(fds));
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		gpu = gpu_open(0);
		gpu_fill(gpu, mem, 8, 1);
		if (write(fds[1], &gpu, sizeof(gpu)) < 0)
			_exit(1);
		pause();
	}
	ASSERT_EQ(sizeof(gpu), read(fds[0], &gpu, sizeof(gpu)));
	/* Take a copy of the child's descriptor. */
	gpu = syscall(SYS_pidfd_getfd, syscall(SYS_pidfd_open, child, 0), gpu, 0);
	ASSERT_LE(0, gpu);
	ASSERT_EQ(-EPERM, gpu_stats(gpu, &stats));
	kill_child(_metadata, child);
	ASSERT_EQ(-EPERM, gpu_fill(gpu, mem, 8, 2));
	ASSERT_EQ(-EPERM, gpu_map_ahead(gpu, mem, page_size(), 0));
	ASSERT_EQ(0, close(gpu));
	GPU_OK(gpu_fill(self->gpu, mem, 8, 3));
	ASSERT_EQ(3, *(uint64_t *)mem);
}

TEST_HARNESS_MAIN
