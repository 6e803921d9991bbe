// SPDX-License-Identifier: GPL-2.0
/*
 * The driver as it is for everybody: nothing can be injected unless the module parameter "debug"
 * allows it.
 */
#include "svm.h"

TEST_F(svm, debug_is_refused)
{
	static const unsigned int op[] = {
		VSVM_DEBUG_DELAY, VSVM_DEBUG_FAIL, VSVM_DEBUG_BARRIER, VSVM_DEBUG_DROP_FLUSH,
		VSVM_DEBUG_DROP_WAIT, 0, ~0U,
	};
	unsigned int i, point;
	uint64_t word = 0;

	for (i = 0; i < ARRAY_SIZE(op); i++)
		for (point = 0; point <= VSVM_POINT_WALKED; point++)
			EXPECT_EQ(-EOPNOTSUPP, gpu_debug(self->gpu, op[i], point, 1, 0));
	GPU_OK(gpu_fill(self->gpu, &word, 8, 42));
	EXPECT_EQ(42, word);
	EXPECT_EQ(0, STAT(injected));
}

TEST_HARNESS_MAIN
