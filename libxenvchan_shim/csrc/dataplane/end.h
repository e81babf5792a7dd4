/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One end of a vchan, as attach.c makes it and vchan.c uses it. */
#ifndef KVMCHAN_END_H
#define KVMCHAN_END_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "dataplane/ends.h"
#include "dataplane/event.h"
#include "dataplane/vchan.h"
#include "ring/atomics.h"
#include "ring/ring.h"
#include "ring/spin.h"

enum state {
	USABLE,
	LOST,	/* no event can come: peer and daemon are gone, the peer shut the way, or we did */
	BROKEN, /* the peer broke the ring's rules */
	/* Usable, and may move: a server's end in a guest that has seen no client (move.h) */
	OFFERED,
};

/* Two threads that use one end shall not use one cache line. */
#define LINE 64

/* One direction: one thread at a time uses it. */
struct way {
	_Alignas(LINE) struct ring ring;
	struct spin spin;
	uint32_t *shown;	/* where the page shows our index */
	uint8_t asks;		/* the event that tells of a change: VCHAN_NOTIFY_ */
	_Atomic pthread_t user; /* the thread that is in a call; 0: none */
};

/* What libxenvchan.h shows, and behind it what a program can not reach through that header. */
struct vchan {
	struct libxenvchan ctrl;
	struct way in, out;
	struct spin spin; /* libxenvchan_wait()'s */
	struct vchan_interface *page;
	size_t size; /* of the mapping */
	uint8_t *own_live;
	uint8_t *peer_live;
	uint8_t *ask;	/* where we ask the peer for events */
	uint8_t *asked; /* where the peer asks us */
	struct listed_end listed;
	_Atomic enum state state;
	pthread_mutex_t moving; /* held to move, and to leave OFFERED */
	_Atomic uint32_t moves;
	_Alignas(LINE) struct event event;
};

static inline struct vchan *vchan_of(struct libxenvchan *ctrl) { return (struct vchan *)ctrl; }

/* Bring the index that the page shows up to date. Call it only when its cache line is ours anyway,
 * or our end closes. */
static inline void way_show(const struct way *way) { shared_show(way->shown, way->ring.own); }

static inline enum state vchan_state(const struct vchan *v)
{
	return atomic_load_explicit(&v->state, memory_order_relaxed);
}

#endif
