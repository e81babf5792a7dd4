/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ring/spin.h"

#include <sched.h>
#include <stdlib.h>

#include "ring/clock.h"

/* The cost of a sleep and a wake-up, until it is learned, and between what it may be. */
#define FIRST_COST 50000
#define LEAST_COST 5000
#define MOST_COST 200000
/* Each lesson changes the cost by this part of it: so it becomes the median of what they say. */
#define LESSON_STEP 16
/* Spins before the first wait that sleeps to learn, and before the last ones: a sleep too many
 * costs little beside so many spins. */
#define FIRST_LESSON 16
#define LAST_LESSON 4096
#define MAX_LIMIT_US 1000000
/* Of so many waits that should sleep, one spins nevertheless. */
#define PROBE_EVERY 32
/* Pauses between two looks while a batch gathers, which takes at most as long as a spin. */
#define GATHER_TURNS 16
#define GATHER_PENALTY_MAX 63
/* Looks between two looks at the clock. */
#define TURNS_PER_CLOCK 16

/* Tell the processor that we spin, which frees its pipeline (and a sibling thread) meanwhile. */
static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
	__asm__ volatile("yield" ::: "memory");
#else
	__asm__ volatile("" ::: "memory");
#endif
}

void spin_init(struct spin *spin)
{
	const char *setting = secure_getenv("KVMCHAN_SPIN_US");
	uint64_t limit = FIRST_COST;
	bool is_set = false;
	cpu_set_t cpus;

	if (setting && *setting >= '0' && *setting <= '9') {
		char *end;
		unsigned long value = strtoul(setting, &end, 10);

		is_set = *end == '\0';
		if (is_set)
			limit = 1000 * (value < MAX_LIMIT_US ? value : MAX_LIMIT_US);
	}
	if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0 && CPU_COUNT(&cpus) == 1)
		limit = 0;
	*spin = (struct spin){
	    .limit = (uint32_t)limit,
	    .cost = FIRST_COST,
	    .is_set = is_set,
	    .lesson = FIRST_LESSON,
	};
}

/* Return whether a wait that should spin is to sleep, so that we learn what that costs. */
static bool has_lesson(struct spin *spin)
{
	if (spin->is_set || ++spin->spins < spin->lesson)
		return false;
	spin->spins = 0;
	if (spin->lesson < LAST_LESSON)
		spin->lesson += spin->lesson / 8;
	return true;
}

void spin_begin(struct spin *spin, struct spin_wait *wait)
{
	*wait = (struct spin_wait){0};
	if (!spin->limit)
		return;
	wait->start = time_now();
	if (spin->typical <= spin->limit) {
		if (!has_lesson(spin))
			wait->until = wait->start + spin->limit;
	} else if (++spin->sleeps >= PROBE_EVERY) {
		spin->sleeps = 0;
		/* Longer than the limit, which may be too low yet. */
		wait->until =
		    wait->start + (spin->is_set ? spin->limit : 2 * (uint64_t)spin->limit);
	}
}

bool spin_turn(struct spin_wait *wait)
{
	if (!wait->until)
		return false;
	relax();
	return ++wait->turns % TURNS_PER_CLOCK || time_now() < wait->until;
}

static void gather_pause(void)
{
	int turn;

	for (turn = 0; turn < GATHER_TURNS; turn++)
		relax();
}

bool spin_gather_begin(struct spin *spin, struct spin_gather *gather, uint32_t seen)
{
	if (spin->gather_pause) {
		spin->gather_pause--;
		return false;
	}
	*gather = (struct spin_gather){.until = time_now() + spin->limit, .seen = seen};
	gather_pause();
	return true;
}

bool spin_gather_turn(struct spin *spin, struct spin_gather *gather, uint32_t seen)
{
	if (seen > gather->seen) {
		gather->seen = seen;
		gather->grew = true;
		if (time_now() < gather->until) {
			gather_pause();
			return true;
		}
	}
	if (gather->grew) {
		spin->gather_penalty = 0;
	} else {
		if (spin->gather_penalty < GATHER_PENALTY_MAX)
			spin->gather_penalty = 2 * spin->gather_penalty + 1;
		spin->gather_pause = spin->gather_penalty;
	}
	return false;
}

static void average(uint32_t *of, uint64_t value, uint64_t most)
{
	if (value > most)
		value = most;
	*of = (uint32_t)((7 * (uint64_t)*of + value) / 8);
}

/* The same, where 0 is no average yet. */
static void average_from_first(uint32_t *of, uint64_t value, uint64_t most)
{
	if (!*of)
		*of = (uint32_t)(value < most ? value : most);
	average(of, value, most);
}

/* Learn what a sleep costs of two waits alike, one of which slept. */
static void learn_cost(struct spin *spin, uint64_t slept, uint64_t spun)
{
	uint32_t step = spin->cost / LESSON_STEP;

	if (slept > spun + spin->cost && spin->cost + step <= MOST_COST)
		spin->cost += step;
	else if (slept < spun + spin->cost && spin->cost - step >= LEAST_COST)
		spin->cost -= step;
	if (!spin->is_set)
		spin->limit = spin->cost;
}

void spin_end(struct spin *spin, const struct spin_wait *wait, bool slept)
{
	const bool had_spun = wait->until != 0, was_long = spin->typical > spin->limit;
	uint64_t took, most = 4 * (uint64_t)spin->limit;

	if (!spin->limit)
		return;
	took = time_now() - wait->start;
	if (!slept) {
		if (was_long && spin->slept)
			learn_cost(spin, spin->slept, took);
		average_from_first(&spin->spun, took, most);
	} else {
		if (!had_spun && !was_long && spin->spun)
			learn_cost(spin, took, spin->spun);
		if (!had_spun)
			average_from_first(&spin->slept, took, most + spin->cost);
		/* It would have come without a wake-up, too; but not while we looked. */
		took = took > spin->cost ? took - spin->cost : 0;
		if (had_spun && took < spin->limit)
			took = spin->limit;
	}
	average(&spin->typical, took, most);
	if (!slept && spin->typical > spin->limit && took < spin->limit)
		spin->typical = spin->limit; /* this probe paid off: try again next time */
}
