// SPDX-License-Identifier: GPL-2.0
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "race.h"
#include "sys.h"

void race_init(struct race *race)
{
	const char *ms = getenv("GPUSVM_RACE_MS");

	memset(race, 0, sizeof(*race));
	pthread_mutex_init(&race->lock, NULL);
	race->ms = ms ? strtoul(ms, NULL, 10) : 1500;
}

void race_add(struct race *race, struct racer *racer)
{
	if (race->count == RACERS_MAX)
		abort();
	racer->race = race;
	racer->random = 0x853c49e6748fea9bULL + race->count;
	race->racer[race->count++] = racer;
}

bool race_over(struct racer *racer)
{
	return __atomic_load_n(&racer->race->over, __ATOMIC_RELAXED);
}

static void end_race(struct race *race)
{
	__atomic_store_n(&race->over, true, __ATOMIC_RELAXED);
}

void race_fail(struct racer *racer, const char *fmt, ...)
{
	struct race *race = racer->race;
	va_list args;
	int len;

	pthread_mutex_lock(&race->lock);
	if (!race->message[0]) {
		len = snprintf(race->message, sizeof(race->message), "%s: ", racer->name);
		va_start(args, fmt);
		vsnprintf(race->message + len, sizeof(race->message) - len, fmt, args);
		va_end(args);
	}
	pthread_mutex_unlock(&race->lock);
	end_race(race);
}

uint64_t race_random(struct racer *racer)
{
	/* xorshift64 */
	racer->random ^= racer->random << 13;
	racer->random ^= racer->random >> 7;
	racer->random ^= racer->random << 17;
	return racer->random;
}

static void *racer_main(void *arg)
{
	struct racer *racer = arg;

	while (!race_over(racer)) {
		racer->step(racer);
		__atomic_add_fetch(&racer->steps, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static bool all_warm(struct race *race)
{
	unsigned int i;

	for (i = 0; i < race->count; i++)
		if (__atomic_load_n(&race->racer[i]->steps, __ATOMIC_RELAXED) <
		    race->racer[i]->min_steps)
			return false;
	return true;
}

const char *race_run(struct race *race)
{
	uint64_t start = now_ms();
	unsigned int i;

	for (i = 0; i < race->count; i++) {
		if (pthread_create(&race->racer[i]->thread, NULL, racer_main, race->racer[i])) {
			race_fail(race->racer[i], "no thread");
			race->count = i;
		}
	}
	/* A busy machine gets more time before too few steps are a failure. */
	while (!__atomic_load_n(&race->over, __ATOMIC_RELAXED)) {
		if (now_ms() - start >= race->ms &&
		    (all_warm(race) || now_ms() - start >= race->ms + 15000))
			break;
		sleep_ms(10);
	}
	end_race(race);
	for (i = 0; i < race->count; i++)
		pthread_join(race->racer[i]->thread, NULL);

	for (i = 0; i < race->count; i++)
		if (race->racer[i]->steps < race->racer[i]->min_steps)
			race_fail(race->racer[i], "only %llu steps of at least %llu",
				  (unsigned long long)race->racer[i]->steps,
				  (unsigned long long)race->racer[i]->min_steps);
	return race->message[0] ? race->message : NULL;
}
