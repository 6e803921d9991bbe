// SPDX-License-Identifier: GPL-2.0
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <drm/drm.h>

#include "gpu.h"
#include "kselftest.h"
#include "mem.h"

/* Render nodes have the minors 128 to 191. */
#define FIRST_RENDER 128
#define LAST_RENDER 191

/* Longer than anything that a test gives the GPU to do, even on an emulated machine. */
#define RUN_TIMEOUT_MS 20000

int gpu_ioctl(int gpu, unsigned long request, void *arg)
{
	while (ioctl(gpu, request, arg)) {
		if (errno != EINTR)
			return -errno;
	}
	return 0;
}

static int open_node(const char *path)
{
	char name[16] = "";
	struct drm_version version = { .name = name, .name_len = sizeof(name) - 1 };
	int fd;

	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (!gpu_ioctl(fd, DRM_IOCTL_VERSION, &version) && !strcmp(name, "vsvm"))
		return fd;
	close(fd);
	return -ENXIO;
}

static int find(int index, char *path, size_t size)
{
	int minor, fd, error = -ENODEV;

	for (minor = FIRST_RENDER; minor <= LAST_RENDER; minor++) {
		snprintf(path, size, "/dev/dri/renderD%d", minor);
		fd = open_node(path);
		if (fd >= 0 && index-- == 0)
			return fd;
		if (fd >= 0)
			close(fd);
		else if (fd != -ENOENT && fd != -ENXIO)
			error = fd;
	}
	return error;
}

int gpu_open(int index)
{
	char path[64];

	return find(index, path, sizeof(path));
}

const char *gpu_path(int index)
{
	static char path[64];
	int fd = find(index, path, sizeof(path));

	if (fd < 0)
		return NULL;
	close(fd);
	return path;
}

static void push(struct list *list, uint32_t op, const void *addr, uint64_t addr2, size_t len,
		 uint64_t value)
{
	if (list->count == LIST_MAX)
		abort();
	list->cmd[list->count++] = (struct drm_vsvm_command) {
		.op = op,
		.addr = (uintptr_t)addr,
		.addr2 = addr2,
		.len = len,
		.value = value,
	};
}

void list_load(struct list *list, const void *src, size_t len, size_t offset)
{
	push(list, VSVM_OP_LOAD, src, offset, len, 0);
}

void list_store(struct list *list, void *dst, size_t len, size_t offset)
{
	push(list, VSVM_OP_STORE, dst, offset, len, 0);
}

void list_copy(struct list *list, void *dst, const void *src, size_t len)
{
	push(list, VSVM_OP_COPY, dst, (uintptr_t)src, len, 0);
}

void list_fill(struct list *list, void *dst, size_t len, uint64_t value)
{
	push(list, VSVM_OP_FILL, dst, 0, len, value);
}

void list_add(struct list *list, void *dst, size_t len, uint64_t value)
{
	push(list, VSVM_OP_ATOMIC_ADD, dst, VSVM_NO_DATA, len, value);
}

int gpu_submit(int gpu, unsigned int queue, const struct list *list, const void *data,
	       size_t data_size, uint64_t *seqno)
{
	struct drm_vsvm_submit submit = {
		.commands = (uintptr_t)list->cmd,
		.num_commands = list->count,
		.data = (uintptr_t)data,
		.data_size = data_size,
		.queue = queue,
	};
	int ret;

	ret = gpu_ioctl(gpu, DRM_IOCTL_VSVM_SUBMIT, &submit);
	if (!ret)
		*seqno = submit.seqno;
	return ret;
}

int gpu_wait(int gpu, unsigned int queue, uint64_t seqno, void *data, size_t data_size,
	     int timeout_ms, struct drm_vsvm_error *error)
{
	struct drm_vsvm_wait wait = {
		.seqno = seqno,
		.timeout_ns = timeout_ms < 0 ? -1 : timeout_ms * 1000000LL,
		.data = (uintptr_t)data,
		.data_size = data_size,
		.queue = queue,
	};
	int ret;

	ret = gpu_ioctl(gpu, DRM_IOCTL_VSVM_WAIT, &wait);
	if (error)
		*error = wait.error;
	if (ret)
		return ret;
	switch (wait.status) {
	case VSVM_STATUS_DONE:
		return 0;
	case VSVM_STATUS_FAILED:
		return wait.error.reason ? (int)wait.error.reason : -EPROTO;
	case VSVM_STATUS_CANCELLED:
		return -ECANCELED;
	default:
		return -EPROTO;
	}
}

int gpu_reset(int gpu, unsigned int queue)
{
	struct drm_vsvm_queue state = { .queue = queue, .flags = VSVM_QUEUE_RESET };

	return gpu_ioctl(gpu, DRM_IOCTL_VSVM_QUEUE, &state);
}

int gpu_run(int gpu, unsigned int queue, const struct list *list, void *data, size_t data_size,
	    struct drm_vsvm_error *error)
{
	uint64_t seqno;
	int ret;

