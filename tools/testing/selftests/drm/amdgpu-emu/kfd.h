/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A GPU of KFD, with one SDMA queue, for tests.
 */
#ifndef KFD_H
#define KFD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <linux/kfd_ioctl.h>

/* Gives the process address space to all GPUs, with or without faults that are retried. */
struct kfd {
	int fd;			/* /dev/kfd */
	int render;		/* /dev/dri/renderD* */
	uint32_t gpu;		/* the number of the GPU in ioctls */
	uint64_t vram;		/* bytes */

	/* The SDMA queue. */
	uint32_t queue;
	uint32_t *ring;
	uint64_t *rptr, *wptr, *doorbell;
	uint64_t written;	/* bytes */
};

/* All of these return 0 or a negative errno. */
int kfd_open(struct kfd *kfd);
int kfd_set_xnack(struct kfd *kfd, bool on);
int kfd_create_queue(struct kfd *kfd);
void kfd_close(struct kfd *kfd);

/* Sets one attribute of a range (KFD_IOCTL_SVM_ATTR_*). */
int kfd_svm_set(struct kfd *kfd, void *start, size_t size, uint32_t type, uint32_t value);
/* Gets one. */
int kfd_svm_get(struct kfd *kfd, void *start, size_t size, uint32_t type, uint32_t *value);

/* Puts a copy, or the filling of memory with a dword, into the queue; does not wait. */
void kfd_copy(struct kfd *kfd, void *to, const void *from, size_t size);
void kfd_fill(struct kfd *kfd, void *to, uint32_t value, size_t size);
/* Waits until all that is in the queue was done; -ETIME if that takes too long. */
int kfd_wait(struct kfd *kfd);

#endif /* KFD_H */
