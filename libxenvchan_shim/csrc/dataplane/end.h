/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One end of a vchan, as attach.c makes it and vchan.c uses it. */
#ifndef KVMCHAN_END_H
#define KVMCHAN_END_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "dataplane/atomics.h"
#include "dataplane/ends.h"
#include "dataplane/event.h"
#include "dataplane/ring.h"
#include "dataplane/spin.h"
#include "dataplane/vchan.h"

enum state {
	USABLE,
	LOST,	/* no event can come: peer and daemon are gone, or the peer shut the way */
	BROKEN, /* the peer broke the ring's rules */
};

/* What libxenvchan.h shows, and behind it what a program can not reach through that header. */
struct vchan {
	struct libxenvchan ctrl;
	struct ring in, out;
	struct spin spin_in, spin_out;
	struct vchan_interface *page;
	size_t size; /* of the mapping */
	struct event event;
	_Atomic enum state state;
	uint8_t *own_live;
	uint8_t *peer_live;
	uint8_t *ask;			/* where we ask the peer for events */
	uint8_t *asked;			/* where the peer asks us */
	uint32_t *shown_in, *shown_out; /* where the page shows our indexes */
	struct listed_end listed;
};

static inline struct vchan *vchan_of(struct libxenvchan *ctrl) { return (struct vchan *)ctrl; }

/* Bring the indexes that the page shows up to date. Call it only when its cache line is ours
 * anyway, or our end closes. */
static inline void vchan_show(struct vchan *v)
{
	shared_show(v->shown_in, v->in.own);
	shared_show(v->shown_out, v->out.own);
}

#endif
