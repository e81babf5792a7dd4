/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How long a wait looks at memory before it sleeps.
 *
 * Sleeping and being woken costs tens of microseconds, so a wait that is usually shorter than that
 * had better spin. Each wait teaches how long waits take here; where they are long, none spins but
 * an occasional one that asks whether that has changed.
 */
#ifndef KVMCHAN_SPIN_H
#define KVMCHAN_SPIN_H

#include <stdbool.h>
#include <stdint.h>

struct spin {
	uint32_t limit;	  /* ns, 0: never spin */
	uint32_t typical; /* ns a wait takes, averaged; at most 4 * limit */
	uint32_t sleeps;  /* waits that did not spin since one last did */
	/* Waits that shall not gather, and how many the next vain one makes of it. */
	uint32_t gather_pause, gather_penalty;
};

/* One wait, from the first look to the last. */
struct spin_wait {
	uint64_t start; /* ns, CLOCK_MONOTONIC */
	uint64_t until;
	uint32_t turns;
};

/* Reads KVMCHAN_SPIN_US; a process that may run on one processor only never spins. */
void spin_init(struct spin *spin);
void spin_begin(struct spin *spin, struct spin_wait *wait);
/* One look's pause: false when it is time to sleep. */
bool spin_turn(struct spin_wait *wait);
/*
 * Small calls of a stream cost most by the two ends taking the shared page's cache line from each
 * other at every one of them. So a spinning end that has what it waited for, while its peer goes
 * on, lets a batch gather first. Where none gathers, as between requests and answers, this soon
 * stops trying.
 */
struct spin_gather {
	uint64_t until;
	uint32_t seen;
	bool grew;
};
/* Whether to gather now, with @seen bytes there. */
bool spin_gather_begin(struct spin *spin, struct spin_gather *gather, uint32_t seen);
/* A pause, and whether to look once more. */
bool spin_gather_turn(struct spin *spin, struct spin_gather *gather, uint32_t seen);
/* The wait is over, met by spinning or, if @slept, after a sleep. */
void spin_end(struct spin *spin, const struct spin_wait *wait, bool slept);

#endif