	if (error)
		memset(error, 0, sizeof(*error));
	ret = gpu_submit(gpu, queue, list, data, data_size, &seqno);
	if (ret)
		return ret;
	ret = gpu_wait(gpu, queue, seqno, data, data_size, RUN_TIMEOUT_MS, error);
	if (ret > 0)
		gpu_reset(gpu, queue);
	return ret;
}

int gpu_read_on(int gpu, unsigned int queue, const void *src, void *buf, size_t len)
{
	struct list list = {};

	list_load(&list, src, len, 0);
	return gpu_run(gpu, queue, &list, buf, len, NULL);
}

int gpu_write_on(int gpu, unsigned int queue, void *dst, const void *buf, size_t len)
{
	struct list list = {};
	void *data = malloc(len);
	int ret;

	if (!data)
		return -ENOMEM;
	memcpy(data, buf, len);
	list_store(&list, dst, len, 0);
	/* The data comes back unchanged; fetching it is what makes room for the next list. */
	ret = gpu_run(gpu, queue, &list, data, len, NULL);
	free(data);
	return ret;
}

int gpu_copy_on(int gpu, unsigned int queue, void *dst, const void *src, size_t len)
{
	struct list list = {};

	list_copy(&list, dst, src, len);
	return gpu_run(gpu, queue, &list, NULL, 0, NULL);
}

int gpu_fill_on(int gpu, unsigned int queue, void *dst, size_t len, uint64_t value)
{
	struct list list = {};

	list_fill(&list, dst, len, value);
	return gpu_run(gpu, queue, &list, NULL, 0, NULL);
}

int gpu_add_on(int gpu, unsigned int queue, void *dst, size_t len, uint64_t value)
{
	struct list list = {};

	list_add(&list, dst, len, value);
	return gpu_run(gpu, queue, &list, NULL, 0, NULL);
}

int gpu_read(int gpu, const void *src, void *buf, size_t len)
{
	return gpu_read_on(gpu, 0, src, buf, len);
}

int gpu_write(int gpu, void *dst, const void *buf, size_t len)
{
	return gpu_write_on(gpu, 0, dst, buf, len);
}

int gpu_copy(int gpu, void *dst, const void *src, size_t len)
{
	return gpu_copy_on(gpu, 0, dst, src, len);
}

int gpu_fill(int gpu, void *dst, size_t len, uint64_t value)
{
	return gpu_fill_on(gpu, 0, dst, len, value);
}

int gpu_add(int gpu, void *dst, size_t len, uint64_t value)
{
	return gpu_add_on(gpu, 0, dst, len, value);
}

int gpu_check_pattern(int gpu, const void *src, size_t len, uint64_t seed)
{
	void *buf = calloc(1, len);
	int ret;

	if (!buf)
		return -ENOMEM;
	ret = gpu_read(gpu, src, buf, len);
	if (!ret && pattern_check(buf, len, seed) >= 0)
		ret = GPU_WRONG_DATA;
	free(buf);
	return ret;
}

int gpu_write_pattern(int gpu, void *dst, size_t len, uint64_t seed)
{
	void *buf = malloc(len);
	int ret;

	if (!buf)
		return -ENOMEM;
	pattern_fill(buf, len, seed);
	ret = gpu_write(gpu, dst, buf, len);
	free(buf);
	return ret;
}

int gpu_map_ahead(int gpu, void *addr, size_t len, unsigned int flags)
{
	struct drm_vsvm_map_ahead map = { .addr = (uintptr_t)addr, .len = len, .flags = flags };

	return gpu_ioctl(gpu, DRM_IOCTL_VSVM_MAP_AHEAD, &map);
}

int gpu_stats(int gpu, struct drm_vsvm_stats *stats)
{
	memset(stats, 0, sizeof(*stats));
	return gpu_ioctl(gpu, DRM_IOCTL_VSVM_STATS, stats);
}

int gpu_debug(int gpu, unsigned int op, unsigned int point, uint64_t value, unsigned int ms)
{
	struct drm_vsvm_debug debug = {
		.op = op,
		.point = point,
		.value = value,
		.timeout_ms = ms,
	};

	return gpu_ioctl(gpu, DRM_IOCTL_VSVM_DEBUG, &debug);
}

const char *gpu_reason(unsigned int reason)
{
	static const char *const name[] = {
		[VSVM_REASON_NONE] = "none",
		[VSVM_REASON_UNMAPPED] = "unmapped",
		[VSVM_REASON_ACCESS] = "access",
		[VSVM_REASON_CONFLICT] = "conflict",
		[VSVM_REASON_DMA] = "dma",
		[VSVM_REASON_NO_MEMORY] = "no memory",
		[VSVM_REASON_TIMEOUT] = "timeout",
		[VSVM_REASON_KILLED] = "killed",
		[VSVM_REASON_POISONED] = "poisoned",
		[VSVM_REASON_GONE] = "gone",
		[VSVM_REASON_BUS] = "bus",
		[VSVM_REASON_INACCESSIBLE] = "inaccessible",
		[VSVM_REASON_DRIVER] = "driver",
	};

	if (reason < ARRAY_SIZE(name) && name[reason])
		return name[reason];
	return reason == GPU_WRONG_DATA ? "wrong data" : "unknown";
}
