/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The calls that move data and wait, on an attached end. */
#include "dataplane/vchan.h"

#include <errno.h>
#include <limits.h>

#include "dataplane/atomics.h"
#include "dataplane/end.h"
#include "dataplane/error.h"
#include "dataplane/ring.h"
#include "dataplane/spin.h"

/* ---- states and events ---- */

static int fail_closed(void)
{
	return fail(EPIPE, "the channel is closed: its other end has gone");
}

static int fail_interrupted(void) { return fail(EINTR, "a signal ended the wait"); }

static int fail_size(size_t size, const struct ring *ring)
{
	return fail(EMSGSIZE, "%zu bytes never fit at once in a ring of %u: use read or write",
		    size, ring->size);
}

/* Fail because the peer broke the rules. From now on we are gone to it, and tell it once. */
static int fail_broken(struct vchan *v)
{
	if (atomic_exchange(&v->state, BROKEN) != BROKEN) {
		shared_set_live(v->own_live, 0);
		event_send(&v->event);
	}
	return fail(EPROTO, "the peer broke the ring's rules: close the channel");
}

static int vchan_is_open(struct vchan *v)
{
	uint8_t peer;

	if (atomic_load_explicit(&v->state, memory_order_relaxed) != USABLE)
		return 0;
	if (!v->ctrl.is_server)
		return shared_live(v->peer_live) != 0;
	if (v->ctrl.server_persist)
		return 1;
	peer = shared_live(v->peer_live);
	return peer > 2 ? 1 : peer;
}

/* Send the peer an event if it asked for one. After shared_publish(). */
static void tell_peer(struct vchan *v, uint8_t bit)
{
	if ((shared_requested(v->asked) & bit) && shared_take_request(v->asked, bit))
		event_send(&v->event);
}

/*
 * Close the channel for us, because no event can come any more. The peer may still be there for
 * others, so its live byte stays as it is.
 */
static void vchan_lose(struct vchan *v)
{
	enum state usable = USABLE;

	atomic_compare_exchange_strong(&v->state, &usable, LOST);
}

/* Ask the peer for an event. */
static void vchan_ask(struct vchan *v, uint8_t bit)
{
	vchan_show(v);
	shared_request(v->ask, bit);
}

/*
 * Return how much @ring has for a call that wants @want bytes; RING_BROKEN if the peer broke the
 * rules. If it has too little, ask for an event and look again, because the change may have come
 * before the peer could see the request.
 */
static uint32_t ring_available(struct vchan *v, struct ring *ring, size_t want)
{
	uint32_t available = ring_known(ring);

	if (want <= available)
		return available;
	available = ring_look(ring);
	if (want <= available) /* also when broken, as that is the largest number */
		return available;
	vchan_ask(v, ring->produces ? VCHAN_NOTIFY_READ : VCHAN_NOTIFY_WRITE);
	return ring_look(ring);
}

/* Let more than the @available bytes gather in @ring while the peer adds some: see spin.h. */
static void ring_gather(struct ring *ring, struct spin *spin, uint32_t available)
{
	struct spin_gather gather;

	if (available >= ring->size / 4 || !spin_gather_begin(spin, &gather, available))
		return;
	do {
		available = ring_look(ring);
	} while (available < ring->size / 4 && spin_gather_turn(spin, &gather, available));
}

/*
 * Block until @ring has @want bytes, the peer has gone or broke the rules, or a signal came.
 * Returns 0 to look again, or -1. Spins first if that pays off: a spin asks for no event, and so
 * spares both ends a system call.
 */
static int ring_wait(struct vchan *v, struct ring *ring, struct spin *spin, uint32_t want)
{
	enum event_result result;
	struct spin_wait wait;
	uint32_t available;
	bool slept = false;

	spin_begin(spin, &wait);
	while (spin_turn(&wait)) {
		available = ring_look(ring);
		if (available >= want || !vchan_is_open(v)) {
			spin_end(spin, &wait, false);
			ring_gather(ring, spin, available);
			return 0;
		}
	}
	for (;;) {
		if (ring_available(v, ring, want) >= want || !vchan_is_open(v)) {
			spin_end(spin, &wait, slept);
			return 0;
		}
		slept = true;
		result = event_wait(&v->event);
		if (result == EVENT_INTERRUPTED)
			return fail_interrupted();
		if (result == EVENT_LOST || result == EVENT_LAST)
			vchan_lose(v); /* and look again: it may have written last */
	}
}

/* ---- the calls ---- */

static int check_call(struct vchan *v, size_t size)
{
	if (atomic_load_explicit(&v->state, memory_order_relaxed) == BROKEN)
		return fail_broken(v);
	if (size > INT_MAX)
		return fail(EINVAL, "%zu bytes are too many for one call: it returns an int", size);
	return 0;
}

static int take(struct vchan *v, void *data, uint32_t count)
{
	ring_get(&v->in, data, count);
	tell_peer(v, VCHAN_NOTIFY_READ);
	return (int)count;
}

static int put(struct vchan *v, const void *data, uint32_t count)
{
	ring_put(&v->out, data, count);
	tell_peer(v, VCHAN_NOTIFY_WRITE);
	return (int)count;
}

/* Take between @least and @most bytes, for recv and read. As on Xen, taking none also counts as
 * having read. */
