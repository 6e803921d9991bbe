/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Tracepoints of the Rust GPU shared virtual memory library, called from
 * rust/kernel/drm/gpusvm/trace.rs.
 *
 * "svm" is the number in the name of the mirror's debugfs directory, addresses
 * are bytes of the mirrored process, and spans are half open.
 */

#undef TRACE_SYSTEM
#define TRACE_SYSTEM gpusvm

#if !defined(_TRACE_GPUSVM_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_GPUSVM_H

#include <linux/mmu_notifier.h>
#include <linux/tracepoint.h>

TRACE_EVENT(gpusvm_fault,
	TP_PROTO(unsigned int svm, unsigned long start, unsigned long end,
		 bool write, int result, unsigned int walks,
		 unsigned int retries),
	TP_ARGS(svm, start, end, write, result, walks, retries),
	TP_STRUCT__entry(
		__field(unsigned long, start)
		__field(unsigned long, end)
		__field(unsigned int, svm)
		__field(int, result)
		__field(unsigned int, walks)
		__field(unsigned int, retries)
		__field(bool, write)
	),
	TP_fast_assign(
		__entry->start = start;
		__entry->end = end;
		__entry->svm = svm;
		__entry->result = result;
		__entry->walks = walks;
		__entry->retries = retries;
		__entry->write = write;
	),
	TP_printk("svm=%u span=0x%lx-0x%lx access=%s result=%d walks=%u retries=%u",
		  __entry->svm, __entry->start, __entry->end,
		  __entry->write ? "write" : "read", __entry->result,
		  __entry->walks, __entry->retries)
);

TRACE_EVENT(gpusvm_map,
	TP_PROTO(unsigned int svm, unsigned long start, unsigned long end,
		 unsigned int segments, unsigned long bytes),
	TP_ARGS(svm, start, end, segments, bytes),
	TP_STRUCT__entry(
		__field(unsigned long, start)
		__field(unsigned long, end)
		__field(unsigned long, bytes)
		__field(unsigned int, svm)
		__field(unsigned int, segments)
	),
	TP_fast_assign(
		__entry->start = start;
		__entry->end = end;
		__entry->bytes = bytes;
		__entry->svm = svm;
		__entry->segments = segments;
	),
	TP_printk("svm=%u span=0x%lx-0x%lx segments=%u bytes=%lu",
		  __entry->svm, __entry->start, __entry->end,
		  __entry->segments, __entry->bytes)
);

/*
 * The event is an enum mmu_notifier_event, see the assertions in
 * drivers/gpu/drm/gpusvm_trace.c; the outcome is Outcome in trace.rs.
 */
TRACE_EVENT(gpusvm_invalidate,
	TP_PROTO(unsigned int svm, unsigned long start, unsigned long end,
		 unsigned int event, unsigned int outcome),
	TP_ARGS(svm, start, end, event, outcome),
	TP_STRUCT__entry(
		__field(unsigned long, start)
		__field(unsigned long, end)
		__field(unsigned int, svm)
		__field(unsigned int, event)
		__field(unsigned int, outcome)
	),
	TP_fast_assign(
		__entry->start = start;
		__entry->end = end;
		__entry->svm = svm;
		__entry->event = event;
		__entry->outcome = outcome;
	),
	TP_printk("svm=%u span=0x%lx-0x%lx event=%s outcome=%s",
		  __entry->svm, __entry->start, __entry->end,
		  __print_symbolic(__entry->event,
				   { 0, "unmap" },
				   { 1, "clear" },
				   { 2, "protection-vma" },
				   { 3, "protection-page" },
				   { 4, "soft-dirty" },
				   { 5, "release" },
				   { 6, "migrate" },
				   { 7, "exclusive" }),
		  __print_symbolic(__entry->outcome,
				   { 0, "idle" },
				   { 1, "deferred" },
				   { 2, "in-place" },
				   { 3, "would-block" }))
);

TRACE_EVENT(gpusvm_collect,
	TP_PROTO(unsigned int svm, unsigned long start, unsigned long end),
	TP_ARGS(svm, start, end),
	TP_STRUCT__entry(
		__field(unsigned long, start)
		__field(unsigned long, end)
		__field(unsigned int, svm)
	),
	TP_fast_assign(
		__entry->start = start;
		__entry->end = end;
		__entry->svm = svm;
	),
	TP_printk("svm=%u span=0x%lx-0x%lx", __entry->svm, __entry->start,
		  __entry->end)
);

#endif /* _TRACE_GPUSVM_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
