/* SPDX-License-Identifier: GPL-2.0 */
/* Userfaultfd: page faults that this process resolves by hand, and when it wants to. */
#ifndef GPUSVM_UFFD_H
#define GPUSVM_UFFD_H

#include <stddef.h>
#include <stdint.h>

#include <linux/userfaultfd.h>

/* Descriptor of a new userfaultfd that blocks in reads, or -errno. */
int uffd_open(void);
/* Register a span. `mode`: UFFDIO_REGISTER_MODE_MISSING and/or _WP. Returns 0 or -errno. */
int uffd_register(int uffd, void *addr, size_t len, uint64_t mode);
/*
 * Wait at most `ms` for a fault: 1 with its page address and flags, 0 when there was none, or
 * -errno.
 */
int uffd_next(int uffd, uintptr_t *addr, uint64_t *flags, unsigned int ms);
/* Resolve a missing page by a copy of one page at `src`. Returns 0 or -errno. */
int uffd_copy(int uffd, uintptr_t addr, const void *src);
/* Write protect a span or lift it, which wakes those that wait. Returns 0 or -errno. */
int uffd_protect(int uffd, void *addr, size_t len, int protect);

#endif
