/* SPDX-License-Identifier: MIT */
/*
 * vsvm: a software GPU that shares the address space of the process that uses
 * it, on top of the Rust GPU shared virtual memory library.
 *
 * Every open file of the render node is one GPU address space. It mirrors the
 * memory of the process (the &struct mm_struct) that opened the file: a pointer
 * of the process is a pointer of the GPU. The file may be handed to another
 * process or inherited by a child, but an ioctl of this driver that is called
 * from another address space fails with EPERM.
 *
 * An address space has %VSVM_QUEUES queues that run side by side. A queue runs
 * command lists in the order of their submission. A GPU page fault is resolved
 * by the library and is invisible, except in the counters. A fault that cannot
 * be resolved stops the queue in which it happened, and nothing else: see
 * &struct drm_vsvm_error.
 *
 * Rules for all ioctls: padding and reserved fields must be zero, unknown flags
 * are refused (EINVAL). An ioctl that fails has changed nothing, unless it says
 * otherwise. Besides the errors that an ioctl names, each may fail with EPERM
 * (called from another address space than the opener's), ENODEV (the device is
 * gone), EFAULT (a pointer argument is bad) and ENOMEM.
 */
#ifndef __VSVM_DRM_H__
#define __VSVM_DRM_H__

#include "drm.h"

