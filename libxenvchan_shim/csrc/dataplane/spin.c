/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "dataplane/spin.h"

#include <sched.h>
#include <stdlib.h>
#include <time.h>

/* Roughly the cost of a sleep and a wake-up in a virtual machine. */
#define DEFAULT_LIMIT_US 50
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

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

void spin_init(struct spin *spin)
{
	const char *setting = secure_getenv("KVMCHAN_SPIN_US");
	unsigned long limit = DEFAULT_LIMIT_US;
	cpu_set_t cpus;

	if (setting && *setting >= '0' && *setting <= '9') {
		char *end;
		unsigned long value = strtoul(setting, &end, 10);

		if (*end == '\0')
			limit = value < MAX_LIMIT_US ? value : MAX_LIMIT_US;
	}
	if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0 && CPU_COUNT(&cpus) == 1)
		limit = 0;
	*spin = (struct spin){.limit = (uint32_t)limit * 1000};
}

void spin_begin(struct spin *spin, struct spin_wait *wait)
{
	*wait = (struct spin_wait){0};
	if (!spin->limit)
		return;
	wait->start = now();
	if (spin->typical <= spin->limit || ++spin->sleeps >= PROBE_EVERY) {
		spin->sleeps = 0;
		wait->until = wait->start + spin->limit;
	}
}

bool spin_turn(struct spin_wait *wait)
{
	if (!wait->until)
		return false;
	relax();
	return ++wait->turns % TURNS_PER_CLOCK || now() < wait->until;
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
	*gather = (struct spin_gather){.until = now() + spin->limit, .seen = seen};
	gather_pause();
	return true;
}

bool spin_gather_turn(struct spin *spin, struct spin_gather *gather, uint32_t seen)
{
	if (seen > gather->seen) {
		gather->seen = seen;
		gather->grew = true;
		if (now() < gather->until) {
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

void spin_end(struct spin *spin, const struct spin_wait *wait, bool slept)
{
	uint64_t took, most = 4 * (uint64_t)spin->limit;

	if (!spin->limit)
		return;
	took = now() - wait->start;
	/* A sleep without a spin before it measures the wake-up too, so it does not show that waits
	 * are short. */
	if (slept && took < most && !wait->until)
		took = spin->typical;
	if (took > most)
		took = most;
	spin->typical = (uint32_t)((7 * (uint64_t)spin->typical + took) / 8);
	if (!slept && spin->typical > spin->limit && took < spin->limit)
		spin->typical = spin->limit; /* this probe paid off: try again next time */
}
