/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One direction of an end in use: who may, how much there is, and the wait for more.
 *
 * What a call does first is inline. All that return an int return -1 with errno and the sentence.
 */
#ifndef KVMCHAN_WAY_H
#define KVMCHAN_WAY_H

#include <errno.h>
#include <limits.h>

#include "dataplane/end.h"
#include "dataplane/error.h"
#include "dataplane/move.h"
#include "ring/atomics.h"

int fail_closed(void);
int fail_interrupted(void);
/* Fail because the peer broke the rules. From now on we are gone to it, and tell it once. */
int fail_broken(struct vchan *v);

static inline int vchan_is_open(struct vchan *v)
{
	enum state state = vchan_state(v);
	uint8_t peer;

	if (state != USABLE)
		return state == OFFERED ? offered_is_open(v) : 0;
	if (!v->ctrl.is_server)
		return shared_live(v->peer_live) != 0;
	if (v->ctrl.server_persist)
		return 1;
	peer = shared_live(v->peer_live);
	return peer > 2 ? 1 : peer;
}

/* Look at a direction: ring_look(). */
static inline uint32_t way_look(struct vchan *v, struct way *way)
{
	return vchan_state(v) == OFFERED ? offered_look(v, way) : ring_look(&way->ring);
}

/*
 * Close the channel for us, because no event can come any more. The peer may still be there for
 * others, so its live byte stays as it is.
 */
static inline void vchan_lose(struct vchan *v)
{
	enum state usable = USABLE;

	vchan_stay(v);
	atomic_compare_exchange_strong(&v->state, &usable, LOST);
}

/* Send the peer an event if it asked for one. After shared_publish(). */
static inline void tell_peer(struct vchan *v, uint8_t bit)
{
	if ((shared_requested(v->asked) & bit) && shared_take_request(v->asked, bit))
		event_send(&v->event);
}

/* How far a call goes to get what it wants. */
enum effort {
	TRY, /* looks */
	ASK, /* and asks for an event if it falls short */
	WAIT,
	WAIT_IN_TURNS, /* and fails with EINTR after many vain events, so that the caller may look
			* at what signals have left for it */
};

static inline enum effort effort_of(const struct vchan *v) { return v->ctrl.blocking ? WAIT : ASK; }

/*
 * Begin a call that uses one direction. Fails with EBUSY if another thread is in one, which is seen
 * for certain if that thread waits. That thread may have left by a jump: it still counts, until its
 * next call.
 */
static inline int way_enter(struct way *way)
{
	pthread_t self = pthread_self();
	pthread_t user = atomic_load_explicit(&way->user, memory_order_relaxed);

	if (user && user != self)
		return fail(EBUSY,
			    "another thread is in a call that %s this vchan: one may read, and one "
			    "write",
			    way->ring.produces ? "writes to" : "reads from");
	atomic_store_explicit(&way->user, self, memory_order_relaxed);
	return 0;
}

/* End it. Returns @result. */
static inline int way_leave(struct way *way, int result)
{
	atomic_store_explicit(&way->user, 0, memory_order_release);
	return result;
}

/* Begin a call about @size bytes. */
static inline int call_begin(struct vchan *v, struct way *way, size_t size)
{
	if (vchan_state(v) == BROKEN)
		return fail_broken(v);
	if (size > INT_MAX)
		return fail(EINVAL, "%zu bytes are too many for one call: it returns an int", size);
	return way_enter(way);
}

/* Ask the peer for an event when this direction changes. */
void way_ask(struct vchan *v, struct way *way);
/*
 * Return how much @way has for a call that wants @want bytes; RING_BROKEN if the peer broke the
 * rules. If it has too little, ask for an event and look again, because the change may have come
 * before the peer could see the request.
 */
uint32_t way_available(struct vchan *v, struct way *way, size_t want);

/* Return how much of @most bytes there is to read, once that is at least @least; 0 if the call is
 * not to wait for that; or -1. */
int way_readable(struct vchan *v, uint32_t least, uint32_t most, enum effort effort,
		 uint64_t deadline);
/* Return how much room there is to write, once that is at least @least; 0 if the call is not to
 * wait for that; or -1. */
int way_writable(struct vchan *v, size_t least, enum effort effort, uint64_t deadline);
/* Wait as the others, for @want bytes in either. Returns 0 to look again. */
int way_wait(struct vchan *v, struct way *way, uint32_t want, enum effort effort,
	     uint64_t deadline);

#endif
