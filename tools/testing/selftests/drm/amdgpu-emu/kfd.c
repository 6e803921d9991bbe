// SPDX-License-Identifier: GPL-2.0
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "kfd.h"

#define NODES "/sys/class/kfd/kfd/topology/nodes"
#define PAGE 4096
#define RING_BYTES (64 << 10)
/* Of a process: 1024 doorbells of 8 bytes. */
#define DOORBELL_BYTES 8192
/* Longer than anything a test gives the GPU to do, even on an emulated machine. */
#define TIMEOUT_S 120

/* SDMA packets, as in amdgpu/vega10_sdma_pkt_open.h. */
#define SDMA_OP_NOP 0
#define SDMA_OP_COPY 1
#define SDMA_OP_FENCE 5
#define SDMA_OP_CONST_FILL 11
/* Of CONST_FILL: dwords. */
#define SDMA_FILL_DWORDS (2u << 30)
/* The largest count of one packet (22 bits, minus one), in whole pages. */
#define SDMA_MOST ((4u << 20) - PAGE)
/* The longest packet in dwords. */
#define LONGEST 8

static int kfd_ioctl(struct kfd *kfd, unsigned long request, void *arg)
{
	while (ioctl(kfd->fd, request, arg)) {
		if (errno != EINTR && errno != EAGAIN)
			return -errno;
	}
	return 0;
}

/* The number in a line "name number" of a node's properties. */
static int property(int node, const char *name, uint64_t *value)
{
	char path[128], line[128];
	int err = -ENOENT;
	FILE *file;

	snprintf(path, sizeof(path), NODES "/%d/properties", node);
	file = fopen(path, "r");
	if (!file)
		return -errno;
	while (err && fgets(line, sizeof(line), file)) {
		char *space = strchr(line, ' ');

		if (!space)
			continue;
		*space = 0;
		if (!strcmp(line, name)) {
			*value = strtoull(space + 1, NULL, 10);
			err = 0;
		}
	}
	fclose(file);
	return err;
}

static int read_id(int node, uint32_t *id)
{
	char path[128];
	FILE *file;
	int got;

	snprintf(path, sizeof(path), NODES "/%d/gpu_id", node);
	file = fopen(path, "r");
	if (!file)
		return -errno;
	got = fscanf(file, "%u", id);
	fclose(file);
	return got == 1 ? 0 : -EIO;
}

/* The size of the local memory of a node, which has one bank. */
static uint64_t vram_size(int node)
{
	unsigned long long size = 0;
	char path[128], line[128];
	FILE *file;

	snprintf(path, sizeof(path), NODES "/%d/mem_banks/0/properties", node);
	file = fopen(path, "r");
	if (!file)
		return 0;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "size_in_bytes %llu", &size) == 1)
			break;
	}
	fclose(file);
	return size;
}

int kfd_open(struct kfd *kfd)
{
	struct kfd_ioctl_acquire_vm_args args;
	uint64_t minor = 0;
	char path[64];
	int node, err;

	memset(kfd, 0, sizeof(*kfd));
	kfd->render = -1;
	kfd->fd = open("/dev/kfd", O_RDWR | O_CLOEXEC);
	if (kfd->fd < 0)
		return -errno;
	/* The first node that is a GPU; CPUs have the number 0. */
	for (node = 0; !kfd->gpu; node++) {
		err = read_id(node, &kfd->gpu);
		if (err)
			return err;
	}
	node--;
	kfd->vram = vram_size(node);
	err = property(node, "drm_render_minor", &minor);
	if (err)
		return err;
	snprintf(path, sizeof(path), "/dev/dri/renderD%d", (int)minor);
	kfd->render = open(path, O_RDWR | O_CLOEXEC);
	if (kfd->render < 0)
		return -errno;
	args = (struct kfd_ioctl_acquire_vm_args){ .drm_fd = kfd->render, .gpu_id = kfd->gpu };
	return kfd_ioctl(kfd, AMDKFD_IOC_ACQUIRE_VM, &args);
}

