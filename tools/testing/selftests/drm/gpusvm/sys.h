/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Small wrappers over files in /proc, /sys and debugfs, clocks and child processes.
 *
 * None of them needs the kselftest harness: the demonstration uses them too.
 */
#ifndef GPUSVM_SYS_H
#define GPUSVM_SYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Milliseconds of CLOCK_MONOTONIC. */
uint64_t now_ms(void);
void sleep_ms(unsigned int ms);

/* Bytes of a page, and of a huge page of the transparent kind (0 without it). */
size_t page_size(void);
size_t huge_size(void);

/* Write formatted text to a file: 0 or -errno. */
int write_text(const char *path, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Read a whole (small) file as a string: its length or -errno. */
ssize_t read_text(const char *path, char *buf, size_t size);
/* The number after "key" in a file of "key value" lines: -1 when it is not there. */
long long read_key(const char *path, const char *key);
bool path_exists(const char *path);

/* One line to the kernel log, where the log scanner of the rig reads it. */
void kmsg(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Number of CPUs that this process may run on. */
int cpu_count(void);

/*
 * Wait for a child for at most `ms`: its wait status, or -ETIME when it is still there (it is
 * not killed then), or -errno.
 */
int wait_child(pid_t pid, unsigned int ms);

#endif