static int receive(struct vchan *v, void *data, uint32_t least, uint32_t most)
{
	for (;;) {
		uint32_t available = ring_known(&v->in);
		int open = 1;

		if (available < most) {
			/* Before the look, so that what was written before a close is seen. */
			open = vchan_is_open(v);
			/* A call that is about to wait asks for no event yet: spinning may do. */
			if (!open || !v->ctrl.blocking || least > v->in.size ||
			    (available = ring_look(&v->in)) >= least)
				available = ring_available(v, &v->in, most);
			if (available == RING_BROKEN)
				return fail_broken(v);
		}
		if (available >= least)
			return take(v, data, most < available ? most : available);
		if (!open)
			return fail_closed();
		if (!v->ctrl.blocking)
			return 0;
		if (least > v->in.size)
			return fail_size(least, &v->in);
		if (ring_wait(v, &v->in, &v->spin_in, least) < 0)
			return -1;
	}
}

int libxenvchan_recv(struct libxenvchan *ctrl, void *data, size_t size)
{
	struct vchan *v = vchan_of(ctrl);

	if (check_call(v, size) < 0)
		return -1;
	return receive(v, data, (uint32_t)size, (uint32_t)size);
}

int libxenvchan_read(struct libxenvchan *ctrl, void *data, size_t size)
{
	struct vchan *v = vchan_of(ctrl);

	if (check_call(v, size) < 0)
		return -1;
	if (size == 0 && ring_look(&v->in) == 0)
		return vchan_is_open(v) ? 0 : fail_closed();
	return receive(v, data, size ? 1 : 0, (uint32_t)size);
}

int kvmchan_peek(struct libxenvchan *ctrl, void *data, size_t size)
{
	struct vchan *v = vchan_of(ctrl);
	uint32_t available;

	if (check_call(v, size) < 0)
		return -1;
	available = ring_available(v, &v->in, size);
	if (available == RING_BROKEN)
		return fail_broken(v);
	if (available < size)
		return 0;
	ring_peek(&v->in, data, (uint32_t)size);
	return (int)size;
}

int libxenvchan_send(struct libxenvchan *ctrl, const void *data, size_t size)
{
	struct vchan *v = vchan_of(ctrl);

	if (check_call(v, size) < 0)
		return -1;
	for (;;) {
		uint32_t available = ring_known(&v->out);

		if (!vchan_is_open(v))
			return fail_closed();
		if (available < size)
			available = v->ctrl.blocking && size <= v->out.size
					? ring_look(&v->out)
					: ring_available(v, &v->out, size);
		if (available == RING_BROKEN)
			return fail_broken(v);
		if (size <= available)
			return put(v, data, (uint32_t)size);
		if (!v->ctrl.blocking)
			return 0;
		if (size > v->out.size)
			return fail_size(size, &v->out);
		if (ring_wait(v, &v->out, &v->spin_out, (uint32_t)size) < 0)
			return -1;
	}
}

int libxenvchan_write(struct libxenvchan *ctrl, const void *data, size_t size)
{
	struct vchan *v = vchan_of(ctrl);
	uint32_t done = 0, left;

	if (check_call(v, size) < 0)
		return -1;
	for (;;) {
		uint32_t available = ring_known(&v->out);

		if (!vchan_is_open(v))
			return fail_closed();
		left = (uint32_t)size - done;
		if (available < left)
			available = v->ctrl.blocking ? ring_look(&v->out)
						     : ring_available(v, &v->out, left);
		if (available == RING_BROKEN)
			return fail_broken(v);
		if (available > left)
			available = left;
		if (available)
			done += (uint32_t)put(v, (const uint8_t *)data + done, available);
		if (done == size || !v->ctrl.blocking)
			return (int)done;
		if (ring_wait(v, &v->out, &v->spin_out, 1) < 0)
			return -1;
	}
}

int libxenvchan_wait(struct libxenvchan *ctrl)
{
	struct vchan *v = vchan_of(ctrl);
	enum event_result result = EVENT_NONE;
	struct spin_wait wait;

	if (check_call(v, 0) < 0)
		return -1;
	spin_begin(&v->spin_in, &wait);
	if (wait.until)
		result = event_try(&v->event);
	if (result == EVENT_NONE) {
		uint8_t asked = shared_requested(v->ask), peer = shared_live(v->peer_live);
		bool slept = true;

		/* The peer clears a bit just before it sends the event. */
		while (slept && spin_turn(&wait))
			slept =
			    shared_requested(v->ask) == asked && shared_live(v->peer_live) == peer;
		result = event_wait(&v->event);
		spin_end(&v->spin_in, &wait, slept);
	}
	if (result == EVENT_TAKEN)
		return 0;
	if (result == EVENT_INTERRUPTED)
		return fail_interrupted();
	vchan_lose(v);
	return result == EVENT_LAST ? 0 : fail_closed();
}

int libxenvchan_fd_for_select(struct libxenvchan *ctrl) { return vchan_of(ctrl)->event.fd; }

int libxenvchan_is_open(struct libxenvchan *ctrl) { return vchan_is_open(vchan_of(ctrl)); }

/* Ask for an event at the next change, then look. An impossible index counts as nothing. */
static int ring_ask(struct vchan *v, struct ring *ring, uint8_t bit)
{
	uint32_t available;

	vchan_ask(v, bit);
	available = ring_look(ring);
	return available == RING_BROKEN ? 0 : (int)available;
}

int libxenvchan_data_ready(struct libxenvchan *ctrl)
{
	struct vchan *v = vchan_of(ctrl);

	return ring_ask(v, &v->in, VCHAN_NOTIFY_WRITE);
}

int libxenvchan_buffer_space(struct libxenvchan *ctrl)
{
	struct vchan *v = vchan_of(ctrl);

	return ring_ask(v, &v->out, VCHAN_NOTIFY_READ);
}
