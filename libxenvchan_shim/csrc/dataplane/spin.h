/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How long a wait looks at memory before it sleeps.
 *
 * To sleep and be woken costs tens of microseconds, so a wait that is usually shorter should spin.
 * Each wait teaches how long waits take here. If they are long, only an occasional one spins, to
 * find out whether that has changed.
 */
#ifndef KVMCHAN_SPIN_H
#define KVMCHAN_SPIN_H

#include <stdbool.h>
#include <stdint.h>

struct spin {
	uint32_t limit;	  /* ns, 0: never spin */
	uint32_t typical; /* ns that a wait takes, averaged; at most 4 * limit */
	uint32_t sleeps;  /* waits that did not spin since one last did */
	/* Waits until one may gather again, and how many the next vain attempt makes it. */
	uint32_t gather_pause, gather_penalty;
};

/* One wait, from the first look to the last. */
struct spin_wait {
	uint64_t start; /* ns, CLOCK_MONOTONIC */
	uint64_t until;
	uint32_t turns;
};

/* Read KVMCHAN_SPIN_US. A process that may run on one processor only never spins. */
void spin_init(struct spin *spin);
/* Begin a wait. */
void spin_begin(struct spin *spin, struct spin_wait *wait);
/* Pause between two looks. Returns false when it is time to sleep. */
bool spin_turn(struct spin_wait *wait);
/*
 * The main cost of a stream's small calls is that each of them takes the shared page's cache line
 * from the other end. So a spinning end that has what it waited for lets a batch gather first,
 * while its peer goes on. If none gathers, as between requests and answers, it soon stops trying.
 */
struct spin_gather {
	uint64_t until;
	uint32_t seen;
	bool grew;
};
/* Return whether to gather now, with @seen bytes there. */
bool spin_gather_begin(struct spin *spin, struct spin_gather *gather, uint32_t seen);
/* Pause, and return whether to look once more. */
bool spin_gather_turn(struct spin *spin, struct spin_gather *gather, uint32_t seen);
/* Learn from a wait that is over: it spun, or it slept if @slept. */
void spin_end(struct spin *spin, const struct spin_wait *wait, bool slept);

#endif
