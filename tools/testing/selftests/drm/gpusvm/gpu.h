/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The GPU as functions: open it, let it read, compute on and write memory of this process, and
 * ask what happened. See include/uapi/drm/vsvm_drm.h for what is behind them.
 *
 * A call that runs something on the GPU returns
 *
 *	0	it was done
 *	> 0	a fault could not be resolved: one of enum drm_vsvm_reason. The queue was restarted
 *	< 0	an ioctl failed: -errno
 */
#ifndef GPUSVM_GPU_H
#define GPUSVM_GPU_H

#include <stddef.h>
#include <stdint.h>

#include <drm/vsvm_drm.h>

/* A command list that is put together before it is submitted. */
#define LIST_MAX 64

struct list {
	struct drm_vsvm_command cmd[LIST_MAX];
	unsigned int count;
};

/*
 * Open the n-th GPU: a descriptor, or -errno (-ENODEV when there are fewer). What it opens is the
 * address space of the calling process.
 */
int gpu_open(int index);
/* Path of the n-th GPU's render node, or NULL. The string lives until the next call. */
const char *gpu_path(int index);

/* Commands. `offset` is a place in the data that accompanies the list. */
void list_load(struct list *list, const void *src, size_t len, size_t offset);
void list_store(struct list *list, void *dst, size_t len, size_t offset);
void list_copy(struct list *list, void *dst, const void *src, size_t len);
void list_fill(struct list *list, void *dst, size_t len, uint64_t value);
void list_add(struct list *list, void *dst, size_t len, uint64_t value);

/* Queue a list and return its number in `seqno`. Returns 0 or -errno. */
int gpu_submit(int gpu, unsigned int queue, const struct list *list, const void *data,
	       size_t data_size, uint64_t *seqno);
/*
 * Wait for a list for at most `timeout_ms` (negative: for ever) and fetch its data, unless
 * `data_size` is 0. Returns as above, but leaves a stopped queue as it is.
 */
int gpu_wait(int gpu, unsigned int queue, uint64_t seqno, void *data, size_t data_size,
	     int timeout_ms, struct drm_vsvm_error *error);
/* Submit, wait, fetch, and restart the queue when it stopped. `error` may be NULL. */
int gpu_run(int gpu, unsigned int queue, const struct list *list, void *data, size_t data_size,
	    struct drm_vsvm_error *error);
/* Restart a queue. */
int gpu_reset(int gpu, unsigned int queue);

/* One command each, on one queue. */
int gpu_read_on(int gpu, unsigned int queue, const void *src, void *buf, size_t len);
int gpu_write_on(int gpu, unsigned int queue, void *dst, const void *buf, size_t len);
int gpu_copy_on(int gpu, unsigned int queue, void *dst, const void *src, size_t len);
int gpu_fill_on(int gpu, unsigned int queue, void *dst, size_t len, uint64_t value);
int gpu_add_on(int gpu, unsigned int queue, void *dst, size_t len, uint64_t value);

/* The same on queue 0. */
int gpu_read(int gpu, const void *src, void *buf, size_t len);
int gpu_write(int gpu, void *dst, const void *buf, size_t len);
int gpu_copy(int gpu, void *dst, const void *src, size_t len);
int gpu_fill(int gpu, void *dst, size_t len, uint64_t value);
int gpu_add(int gpu, void *dst, size_t len, uint64_t value);

/* Let the GPU read (write) a span and compare it with (fill it by) the pattern of mem.h. */
int gpu_check_pattern(int gpu, const void *src, size_t len, uint64_t seed);
int gpu_write_pattern(int gpu, void *dst, size_t len, uint64_t seed);
/* What gpu_check_pattern() returns when the GPU read other bytes: no reason and no errno. */
#define GPU_WRONG_DATA 1000

/* Map a span ahead. `flags`: 0 or VSVM_MAP_WRITE. Returns 0 or -errno. */
int gpu_map_ahead(int gpu, void *addr, size_t len, unsigned int flags);
int gpu_stats(int gpu, struct drm_vsvm_stats *stats);
int gpu_debug(int gpu, unsigned int op, unsigned int point, uint64_t value, unsigned int ms);

const char *gpu_reason(unsigned int reason);

/* An ioctl that is repeated when a signal interrupted it: 0 or -errno. */
int gpu_ioctl(int gpu, unsigned long request, void *arg);

#endif
