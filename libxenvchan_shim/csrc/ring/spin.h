/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How long a wait looks at memory before it sleeps.
 *
 * To sleep and be woken costs tens of microseconds, so a wait that is usually shorter should spin.
 * Each wait teaches how long waits take here. If they are long, only an occasional one spins, to
 * find out whether that has changed.
 *
 * What a sleep costs is learned, too: by so much a wait that slept took longer than its like that
 * spun. A wait that spins for just that time, and then sleeps, costs at most twice the best choice.
 */
#ifndef KVMCHAN_SPIN_H
#define KVMCHAN_SPIN_H

#include <stdbool.h>
#include <stdint.h>

struct spin {
	uint32_t limit;	  /* ns that a wait spins at most; 0: never */
	uint32_t cost;	  /* ns of a sleep and a wake-up */
	bool is_set;	  /* the limit, by KVMCHAN_SPIN_US; or it is the cost */
	uint32_t typical; /* ns until what is waited for comes, averaged; at most 4 * limit */
	uint32_t sleeps;  /* waits that slept at once since one spun to see */
	uint32_t spins;	  /* waits that spun since one slept to learn what that costs */
	uint32_t lesson;  /* spins until one does */
	/* ns that the last waits took, averaged, which spun or slept at once; 0 if none did. */
	uint32_t spun, slept;
	/* Waits until one may gather again, and how many the next vain attempt makes it. */
	uint32_t gather_pause, gather_penalty;
};

/* One wait, from the first look to the last. */
struct spin_wait {
	uint64_t start; /* ns, CLOCK_MONOTONIC */
	uint64_t until;
	uint32_t turns;
};

/* Read KVMCHAN_SPIN_US, a limit instead of the learned one. A process that may run on one processor
 * only never spins. */
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
