// SPDX-License-Identifier: GPL-2.0
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "sys.h"

uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

void sleep_ms(unsigned int ms)
{
	struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = (ms % 1000) * 1000000L };

	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
}

size_t page_size(void)
{
	static size_t size;

	if (!size)
		size = sysconf(_SC_PAGESIZE);
	return size;
}

size_t huge_size(void)
{
	static size_t size;
	char text[32];

	if (!size && read_text("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size",
			       text, sizeof(text)) > 0)
		size = strtoul(text, NULL, 10);
	return size;
}

static int write_args(const char *path, const char *fmt, va_list args)
{
	char text[256];
	int fd, len, ret = 0;

	len = vsnprintf(text, sizeof(text), fmt, args);
	if (len < 0 || (size_t)len >= sizeof(text))
		return -EINVAL;

	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (write(fd, text, len) != len)
		ret = -errno;
	close(fd);
	return ret;
}

int write_text(const char *path, const char *fmt, ...)
{
	va_list args;
	int ret;

	va_start(args, fmt);
	ret = write_args(path, fmt, args);
	va_end(args);
	return ret;
}

ssize_t read_text(const char *path, char *buf, size_t size)
{
	ssize_t n, len = 0;
	int fd;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	while ((size_t)len < size - 1) {
		n = read(fd, buf + len, size - 1 - len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		len += n;
	}
	buf[len] = '\0';
	close(fd);
	return len;
}

long long read_key(const char *path, const char *key)
{
	size_t keylen = strlen(key);
	char line[256];
	long long value = -1;
	FILE *f;

	f = fopen(path, "re");
	if (!f)
		return -1;
	while (fgets(line, sizeof(line), f)) {
		if (strncmp(line, key, keylen))
			continue;
		if (line[keylen] != ' ' && line[keylen] != ':' && line[keylen] != '\t')
			continue;
		value = strtoll(line + keylen + 1, NULL, 10);
		break;
	}
	fclose(f);
	return value;
}

int log_open(void)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	lseek(fd, 0, SEEK_END);
	return fd;
}

bool log_has(int log, const char *text)
{
	char line[1024];
	ssize_t n;

	for (;;) {
		n = read(log, line, sizeof(line) - 1);
		/* Lines that were lost, if it is that, are none that anybody waits for. */
		if (n < 0 && (errno == EPIPE || errno == EINTR))
			continue;
		if (n <= 0)
			return false;
		line[n] = '\0';
		if (strstr(line, text))
			return true;
	}
}

bool path_exists(const char *path)
{
	return !access(path, F_OK);
}

/* What settings were before they were changed. */
#define SETTINGS_MAX 64
static struct {
	char path[128];
	char value[64];
} old[SETTINGS_MAX];
static unsigned int olds;

static void remember(const char *path)
{
	unsigned int i;

	for (i = 0; i < olds; i++)
		if (!strcmp(old[i].path, path))
			return;
	if (olds == SETTINGS_MAX || strlen(path) >= sizeof(old[0].path))
		abort();
	if (read_text(path, old[olds].value, sizeof(old[0].value)) <= 0)
		return;
	snprintf(old[olds].path, sizeof(old[0].path), "%s", path);
	olds++;
}

int change_setting(const char *path, const char *fmt, ...)
{
	va_list args;
	int ret;

	remember(path);
	va_start(args, fmt);
	ret = write_args(path, fmt, args);
	va_end(args);
	return ret;
}

void restore_settings(void)
{
	for (; olds; olds--)
		write_text(old[olds - 1].path, "%s", old[olds - 1].value);
}

int limit_memory(const char *group, size_t bytes)
{
	char path[128];
	int ret;

	write_text("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	snprintf(path, sizeof(path), "/sys/fs/cgroup/%s", group);
	mkdir(path, 0755);
	snprintf(path, sizeof(path), "/sys/fs/cgroup/%s/memory.max", group);
	ret = write_text(path, "%zu", bytes);
	if (ret)
		return ret;
	snprintf(path, sizeof(path), "/sys/fs/cgroup/%s/cgroup.procs", group);
	return write_text(path, "%d", getpid());
}

void kmsg(const char *fmt, ...)
{
	char text[256];
	va_list args;
	int len;

	va_start(args, fmt);
	len = vsnprintf(text, sizeof(text) - 1, fmt, args);
	va_end(args);
	if (len <= 0 || (size_t)len >= sizeof(text) - 1)
		return;
	write_text("/dev/kmsg", "%s\n", text);
}

int cpu_count(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set))
		return 1;
	return CPU_COUNT(&set);
}

int wait_child(pid_t pid, unsigned int ms)
{
	uint64_t end = now_ms() + ms;
	int status;
	pid_t got;

	for (;;) {
		got = waitpid(pid, &status, WNOHANG);
		if (got == pid)
			return status;
		if (got < 0 && errno != EINTR)
			return -errno;
		if (now_ms() >= end)
			return -ETIME;
		sleep_ms(2);
	}
}