int kfd_set_xnack(struct kfd *kfd, bool on)
{
	struct kfd_ioctl_set_xnack_mode_args args = { .xnack_enabled = on };
	int err = kfd_ioctl(kfd, AMDKFD_IOC_SET_XNACK_MODE, &args);

	if (err)
		return err;
	args.xnack_enabled = -1;
	err = kfd_ioctl(kfd, AMDKFD_IOC_SET_XNACK_MODE, &args);
	if (err)
		return err;
	return args.xnack_enabled == on ? 0 : -EPROTO;
}

/* System memory that GPU and CPU have at the same address, outside of SVM. */
static void *kfd_alloc(struct kfd *kfd, size_t size, int *err)
{
	struct kfd_ioctl_alloc_memory_of_gpu_args args = {
		.size = size,
		.gpu_id = kfd->gpu,
		.flags = KFD_IOC_ALLOC_MEM_FLAGS_GTT | KFD_IOC_ALLOC_MEM_FLAGS_WRITABLE |
			 KFD_IOC_ALLOC_MEM_FLAGS_EXECUTABLE | KFD_IOC_ALLOC_MEM_FLAGS_COHERENT |
			 KFD_IOC_ALLOC_MEM_FLAGS_NO_SUBSTITUTE,
	};
	struct kfd_ioctl_map_memory_to_gpu_args map;
	void *mem;

	mem = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (mem == MAP_FAILED) {
		*err = -errno;
		return NULL;
	}
	args.va_addr = (uintptr_t)mem;
	*err = kfd_ioctl(kfd, AMDKFD_IOC_ALLOC_MEMORY_OF_GPU, &args);
	if (*err)
		return NULL;
	if (mmap(mem, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, kfd->render,
		 args.mmap_offset) == MAP_FAILED) {
		*err = -errno;
		return NULL;
	}
	map = (struct kfd_ioctl_map_memory_to_gpu_args){
		.handle = args.handle,
		.device_ids_array_ptr = (uintptr_t)&kfd->gpu,
		.n_devices = 1,
	};
	*err = kfd_ioctl(kfd, AMDKFD_IOC_MAP_MEMORY_TO_GPU, &map);
	return *err ? NULL : mem;
}

int kfd_create_queue(struct kfd *kfd)
{
	struct kfd_ioctl_create_queue_args args = {
		.gpu_id = kfd->gpu,
		.ring_size = RING_BYTES,
		.queue_type = KFD_IOC_QUEUE_TYPE_SDMA,
		.queue_percentage = 100,
		.queue_priority = 7,
	};
	uint64_t page, inside;
	char *doorbells;
	int err;

	kfd->ring = kfd_alloc(kfd, RING_BYTES, &err);
	if (!kfd->ring)
		return err;
	kfd->rptr = kfd_alloc(kfd, PAGE, &err);
	if (!kfd->rptr)
		return err;
	kfd->wptr = kfd->rptr + 8;
	args.ring_base_address = (uintptr_t)kfd->ring;
	args.read_pointer_address = (uintptr_t)kfd->rptr;
	args.write_pointer_address = (uintptr_t)kfd->wptr;
	err = kfd_ioctl(kfd, AMDKFD_IOC_CREATE_QUEUE, &args);
	if (err)
		return err;
	kfd->queue = args.queue_id;
	inside = args.doorbell_offset % DOORBELL_BYTES;
	page = args.doorbell_offset - inside;
	doorbells = mmap(NULL, DOORBELL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, kfd->fd, page);
	if (doorbells == MAP_FAILED)
		return -errno;
	kfd->doorbell = (uint64_t *)(doorbells + inside);
	return 0;
}

void kfd_close(struct kfd *kfd)
{
	struct kfd_ioctl_destroy_queue_args args = { .queue_id = kfd->queue };

	if (kfd->doorbell)
		kfd_ioctl(kfd, AMDKFD_IOC_DESTROY_QUEUE, &args);
	if (kfd->render >= 0)
		close(kfd->render);
	if (kfd->fd >= 0)
		close(kfd->fd);
}

