// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Tracepoints of the Rust GPU shared virtual memory library.
 */

#include <linux/build_bug.h>
#include <linux/export.h>
#include <linux/mmu_notifier.h>

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include <trace/events/gpusvm.h>

/* The numbers behind the names in gpusvm_invalidate. */
static_assert(MMU_NOTIFY_UNMAP == 0);
static_assert(MMU_NOTIFY_CLEAR == 1);
static_assert(MMU_NOTIFY_PROTECTION_VMA == 2);
static_assert(MMU_NOTIFY_PROTECTION_PAGE == 3);
static_assert(MMU_NOTIFY_SOFT_DIRTY == 4);
static_assert(MMU_NOTIFY_RELEASE == 5);
static_assert(MMU_NOTIFY_MIGRATE == 6);
static_assert(MMU_NOTIFY_EXCLUSIVE == 7);

/*
 * The library is generic over the driver, so its code is compiled as a part of
 * each driver, which may be a module.
 */
#ifdef CONFIG_TRACEPOINTS
#define EXPORT_RUST_DO_TRACE(name) EXPORT_SYMBOL_GPL(rust_do_trace_##name)

EXPORT_TRACEPOINT_SYMBOL_GPL(gpusvm_fault);
EXPORT_TRACEPOINT_SYMBOL_GPL(gpusvm_map);
EXPORT_TRACEPOINT_SYMBOL_GPL(gpusvm_invalidate);
EXPORT_TRACEPOINT_SYMBOL_GPL(gpusvm_collect);
EXPORT_RUST_DO_TRACE(gpusvm_fault);
EXPORT_RUST_DO_TRACE(gpusvm_map);
EXPORT_RUST_DO_TRACE(gpusvm_invalidate);
EXPORT_RUST_DO_TRACE(gpusvm_collect);
#endif
