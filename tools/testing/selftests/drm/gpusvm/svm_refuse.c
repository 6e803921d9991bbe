// SPDX-License-Identifier: GPL-2.0
/*
 * A machine on which memory cannot be shared (its DMA goes through bounce buffers, swiotlb=force):
 * opening the GPU says so, at once, and nothing else happens.
 */
#include <fcntl.h>

#include "kselftest_harness.h"

#include "gpu.h"
#include "mem.h"
#include "sys.h"

static bool forced(void)
{
	char text[2048];

	return read_text("/proc/cmdline", text, sizeof(text)) > 0 &&
	       strstr(text, "swiotlb=force");
}

TEST(open_is_refused)
{
	size_t len = 16 * page_size();
	char *mem = map_small(len);
	int i;

	if (!forced())
		SKIP(return, "boot with swiotlb=force");
	pattern_fill(mem, len, 1);
	for (i = 0; i < 20; i++)
		ASSERT_EQ(-EOPNOTSUPP, gpu_open(0));
	/* The process is as it was. */
	ASSERT_EQ(0, mprotect(mem, len / 2, PROT_READ));
	ASSERT_EQ(0, madvise(mem + len / 2, len / 2, MADV_DONTNEED));
	ASSERT_EQ(-1, pattern_check(mem, len / 2, 1));
	ASSERT_EQ(0, munmap(mem, len));
}

TEST(test_interface_is_refused)
{
	int i;

	if (!forced())
		SKIP(return, "boot with swiotlb=force");
	for (i = 0; i < 5; i++) {
		ASSERT_EQ(-1, open("/dev/hmm_dmirror0", O_RDWR | O_CLOEXEC));
		ASSERT_EQ(EOPNOTSUPP, errno);
	}
}

TEST_HARNESS_MAIN
