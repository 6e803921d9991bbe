// SPDX-License-Identifier: GPL-2.0
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "mem.h"
#include "sys.h"
#include "uffd.h"

int uffd_open(void)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP,
	};
	int ret, uffd = syscall(__NR_userfaultfd, O_CLOEXEC);

	if (uffd < 0)
		return -errno;
	if (ioctl(uffd, UFFDIO_API, &api)) {
		ret = -errno;
		close(uffd);
		return ret;
	}
	return uffd;
}

int uffd_register(int uffd, void *addr, size_t len, uint64_t mode)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)addr, .len = len },
		.mode = mode,
	};

	return ioctl(uffd, UFFDIO_REGISTER, &reg) ? -errno : 0;
}

int uffd_next(int uffd, uintptr_t *addr, uint64_t *flags, unsigned int ms)
{
	struct pollfd poll_in = { .fd = uffd, .events = POLLIN };
	struct uffd_msg msg;
	int ret;

	ret = poll(&poll_in, 1, ms);
	if (ret <= 0)
		return ret < 0 ? -errno : 0;
	if (read(uffd, &msg, sizeof(msg)) != sizeof(msg))
		return errno == EAGAIN ? 0 : -errno;
	if (msg.event != UFFD_EVENT_PAGEFAULT)
		return -EPROTO;
	*addr = msg.arg.pagefault.address & ~(page_size() - 1);
	if (flags)
		*flags = msg.arg.pagefault.flags;
	return 1;
}

int uffd_copy(int uffd, uintptr_t addr, const void *src)
{
	struct uffdio_copy copy = {
		.dst = addr,
		.src = (uintptr_t)src,
		.len = page_size(),
	};

	while (ioctl(uffd, UFFDIO_COPY, &copy)) {
		if (errno == EEXIST)
			break;
		if (errno != EAGAIN)
			return -errno;
		copy.copy = 0;
	}
	return 0;
}

int uffd_protect(int uffd, void *addr, size_t len, int protect)
{
	struct uffdio_writeprotect wp = {
		.range = { .start = (uintptr_t)addr, .len = len },
		.mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	while (ioctl(uffd, UFFDIO_WRITEPROTECT, &wp)) {
		if (errno != EAGAIN)
			return -errno;
	}
	return 0;
}
