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

/* Whether `condition` becomes true within `ms` milliseconds. It is looked at again and again. */
#define wait_for(condition, ms) ({ \
	uint64_t _end = now_ms() + (ms); \
	bool _is; \
	while (!(_is = (condition)) && now_ms() < _end) \
		sleep_ms(2); \
	_is; \
})

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

/* Write a setting of the kernel that is put back by restore_settings(): 0 or -errno. */
int change_setting(const char *path, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void restore_settings(void);

/* Limit the memory of this process by a control group of this name: 0 or -errno. */
int limit_memory(const char *group, size_t bytes);

/* One line to the kernel log, where the log scanner of the rig reads it. */
void kmsg(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The kernel log from now on: a descriptor or -errno; and whether a line came that holds `text`. */
int log_open(void);
bool log_has(int log, const char *text);

/* Number of CPUs that this process may run on. */
int cpu_count(void);

/*
 * Wait for a child for at most `ms`: its wait status, or -ETIME when it is still there (it is
 * not killed then), or -errno.
 */
int wait_child(pid_t pid, unsigned int ms);

#endif