#if defined(__cplusplus)
extern "C" {
#endif

/** VSVM_QUEUES - Queues of one address space, numbered from zero. */
#define VSVM_QUEUES		4

/** VSVM_ADDRESS_BITS - Addresses at or above 2 to this power are refused (EINVAL). */
#define VSVM_ADDRESS_BITS	48

/** VSVM_MAX_COMMANDS - Most commands in one command list. */
#define VSVM_MAX_COMMANDS	4096

/** VSVM_MAX_DATA - Most bytes of data that accompany one command list (16 MiB). */
#define VSVM_MAX_DATA		0x1000000

/** VSVM_MAX_JOBS - Most command lists of a queue that are not yet done, or whose
 * data was not yet fetched by &DRM_IOCTL_VSVM_WAIT.
 */
#define VSVM_MAX_JOBS		64

/** VSVM_MAX_DATA_HELD - Most bytes of data that the command lists of a queue hold together. */
#define VSVM_MAX_DATA_HELD	0x4000000

/** VSVM_MAX_FILES - Most open files of one device; one more fails with EMFILE. */
#define VSVM_MAX_FILES		256

/** VSVM_NO_DATA - An offset into the data that means "do not store it". */
#define VSVM_NO_DATA		(~0ULL)

/**
 * enum drm_vsvm_op - what a command does
 *
 * "Memory" is the memory of the process, through the GPU's page table. "Data" is
 * the buffer that accompanies the command list: it is copied from the caller at
 * submission, is private to the command list while it runs, and can be fetched
 * when it is done.
 */
enum drm_vsvm_op {
	/**
	 * @VSVM_OP_LOAD: Copy @len bytes of memory at @addr to the data at
	 * offset @addr2.
	 */
	VSVM_OP_LOAD = 1,
	/**
	 * @VSVM_OP_STORE: Copy @len bytes of the data at offset @addr2 to memory
	 * at @addr.
	 */
	VSVM_OP_STORE = 2,
	/**
	 * @VSVM_OP_COPY: Copy @len bytes of memory at @addr2 to memory at @addr,
	 * in ascending order of addresses and in pieces that do not cross a page
	 * of either side. What overlapping spans give is not defined.
	 */
	VSVM_OP_COPY = 3,
	/**
	 * @VSVM_OP_FILL: Fill @len bytes of memory at @addr with the eight bytes
	 * of @value (byte 0 is its least significant byte), repeated; the byte
	 * at @addr + i is byte i % 8. @addr2 must be zero.
	 */
	VSVM_OP_FILL = 4,
	/**
	 * @VSVM_OP_ATOMIC_ADD: Add @value to every aligned 64-bit word of the
	 * @len bytes of memory at @addr, wrapping; both must be multiples of 8.
	 * The old values go to the data at offset @addr2, unless that is
	 * %VSVM_NO_DATA. With engine=cpu each addition is atomic with respect to
	 * CPUs too, with engine=dma only with respect to the engine.
	 */
	VSVM_OP_ATOMIC_ADD = 5,
};

/**
 * struct drm_vsvm_command - one command of a command list
 */
struct drm_vsvm_command {
	/** @op: What to do, one of &enum drm_vsvm_op. */
	__u32 op;
	/** @pad: Must be zero. */
	__u32 pad;
	/** @addr: Address in the process. */
	__u64 addr;
	/** @addr2: Second address, or offset into the data; see @op. */
	__u64 addr2;
	/** @len: Number of bytes, not zero. */
	__u64 len;
	/** @value: Operand of FILL and ATOMIC_ADD, zero for the others. */
	__u64 value;
};

/**
 * struct drm_vsvm_submit - argument of &DRM_IOCTL_VSVM_SUBMIT
 *
 * Queues a command list and returns at once.
 *
 * Errors: EINVAL (unknown queue, op or flag; padding not zero; no command or
 * more than %VSVM_MAX_COMMANDS; @data_size above %VSVM_MAX_DATA; a command whose
 * length is zero, whose span wraps or leaves %VSVM_ADDRESS_BITS, is not aligned
 * as its op demands, or whose data is outside the buffer), ECANCELED (the queue
 * has stopped), EBUSY (%VSVM_MAX_JOBS or %VSVM_MAX_DATA_HELD is reached).
 */
struct drm_vsvm_submit {
	/** @commands: User pointer to an array of &struct drm_vsvm_command. */
	__u64 commands;
	/** @data: User pointer to @data_size bytes, copied at submission. */
	__u64 data;
	/** @data_size: Bytes of data, may be zero. */
	__u64 data_size;
	/** @num_commands: Number of commands. */
	__u32 num_commands;
	/** @queue: Which queue, below %VSVM_QUEUES. */
	__u32 queue;
	/** @flags: Must be zero. */
	__u32 flags;
	/** @pad: Must be zero. */
	__u32 pad;
	/** @seqno: Out: number of this command list in its queue, from 1. */
	__u64 seqno;
};

/**
 * enum drm_vsvm_access - how the GPU accessed an address
 */
enum drm_vsvm_access {
	/** @VSVM_ACCESS_READ: Read. */
	VSVM_ACCESS_READ = 1,
	/** @VSVM_ACCESS_WRITE: Write, or read and write. */
	VSVM_ACCESS_WRITE = 2,
};

/**
 * enum drm_vsvm_reason - why a fault could not be resolved
 */
enum drm_vsvm_reason {
	/** @VSVM_REASON_NONE: No error. */
	VSVM_REASON_NONE = 0,
	/** @VSVM_REASON_UNMAPPED: Nothing is mapped there. */
	VSVM_REASON_UNMAPPED = 1,
	/** @VSVM_REASON_ACCESS: The mapping does not allow this access. */
	VSVM_REASON_ACCESS = 2,
	/** @VSVM_REASON_CONFLICT: The memory is on a device that cannot share it. */
	VSVM_REASON_CONFLICT = 3,
	/** @VSVM_REASON_DMA: The memory could not be mapped for the device. */
	VSVM_REASON_DMA = 4,
	/** @VSVM_REASON_NO_MEMORY: Out of memory. */
	VSVM_REASON_NO_MEMORY = 5,
	/**
	 * @VSVM_REASON_TIMEOUT: The mapping changed all the time. Not given by
	 * this version, whose engine repeats such a fault until its queue ends.
	 */
	VSVM_REASON_TIMEOUT = 6,
	/** @VSVM_REASON_KILLED: The queue was told to end. */
	VSVM_REASON_KILLED = 7,
	/** @VSVM_REASON_POISONED: The memory has a hardware error. */
	VSVM_REASON_POISONED = 8,
	/** @VSVM_REASON_GONE: The process or the device is gone. */
	VSVM_REASON_GONE = 9,
	/**
	 * @VSVM_REASON_BUS: The memory system did not answer at a DMA address
	 * that the page table holds: the address does not resolve in the IOMMU
	 * (engine=cpu) or the transfer failed (engine=dma). Never happens unless
	 * the library or the driver is wrong.
	 */
	VSVM_REASON_BUS = 10,
	/**
	 * @VSVM_REASON_INACCESSIBLE: There is a mapping, but its memory cannot be
	 * had: no access at all, memory of a device, a guard region, or beyond
	 * the end of the file.
	 */
	VSVM_REASON_INACCESSIBLE = 11,
	/** @VSVM_REASON_DRIVER: The GPU's page table could not be written. */
	VSVM_REASON_DRIVER = 12,
};

/**
 * struct drm_vsvm_error - what stopped a queue
 */
struct drm_vsvm_error {
	/** @address: The address whose access failed. */
	__u64 address;
	/** @seqno: Number of the command list. */
	__u64 seqno;
	/** @command: Index of the command in its list. */
	__u32 command;
	/** @access: One of &enum drm_vsvm_access, zero if there is no error. */
	__u32 access;
	/** @reason: One of &enum drm_vsvm_reason. */
	__u32 reason;
	/** @pad: Zero. */
	__u32 pad;
};

/**
 * enum drm_vsvm_status - state of a command list
 */
enum drm_vsvm_status {
	/** @VSVM_STATUS_DONE: All its commands were executed. */
	VSVM_STATUS_DONE = 1,
	/**
	 * @VSVM_STATUS_FAILED: A command failed. The ones before it were
	 * executed, itself perhaps in part, the ones behind it not.
	 */
	VSVM_STATUS_FAILED = 2,
	/** @VSVM_STATUS_CANCELLED: It was behind one that failed, nothing ran. */
	VSVM_STATUS_CANCELLED = 3,
};

/**
 * struct drm_vsvm_wait - argument of &DRM_IOCTL_VSVM_WAIT
 *
 * Waits until a command list is done, and fetches its data. A command list that
 * was submitted with data keeps it, and counts for %VSVM_MAX_JOBS, until its
 * data is fetched.
 *
 * Errors: EINVAL (unknown queue or flag, padding; @data_size is neither zero nor
 * the size that was submitted), ENOENT (no such number), ENODATA (the data was
 * already fetched, or the list was cancelled), ETIME (not done in time), EINTR (a
 * signal), ESTALE (submitted before a reset of the queue).
 */
struct drm_vsvm_wait {
	/** @seqno: Which command list. */
	__u64 seqno;
	/**
	 * @timeout_ns: How long to wait; zero does not wait, a negative value
	 * waits without limit.
	 */
	__s64 timeout_ns;
	/** @data: User pointer to @data_size bytes for the data. */
	__u64 data;
	/** @data_size: Zero to leave the data, or the submitted size. */
	__u64 data_size;
	/** @queue: Which queue. */
	__u32 queue;
	/** @flags: Must be zero. */
	__u32 flags;
	/** @status: Out: one of &enum drm_vsvm_status. */
	__u32 status;
	/** @pad: Must be zero. */
	__u32 pad;
	/** @error: Out: what stopped the queue, all zero if it runs. */
	struct drm_vsvm_error error;
};

/** VSVM_QUEUE_RESET - Flag: restart a stopped queue after reading its state. */
#define VSVM_QUEUE_RESET	(1U << 0)

/**
 * struct drm_vsvm_queue - argument of &DRM_IOCTL_VSVM_QUEUE
 *
 * Reads the state of a queue, and with %VSVM_QUEUE_RESET lets a stopped queue run
 * again; a reset of a queue that runs changes nothing.
 *
 * Errors: EINVAL (unknown queue or flag, padding).
 */
struct drm_vsvm_queue {
	/** @queue: Which queue. */
	__u32 queue;
	/** @flags: Zero or %VSVM_QUEUE_RESET. */
	__u32 flags;
	/** @submitted: Out: number of the last command list submitted. */
	__u64 submitted;
	/** @completed: Out: number of the last command list that left the queue. */
	__u64 completed;
	/** @stopped: Out: 1 if the queue has stopped (before the reset), else 0. */
	__u32 stopped;
	/** @pad: Must be zero. */
	__u32 pad;
	/** @error: Out: what stopped the queue, all zero if nothing did. */
	struct drm_vsvm_error error;
};

/** VSVM_MAP_WRITE - Flag: the span must be writable. */
#define VSVM_MAP_WRITE		(1U << 0)

/**
 * struct drm_vsvm_map_ahead - argument of &DRM_IOCTL_VSVM_MAP_AHEAD
 *
 * Maps a span before the GPU touches it, as if each of its pages had faulted.
 * It is a hint for speed: what is mapped may be unmapped at any time. Where user
 * space handles page faults (userfaultfd) it waits for that, until the process is
 * killed; the device cannot be unbound meanwhile.
 *
 * If it fails, then @failed is the address of the first page that could not be
 * had, and what is before it was mapped.
 *
 * Errors, all of which may leave a part of the span mapped: EINVAL (not page
 * aligned, empty, wraps, outside of %VSVM_ADDRESS_BITS, unknown flag; nothing is
 * mapped), EFAULT (a part is not mapped in the process or has no access), EPERM
 * (%VSVM_MAP_WRITE and a part is read-only), EAGAIN and ETIME (the mapping changed
 * all the time), EINTR (killed), EOPNOTSUPP (memory of a device that cannot share
 * it), EIO (could not be mapped for the device), EHWPOISON (hardware error), ESRCH (the
 * process is at its end).
 */
struct drm_vsvm_map_ahead {
	/** @addr: First address, a multiple of the CPU's page size. */
	__u64 addr;
	/** @len: Bytes, a multiple of the CPU's page size. */
	__u64 len;
	/** @flags: Zero or %VSVM_MAP_WRITE. */
	__u32 flags;
	/** @pad: Must be zero. */
	__u32 pad;
	/**
	 * @failed: Out: where it failed, or zero if it did not. Unchanged after
	 * EINVAL.
	 */
	__u64 failed;
};

/**
 * enum drm_vsvm_engine - how the engine reaches memory
 */
enum drm_vsvm_engine {
	/**
	 * @VSVM_ENGINE_CPU: The CPU copies, after it resolved the DMA address in
	 * the IOMMU's page table.
	 */
	VSVM_ENGINE_CPU = 0,
	/** @VSVM_ENGINE_DMA: The DMA engine of the PCI device copies. */
	VSVM_ENGINE_DMA = 1,
};

/**
 * struct drm_vsvm_stats - argument of &DRM_IOCTL_VSVM_STATS
 *
 * Counters of the address space since it was opened. @flags and @engine are
 * inputs, everything else is output. Never fails but with EINVAL (one of these is
 * not zero) and the errors of all ioctls.
 */
struct drm_vsvm_stats {
	/** @flags: Must be zero. */
	__u32 flags;
	/** @engine: One of &enum drm_vsvm_engine. Must be zero on input. */
	__u32 engine;

	/* The library. */

	/** @faults: Faults that the library was asked to resolve. */
	__u64 faults;
	/** @short_faults: Of these, resolved without looking at the process. */
	__u64 short_faults;
	/** @walks: Walks of the process's page table. */
	__u64 walks;
	/** @retries: Walks that were void because the mapping changed meanwhile. */
	__u64 retries;
	/** @invalidations: Invalidations by the kernel's memory management. */
	__u64 invalidations;
	/** @blocks_invalidated: Blocks of at most 2 MiB that they unmapped. */
	__u64 blocks_invalidated;
	/** @ranges: Ranges that exist now. */
	__u64 ranges;
	/** @segments: Contiguous runs of DMA addresses mapped now. */
	__u64 segments;
	/** @mapped_bytes: Bytes mapped now. */
	__u64 mapped_bytes;
	/** @mapped_bytes_total: Bytes mapped since the beginning. */
	__u64 mapped_bytes_total;
	/** @collected: Ranges collected after munmap. */
	__u64 collected;

	/* The GPU. */

	/** @gpu_faults: Page faults that the engine raised. */
	__u64 gpu_faults;
	/** @commits: Times that the library wrote leaf entries. */
	__u64 commits;
	/** @stops: Times that the library cleared leaf entries. */
	__u64 stops;
	/** @leaves_4k: Leaf entries of the page size mapped now. */
	__u64 leaves_4k;
	/** @leaves_2m: Leaf entries of 2 MiB mapped now. */
	__u64 leaves_2m;
	/** @tlb_hits: Accesses whose translation was in the TLB. */
	__u64 tlb_hits;
	/** @tlb_misses: Accesses that walked the GPU page table. */
	__u64 tlb_misses;
	/** @tlb_flushes: Flushes that were completed. */
	__u64 tlb_flushes;
	/**
	 * @late_uses: Uses of a translation between its removal and the end of
	 * its flush. They are allowed, and show that the TLB is real.
	 */
	__u64 late_uses;
	/**
	 * @stale_uses: Uses of a translation after it was removed and flushed, and
	 * new uses of an address whose flush nobody waited for. Each is a bug, in
	 * the library or the driver.
	 */
	__u64 stale_uses;
	/** @bus_errors: DMA addresses that did not resolve. Each is a bug. */
	__u64 bus_errors;
	/** @bytes_read: Bytes that the engine read from memory. */
	__u64 bytes_read;
	/** @bytes_written: Bytes that the engine wrote to memory. */
	__u64 bytes_written;
	/** @dma_transfers: Transfers of the DMA engine of the device. */
	__u64 dma_transfers;
	/** @jobs_done: Command lists executed. */
	__u64 jobs_done;
	/** @jobs_failed: Command lists that failed. */
	__u64 jobs_failed;

	/* Debugging, see &struct drm_vsvm_debug. */

	/** @barriers_met: Times that all parties of a barrier arrived. */
	__u64 barriers_met;
	/** @barriers_missed: Parties that gave up waiting at a barrier. */
	__u64 barriers_missed;
	/** @injected: Failures and delays that were injected. */
	__u64 injected;
};

/**
 * enum drm_vsvm_debug_op - what to inject
 */
enum drm_vsvm_debug_op {
	/**
	 * @VSVM_DEBUG_DELAY: From now on sleep @value milliseconds (at most
	 * 10000) at @point; zero ends it.
	 */
	VSVM_DEBUG_DELAY = 1,
	/**
	 * @VSVM_DEBUG_FAIL: Let the next @value passes of @point fail: at
	 * PREPARE with ENOMEM, at COMMIT with EAGAIN, which makes the library
	 * try again. Zero ends it. EINVAL for other points.
	 */
	VSVM_DEBUG_FAIL = 2,
	/**
	 * @VSVM_DEBUG_BARRIER: From now on let everybody who comes to @point
	 * wait there until @value parties (2 to 16) have come or @timeout_ms (at
	 * most 10000) have passed, once: after the first meeting or time-out the
	 * barrier is gone. Zero parties removes it. Not for FLUSH and ACCESS.
	 */
	VSVM_DEBUG_BARRIER = 3,
	/**
	 * @VSVM_DEBUG_DROP_FLUSH: With a @value of 1, complete flushes without
	 * flushing (a bug that the TLB has to notice, @point FLUSH); 0 ends it.
	 */
	VSVM_DEBUG_DROP_FLUSH = 4,
	/**
	 * @VSVM_DEBUG_DROP_WAIT: With a @value of 1, do not wait for flushes, as
	 * if the library forgot to (a bug that has to be noticed, @point FLUSH);
	 * 0 ends it.
	 */
	VSVM_DEBUG_DROP_WAIT = 5,
};

/**
 * enum drm_vsvm_debug_point - where to inject
 */
enum drm_vsvm_debug_point {
	/** @VSVM_POINT_PREPARE: A fault, before its GPU page tables are made. */
	VSVM_POINT_PREPARE = 1,
	/**
	 * @VSVM_POINT_COMMIT: A fault, before its leaf entries are written, with
	 * the notifier lock held for reading: invalidations wait.
	 */
	VSVM_POINT_COMMIT = 2,
	/** @VSVM_POINT_FLUSH: A TLB flush, between its start and its end. */
	VSVM_POINT_FLUSH = 3,
	/** @VSVM_POINT_ACCESS: The engine, between translation and access. */
	VSVM_POINT_ACCESS = 4,
	/**
	 * @VSVM_POINT_WALKED: A fault, after the walk of the process's page
	 * tables and before its result is used; no lock of the core mm or of an
	 * invalidation is held.
	 */
	VSVM_POINT_WALKED = 5,
};

/**
 * struct drm_vsvm_debug - argument of &DRM_IOCTL_VSVM_DEBUG
 *
 * For tests. What is injected holds for this address space only.
 *
 * Errors: EOPNOTSUPP (the module parameter "debug" is off), EINVAL (unknown op,
 * a value out of range, or a point that the op does not know).
 */
struct drm_vsvm_debug {
	/** @op: One of &enum drm_vsvm_debug_op. */
	__u32 op;
	/** @point: One of &enum drm_vsvm_debug_point. */
	__u32 point;
	/** @value: See @op. */
	__u64 value;
	/** @timeout_ms: For %VSVM_DEBUG_BARRIER, otherwise zero. */
	__u64 timeout_ms;
};

#define DRM_VSVM_SUBMIT		0x00
#define DRM_VSVM_WAIT		0x01
#define DRM_VSVM_QUEUE		0x02
#define DRM_VSVM_MAP_AHEAD	0x03
#define DRM_VSVM_STATS		0x04
#define DRM_VSVM_DEBUG		0x05

/*
 * An enum, since constants of an enum are what language bindings can use.
 */
enum {
	DRM_IOCTL_VSVM_SUBMIT	 = DRM_IOWR(DRM_COMMAND_BASE + DRM_VSVM_SUBMIT,
					    struct drm_vsvm_submit),
	DRM_IOCTL_VSVM_WAIT	 = DRM_IOWR(DRM_COMMAND_BASE + DRM_VSVM_WAIT,
					    struct drm_vsvm_wait),
	DRM_IOCTL_VSVM_QUEUE	 = DRM_IOWR(DRM_COMMAND_BASE + DRM_VSVM_QUEUE,
					    struct drm_vsvm_queue),
	DRM_IOCTL_VSVM_MAP_AHEAD = DRM_IOWR(DRM_COMMAND_BASE + DRM_VSVM_MAP_AHEAD,
					    struct drm_vsvm_map_ahead),
	DRM_IOCTL_VSVM_STATS	 = DRM_IOWR(DRM_COMMAND_BASE + DRM_VSVM_STATS,
					    struct drm_vsvm_stats),
	DRM_IOCTL_VSVM_DEBUG	 = DRM_IOW(DRM_COMMAND_BASE + DRM_VSVM_DEBUG,
					   struct drm_vsvm_debug),
};

#if defined(__cplusplus)
}
#endif

#endif /* __VSVM_DRM_H__ */
