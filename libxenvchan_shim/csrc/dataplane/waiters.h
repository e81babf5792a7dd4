/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The threads of one end that wait for its events.
 *
 * All events come through one descriptor, and one thread's event must not be lost to another. So
 * one thread, the first, waits on the descriptor; the others wait for the first, and look at what
 * they wait for whenever it took an event. When it leaves, another becomes the first.
 */
#ifndef KVMCHAN_WAITERS_H
#define KVMCHAN_WAITERS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "ring/clock.h"

struct waiters {
	_Atomic uint32_t events;  /* taken so far */
	_Atomic uint32_t changes; /* a futex: of events, and of who is the first */
	_Atomic pthread_t first;  /* 0: none */
	_Atomic uint32_t others;  /* how many wait for the first */
};

/* Return how many events were taken. A thread reads it before it looks at what it waits for. */
static inline uint32_t waiters_events(const struct waiters *waiters)
{
	return atomic_load(&waiters->events);
}

/* Become the first. Returns false if another thread is. A thread that left a wait by a jump is
 * still the first, until its next. */
bool waiters_lead(struct waiters *waiters);
/* Cease to be the first, and wake the others. @took: an event, or the end of all events. */
void waiters_leave(struct waiters *waiters, bool took);

enum waiters_result {
	WAITERS_LOOK, /* something changed */
	WAITERS_INTERRUPTED,
	WAITERS_LATE,
};

/* Wait until something has changed since @changes was read, at most until @deadline (see clock.h).
 */
enum waiters_result waiters_follow(struct waiters *waiters, uint32_t changes, uint64_t deadline);
/* Have all threads look. */
void waiters_stir(struct waiters *waiters);

#endif