/* Gets or sets one attribute of a range. */
static int svm(struct kfd *kfd, uint32_t op, void *start, size_t size,
	       struct kfd_ioctl_svm_attribute *attr)
{
	uint64_t buffer[(sizeof(struct kfd_ioctl_svm_args) + sizeof(*attr) + 7) / 8] = {};
	struct kfd_ioctl_svm_args *args = (void *)buffer;
	int err;

	args->start_addr = (uintptr_t)start;
	args->size = size;
	args->op = op;
	args->nattr = 1;
	args->attrs[0] = *attr;
	/* The size of the argument says how many attributes there are. */
	err = kfd_ioctl(kfd, AMDKFD_IOC_SVM + (sizeof(*attr) << _IOC_SIZESHIFT), args);
	*attr = args->attrs[0];
	return err;
}

int kfd_svm_set(struct kfd *kfd, void *start, size_t size, uint32_t type, uint32_t value)
{
	struct kfd_ioctl_svm_attribute attr = { .type = type, .value = value };

	return svm(kfd, KFD_IOCTL_SVM_OP_SET_ATTR, start, size, &attr);
}

int kfd_svm_get(struct kfd *kfd, void *start, size_t size, uint32_t type, uint32_t *value)
{
	struct kfd_ioctl_svm_attribute attr = { .type = type };
	int err = svm(kfd, KFD_IOCTL_SVM_OP_GET_ATTR, start, size, &attr);

	*value = attr.value;
	return err;
}

static int64_t seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

/* Waits until the GPU has read the ring up to a point. */
static int read_up_to(struct kfd *kfd, uint64_t point)
{
	int64_t end = seconds() + TIMEOUT_S;

	while (__atomic_load_n(kfd->rptr, __ATOMIC_ACQUIRE) < point) {
		if (seconds() > end)
			return -ETIME;
		usleep(100);
	}
	return 0;
}

static void submit(struct kfd *kfd, const uint32_t *packet, unsigned int dwords)
{
	unsigned int i;

	/* Room for this packet: a full ring would look like an empty one. */
	if (kfd->written + 4 * LONGEST > RING_BYTES / 2)
		read_up_to(kfd, kfd->written + 4 * LONGEST - RING_BYTES / 2);
	for (i = 0; i < dwords; i++)
		kfd->ring[(kfd->written / 4 + i) % (RING_BYTES / 4)] = packet[i];
	kfd->written += 4 * dwords;
	__atomic_store_n(kfd->wptr, kfd->written, __ATOMIC_SEQ_CST);
	__atomic_store_n(kfd->doorbell, kfd->written, __ATOMIC_SEQ_CST);
}

void kfd_copy(struct kfd *kfd, void *to, const void *from, size_t size)
{
	while (size) {
		uint32_t part = size < SDMA_MOST ? size : SDMA_MOST;
		uint32_t packet[] = {
			SDMA_OP_COPY, part - 1, 0,
			(uint32_t)(uintptr_t)from, (uintptr_t)from >> 32,
			(uint32_t)(uintptr_t)to, (uintptr_t)to >> 32,
		};

		submit(kfd, packet, 7);
		from += part;
		to += part;
		size -= part;
	}
}

void kfd_fill(struct kfd *kfd, void *to, uint32_t value, size_t size)
{
	while (size) {
		uint32_t part = size < SDMA_MOST ? size : SDMA_MOST;
		uint32_t packet[] = {
			SDMA_OP_CONST_FILL | SDMA_FILL_DWORDS,
			(uint32_t)(uintptr_t)to, (uintptr_t)to >> 32,
			value, part - 1,
		};

		submit(kfd, packet, 5);
		to += part;
		size -= part;
	}
}

int kfd_wait(struct kfd *kfd)
{
	uint32_t *done = (uint32_t *)(kfd->rptr + 16);
	uint32_t value = (uint32_t)kfd->written | 1;
	uint32_t packet[] = {
		SDMA_OP_FENCE, (uint32_t)(uintptr_t)done, (uintptr_t)done >> 32, value,
	};
	int64_t end = seconds() + TIMEOUT_S;

	submit(kfd, packet, 4);
	while (__atomic_load_n(done, __ATOMIC_ACQUIRE) != value) {
		if (seconds() > end)
			return -ETIME;
		usleep(100);
	}
	return 0;
}
