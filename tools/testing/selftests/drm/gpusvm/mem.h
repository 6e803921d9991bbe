/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Mappings of every kind, canary patterns, and what the kernel says about a page.
 */
#ifndef GPUSVM_MEM_H
#define GPUSVM_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#ifndef MADV_FREE
#define MADV_FREE 8
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

#define RW (PROT_READ | PROT_WRITE)

/* Bits of /proc/self/pagemap. */
#define PM_SOFT_DIRTY	(1ULL << 55)
#define PM_SWAPPED	(1ULL << 62)
#define PM_PRESENT	(1ULL << 63)
#define PM_PFN_MASK	((1ULL << 55) - 1)

/* Bits of /proc/kpageflags. */
#define KPF_BIT_KSM	(1ULL << 21)
#define KPF_BIT_THP	(1ULL << 22)
#define KPF_BIT_ZERO	(1ULL << 24)

/* Private anonymous memory of base pages (no transparent huge pages); NULL on failure. */
void *map_small(size_t len);
/*
 * Private anonymous memory aligned to a huge page and advised to use them. `len` is a multiple
 * of huge_size(). Touch it to get the huge pages; is_huge() says whether it worked.
 */
void *map_huge(size_t len);
bool is_huge(const void *addr);

/*
 * A canary: every 8 bytes of [addr, addr + len) are a function of `seed` and of their offset, so
 * that a page which came from somewhere else, or is of another generation, shows.
 */
uint64_t pattern_word(uint64_t seed, size_t offset);
void pattern_fill(void *addr, size_t len, uint64_t seed);
/* Offset of the first wrong 8 bytes, or -1 when all are right. */
long pattern_check(const void *addr, size_t len, uint64_t seed);

/* The entry of /proc/self/pagemap for an address; 0 when it cannot be read. */
uint64_t pagemap(const void *addr);
bool is_present(const void *addr);
bool is_swapped(const void *addr);
/* The entry of /proc/kpageflags of the page that is mapped at an address. */
uint64_t kpageflags(const void *addr);

/* A swap area is active. */
bool have_swap(void);
/*
 * Page a span out by MADV_PAGEOUT, again for a while until every page has left: the number of
 * pages that are still present (0: all went).
 */
size_t page_out(void *addr, size_t len);

/* An unlinked file of `len` zero bytes on tmpfs or on `dir`: its descriptor or -errno. */
int temp_file(const char *dir, size_t len);

#endif
