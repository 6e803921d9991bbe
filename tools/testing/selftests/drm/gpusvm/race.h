/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Races: threads that each repeat one step for a fixed time, against each other.
 *
 * No race may pass because nothing happened: every racer states how many steps it must at least
 * have made, and a step that finds wrong data ends the race with a message.
 */
#ifndef GPUSVM_RACE_H
#define GPUSVM_RACE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define RACERS_MAX 8

struct race;

struct racer {
	const char *name;
	void (*step)(struct racer *racer);
	void *arg;
	/* Fewer steps than this: the race proved nothing and fails. */
	uint64_t min_steps;
	/* A number of its own for each racer: which queue, which part of the memory. */
	unsigned int id;

	/* Set by the race. */
	struct race *race;
	uint64_t steps;
	uint64_t random;
	pthread_t thread;
};

struct race {
	struct racer *racer[RACERS_MAX];
	unsigned int count;
	unsigned int ms;
	bool over;
	pthread_mutex_t lock;
	char message[240];
};

/* A race of the usual length (GPUSVM_RACE_MS milliseconds, 1500 when that is not set). */
void race_init(struct race *race);
void race_add(struct race *race, struct racer *racer);
/* Run it: NULL, or the message of what went wrong first. */
const char *race_run(struct race *race);

/* For steps: it is over (long steps look), a step failed, a random number. */
bool race_over(struct racer *racer);
void race_fail(struct racer *racer, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
uint64_t race_random(struct racer *racer);

#endif
