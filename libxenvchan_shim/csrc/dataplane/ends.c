/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "dataplane/ends.h"

#include <pthread.h>

#include "ring/atomics.h"

/* A process may hold several of our libraries, but has one table: "unique" makes the dynamic linker
 * give all of them the same, however they were loaded. */
__attribute__((visibility("default"))) struct {
	pthread_mutex_t lock;
	bool follows_forks;
	struct listed_end *first;
} kvmchan_ends = {.lock = PTHREAD_MUTEX_INITIALIZER};
__asm__(".type kvmchan_ends, %gnu_unique_object");

static void lock(void) { pthread_mutex_lock(&kvmchan_ends.lock); }

static void unlock(void) { pthread_mutex_unlock(&kvmchan_ends.lock); }

void ends_add(struct listed_end *end)
{
	lock();
	/* So that a forked child finds the table whole, and the lock free. */
	if (!kvmchan_ends.follows_forks)
		kvmchan_ends.follows_forks = pthread_atfork(lock, unlock, unlock) == 0;
	end->next = kvmchan_ends.first;
	kvmchan_ends.first = end;
	unlock();
}

void ends_remove(struct listed_end *end)
{
	struct listed_end **link;

	lock();
	for (link = &kvmchan_ends.first; *link && *link != end; link = &(*link)->next)
		;
	if (*link)
		*link = end->next;
	unlock();
}

bool ends_find(uint32_t port, int32_t *peer, bool *is_there)
{
	struct listed_end *end;
	uint8_t state;

	lock();
	for (end = kvmchan_ends.first; end && end->port != port; end = end->next)
		;
	if (end) {
		*peer = end->peer;
		state = shared_live(end->peer_live);
		*is_there = state && state != end->waiting;
	}
	unlock();
	return end;
}
