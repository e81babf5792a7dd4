/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "dataplane/way.h"

#include "ring/ring.h"
#include "ring/spin.h"

/* Events that bring nothing, after which a wait in turns is over. */
#define VAIN_MAX 256

int fail_closed(void) { return fail(EPIPE, "the channel is closed: its other end has gone"); }

int fail_interrupted(void) { return fail(EINTR, "a signal ended the wait"); }

static int fail_late(void) { return fail(ETIMEDOUT, "the wait has timed out"); }

static int fail_size(size_t size, const struct ring *ring)
{
	return fail(EMSGSIZE, "%zu bytes never fit at once in a ring of %u: move them in pieces",
		    size, ring->size);
}

int fail_broken(struct vchan *v)
{
	if (atomic_exchange(&v->state, BROKEN) != BROKEN) {
		shared_set_live(v->own_live, 0);
		event_send(&v->event);
	}
	return fail(EPROTO, "the peer broke the ring's rules: close the channel");
}

static void leave_cancelled(void *way) { way_leave(way, -1); }

/* ---- waiting ---- */

void way_ask(struct vchan *v, struct way *way)
{
	way_show(way);
	shared_request(v->ask, way->asks);
}

uint32_t way_available(struct vchan *v, struct way *way, size_t want)
{
	uint32_t available = ring_known(&way->ring);

	if (want <= available)
		return available;
	available = way_look(v, way);
	if (want <= available) /* also when broken, as that is the largest number */
		return available;
	way_ask(v, way);
	return way_look(v, way);
}

/* Let more than the @available bytes gather while the peer adds some: see spin.h. */
static void way_gather(struct vchan *v, struct way *way, uint32_t available)
{
	struct spin_gather gather;
	uint32_t enough = way->ring.size / 4;

	if (available >= enough || !spin_gather_begin(&way->spin, &gather, available))
		return;
	do {
		available = way_look(v, way);
	} while (available < enough && spin_gather_turn(&way->spin, &gather, available));
}

/* Sleep until there is an event. A cancelled thread leaves the direction to others. */
static enum event_result way_sleep(struct vchan *v, struct way *way, uint32_t count,
				   uint64_t deadline)
{
	enum event_result result;

	pthread_cleanup_push(leave_cancelled, way);
	result = event_wait(&v->event, count, deadline);
	pthread_cleanup_pop(0);
	return result;
}

/*
 * Block until @way has @want bytes, the peer has gone or broke the rules, @deadline has passed, or
 * a signal came. Returns 0 to look again, or -1. Spins first if that pays off: a spin asks for no
 * event, and so spares both ends a system call.
 */
int way_wait(struct vchan *v, struct way *way, uint32_t want, enum effort effort, uint64_t deadline)
{
	unsigned int vain = 0;
	struct spin_wait wait;
	uint32_t available;
	bool slept = false;

	spin_begin(&way->spin, &wait);
	if (wait.until > deadline)
		wait.until = deadline;
	while (spin_turn(&wait)) {
		available = way_look(v, way);
		if (available >= want || !vchan_is_open(v)) {
			spin_end(&way->spin, &wait, false);
			way_gather(v, way, available);
			return 0;
		}
	}
	for (;;) {
		uint32_t count = event_count(&v->event);

		if (way_available(v, way, want) >= want || !vchan_is_open(v)) {
			spin_end(&way->spin, &wait, slept);
			return 0;
		}
		/* Events that bring nothing shall not keep us. */
		if (slept && has_passed(deadline))
			return fail_late();
		slept = true;
		switch (way_sleep(v, way, count, deadline)) {
		case EVENT_TAKEN:
			if (effort == WAIT_IN_TURNS && ++vain == VAIN_MAX)
				return fail_interrupted();
			break;
		case EVENT_NONE:
			return fail_late();
		case EVENT_INTERRUPTED:
			return fail_interrupted();
		case EVENT_LOST:
		case EVENT_LAST:
			vchan_lose(v); /* and look again: it may have written last */
		}
	}
}

/* ---- what there is ---- */

int way_readable(struct vchan *v, uint32_t least, uint32_t most, enum effort effort,
		 uint64_t deadline)
{
	struct way *in = &v->in;

	for (;;) {
		uint32_t available = ring_known(&in->ring);
		int open = 1;

		if (available < most) {
			/* Before the look, so that what was written before a close is seen. */
			open = vchan_is_open(v);
			/* A call that is about to wait asks for no event yet: spinning may do. */
			if (effort == TRY)
				available = way_look(v, in);
			else if (!open || effort == ASK || least > in->ring.size ||
				 (available = way_look(v, in)) >= least)
				available = way_available(v, in, most);
			if (available == RING_BROKEN)
				return fail_broken(v);
		}
		if (available >= least)
			return (int)(most < available ? most : available);
		if (!open)
			return fail_closed();
		if (effort < WAIT)
			return 0;
		if (least > in->ring.size)
			return fail_size(least, &in->ring);
		if (way_wait(v, in, least, effort, deadline) < 0)
			return -1;
	}
}

int way_writable(struct vchan *v, size_t least, enum effort effort, uint64_t deadline)
{
	struct way *out = &v->out;

	for (;;) {
		uint32_t available = ring_known(&out->ring);

		if (!vchan_is_open(v))
			return fail_closed();
		if (available < least)
			available = effort == TRY || (effort >= WAIT && least <= out->ring.size)
					? way_look(v, out)
					: way_available(v, out, least);
		if (available == RING_BROKEN)
			return fail_broken(v);
		if (least <= available)
			return (int)available;
		if (effort < WAIT)
			return 0;
		if (least > out->ring.size)
			return fail_size(least, &out->ring);
		if (way_wait(v, out, (uint32_t)least, effort, deadline) < 0)
			return -1;
	}
}
