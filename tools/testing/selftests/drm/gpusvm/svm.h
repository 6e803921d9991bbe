/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The fixture of all tests: a GPU address space of the test's process.
 *
 * Its end checks what must hold after every test, whatever it did: the GPU really moved bytes, it
 * never used a translation after its removal was flushed, and every DMA address resolved.
 *
 * Include it in the one source file of a test program.
 */
#ifndef GPUSVM_SVM_H
#define GPUSVM_SVM_H

#include "kselftest_harness.h"

#include "gpu.h"
#include "mem.h"
#include "sys.h"

FIXTURE(svm)
{
	int gpu;
	/* Set by a test that provokes uses of stale translations to see that they are noticed. */
	bool allow_stale;
};

FIXTURE_SETUP(svm)
{
	self->gpu = gpu_open(0);
	ASSERT_LE(0, self->gpu)
		TH_LOG("no vsvm device: %s", strerror(-self->gpu));
}

FIXTURE_TEARDOWN(svm)
{
	struct drm_vsvm_stats stats;

	restore_settings();
	EXPECT_EQ(0, gpu_stats(self->gpu, &stats));
	EXPECT_NE(0, stats.bytes_read + stats.bytes_written)
		TH_LOG("the GPU did not touch memory");
	if (!self->allow_stale) {
		EXPECT_EQ(0, stats.bus_errors);
		EXPECT_EQ(0, stats.stale_uses);
	}
	close(self->gpu);
}

/* The GPU must do it, and must not do it for a given reason. */
#define GPU_OK(call) do { \
	int _ret = (call); \
	ASSERT_EQ(0, _ret) \
		TH_LOG("%s: %s", #call, _ret < 0 ? strerror(-_ret) : gpu_reason(_ret)); \
} while (0)

#define GPU_FAILS(reason, call) do { \
	int _ret = (call); \
	ASSERT_EQ(reason, _ret) \
		TH_LOG("%s: %s", #call, _ret < 0 ? strerror(-_ret) : gpu_reason(_ret)); \
} while (0)

/* Debugging has to be allowed by the module parameter "debug", which is part of the test setup. */
#define NEED_DEBUG() \
	ASSERT_EQ(0, gpu_debug(self->gpu, VSVM_DEBUG_DELAY, VSVM_POINT_ACCESS, 0, 0)) \
		TH_LOG("load vsvm with debug=1")

/* Inject something: DEBUG(FAIL, COMMIT, 3). */
#define DEBUG(op, point, value) \
	ASSERT_EQ(0, gpu_debug(self->gpu, VSVM_DEBUG_##op, VSVM_POINT_##point, value, 0))

#define STATS(stats) ASSERT_EQ(0, gpu_stats(self->gpu, stats))

/* One counter, as it is now. */
#define STAT(name) ({ \
	struct drm_vsvm_stats _stats; \
	gpu_stats(self->gpu, &_stats) ? ~0ULL : _stats.name; \
})

#endif
