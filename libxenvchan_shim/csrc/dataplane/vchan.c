/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The calls of libxenvchan.h that move data and wait, on an attached end. */
#include "dataplane/vchan.h"

#include <errno.h>

#include "dataplane/way.h"
#include "ring/ring.h"
#include "ring/spin.h"

/* ---- reading ---- */

static int take(struct vchan *v, void *data, uint32_t count)
{
	ring_get(&v->in.ring, data, count);
	tell_peer(v, VCHAN_NOTIFY_READ);
	return (int)count;
}

/* Take between @least and @most bytes. As on Xen, taking none also counts as having read. */
static int receive(struct vchan *v, void *data, uint32_t least, uint32_t most, enum effort effort)
{
	int count = most <= ring_known(&v->in.ring) ? (int)most
						    : way_readable(v, least, most, effort, NEVER);

	return count < 0 || (count == 0 && least) ? count : take(v, data, (uint32_t)count);
}

static int do_recv(struct libxenvchan *ctrl, void *data, size_t size, enum effort effort)
{
	struct vchan *v = vchan_of(ctrl);

	if (call_begin(v, &v->in, size) < 0)
		return -1;
	return way_leave(&v->in, receive(v, data, (uint32_t)size, (uint32_t)size, effort));
}

static int do_read(struct libxenvchan *ctrl, void *data, size_t size, enum effort effort)
{
	struct vchan *v = vchan_of(ctrl);
	int result;

	if (call_begin(v, &v->in, size) < 0)
		return -1;
	if (size == 0 && way_look(v, &v->in) == 0)
		result = vchan_is_open(v) ? 0 : fail_closed();
	else
		result = receive(v, data, size ? 1 : 0, (uint32_t)size, effort);
	return way_leave(&v->in, result);
}

int libxenvchan_recv(struct libxenvchan *ctrl, void *data, size_t size)
{
	return do_recv(ctrl, data, size, effort_of(vchan_of(ctrl)));
}

int libxenvchan_read(struct libxenvchan *ctrl, void *data, size_t size)
{
	return do_read(ctrl, data, size, effort_of(vchan_of(ctrl)));
}

int kvmchan_peek(struct libxenvchan *ctrl, void *data, size_t size)
{
	struct vchan *v = vchan_of(ctrl);
	uint32_t available;

	if (call_begin(v, &v->in, size) < 0)
		return -1;
	available = way_available(v, &v->in, size);
	if (available == RING_BROKEN)
		return way_leave(&v->in, fail_broken(v));
	if (available < size)
		return way_leave(&v->in, 0);
	ring_peek(&v->in.ring, data, (uint32_t)size);
	return way_leave(&v->in, (int)size);
}

/* ---- writing ---- */

static int put(struct vchan *v, const void *data, uint32_t count)
{
	if (vchan_state(v) == OFFERED)
		offered_put(v, data, count);
	else
		ring_put(&v->out.ring, data, count);
	tell_peer(v, VCHAN_NOTIFY_WRITE);
	return (int)count;
}

static int do_send(struct libxenvchan *ctrl, const void *data, size_t size, enum effort effort)
{
	struct vchan *v = vchan_of(ctrl);
	int room;

	if (call_begin(v, &v->out, size) < 0)
		return -1;
	room = size && size <= ring_known(&v->out.ring) && vchan_is_open(v)
		   ? (int)size
		   : way_writable(v, size, effort, NEVER);
	if (room > 0 || (room == 0 && size == 0))
		room = put(v, data, (uint32_t)size);
	return way_leave(&v->out, room);
}

static int write_all(struct vchan *v, const uint8_t *data, uint32_t size, enum effort effort)
{
	struct way *out = &v->out;
	uint32_t done = 0, left;

	for (;;) {
		uint32_t available = ring_known(&out->ring);

		if (!vchan_is_open(v))
			return fail_closed();
		left = size - done;
		if (available < left)
			available = effort == ASK ? way_available(v, out, left) : way_look(v, out);
		if (available == RING_BROKEN)
			return fail_broken(v);
		if (available > left)
			available = left;
		if (available)
			done += (uint32_t)put(v, data + done, available);
		if (done == size || effort != WAIT)
			return (int)done;
		if (way_wait(v, out, 1, effort, NEVER) < 0)
			return -1;
	}
}

static int do_write(struct libxenvchan *ctrl, const void *data, size_t size, enum effort effort)
{
	struct vchan *v = vchan_of(ctrl);

	if (call_begin(v, &v->out, size) < 0)
		return -1;
	return way_leave(&v->out, write_all(v, data, (uint32_t)size, effort));
}

int libxenvchan_send(struct libxenvchan *ctrl, const void *data, size_t size)
{
	return do_send(ctrl, data, size, effort_of(vchan_of(ctrl)));
}

int libxenvchan_write(struct libxenvchan *ctrl, const void *data, size_t size)
{
	return do_write(ctrl, data, size, effort_of(vchan_of(ctrl)));
}

/* ---- waiting, and what there is ---- */

static int event_outcome(struct vchan *v, enum event_result result)
{
	switch (result) {
	case EVENT_TAKEN:
		return 0;
	case EVENT_NONE:
		return fail(ETIMEDOUT, "the wait for an event has timed out");
	case EVENT_INTERRUPTED:
		return fail_interrupted();
	case EVENT_LAST:
		vchan_lose(v);
		return 0;
	case EVENT_LOST:
		vchan_lose(v);
	}
	return fail_closed();
}

static int wait_event(struct vchan *v, uint64_t deadline)
{
	enum event_result result = EVENT_NONE;
	uint32_t count = event_count(&v->event);
	struct spin_wait wait;

	if (vchan_state(v) == BROKEN)
		return fail_broken(v);
	spin_begin(&v->spin, &wait);
	if (wait.until > deadline)
		wait.until = deadline;
	if (wait.until)
		result = event_try(&v->event);
	if (result == EVENT_NONE) {
		uint8_t asked = shared_requested(v->ask), peer = shared_live(v->peer_live);
		bool slept = true;

		/* The peer clears a bit just before it sends the event. */
		while (slept && spin_turn(&wait))
			slept =
			    shared_requested(v->ask) == asked && shared_live(v->peer_live) == peer;
		result = event_wait(&v->event, count, deadline);
		spin_end(&v->spin, &wait, slept);
	}
	return event_outcome(v, result);
}

int libxenvchan_wait(struct libxenvchan *ctrl) { return wait_event(vchan_of(ctrl), NEVER); }

int libxenvchan_fd_for_select(struct libxenvchan *ctrl) { return vchan_of(ctrl)->event.fd; }

int libxenvchan_is_open(struct libxenvchan *ctrl) { return vchan_is_open(vchan_of(ctrl)); }

/* Ask for an event at the next change, then look. An impossible index counts as nothing. */
static int ask_and_look(struct vchan *v, struct way *way)
{
	uint32_t available;

	way_ask(v, way);
	available = way_look(v, way);
	return available == RING_BROKEN ? 0 : (int)available;
}

int libxenvchan_data_ready(struct libxenvchan *ctrl)
{
	struct vchan *v = vchan_of(ctrl);

	return ask_and_look(v, &v->in);
}

int libxenvchan_buffer_space(struct libxenvchan *ctrl)
{
	struct vchan *v = vchan_of(ctrl);

	return ask_and_look(v, &v->out);
}

/* ---- for bindings: with a negative errno ---- */

static int or_errno(int result) { return result < 0 ? -errno : result; }

int kvmchan_try_recv(struct libxenvchan *ctrl, void *data, int size)
{
	return ctrl ? or_errno(do_recv(ctrl, data, (size_t)size, TRY)) : -EBADF;
}

int kvmchan_try_read(struct libxenvchan *ctrl, void *data, int size)
{
	return ctrl ? or_errno(do_read(ctrl, data, (size_t)size, TRY)) : -EBADF;
}

int kvmchan_try_send(struct libxenvchan *ctrl, const void *data, int size)
{
	return ctrl ? or_errno(do_send(ctrl, data, (size_t)size, TRY)) : -EBADF;
}

int kvmchan_try_write(struct libxenvchan *ctrl, const void *data, int size)
{
	return ctrl ? or_errno(do_write(ctrl, data, (size_t)size, TRY)) : -EBADF;
}

/* Return where @way goes on, and how much it has as last seen. */
static int64_t place(const struct way *way)
{
	uint32_t first, count = ring_known(&way->ring);
	const uint8_t *at = ring_place(&way->ring, count, &first);

	return (int64_t)(at - way->ring.buffer) << 32 | count;
}

/* Look, and so learn whether the other end still has its part in @way. */
static int look(struct vchan *v, struct way *way)
{
	int open =
	    vchan_is_open(v); /* before the look, as what was written before a close counts */

	if (way_look(v, way) == RING_BROKEN)
		return fail_broken(v);
	if (!open && (way->ring.produces || !ring_known(&way->ring)))
		return fail_closed();
	return 0;
}

static int64_t try_look(struct libxenvchan *ctrl, struct way *way)
{
	struct vchan *v = vchan_of(ctrl);

	if (call_begin(v, way, 0) < 0 || way_leave(way, look(v, way)) < 0)
		return -errno;
	return place(way);
}

int64_t kvmchan_try_look(struct libxenvchan *ctrl)
{
	return ctrl ? try_look(ctrl, &vchan_of(ctrl)->in) : -EBADF;
}

int64_t kvmchan_try_reserve(struct libxenvchan *ctrl)
{
	if (!ctrl)
		return -EBADF;
	vchan_stay(vchan_of(ctrl)); /* the caller writes to the ring */
	return try_look(ctrl, &vchan_of(ctrl)->out);
}

int kvmchan_try_ask(struct libxenvchan *ctrl, int what)
{
	struct vchan *v = vchan_of(ctrl);
	struct way *way;

	if (!ctrl)
		return -EBADF;
	way = what == KVMCHAN_DATA ? &v->in : &v->out;
	if (call_begin(v, way, 0) < 0)
		return -errno;
	way_ask(v, way);
	if (way_leave(way, look(v, way)) < 0)
		return -errno;
	return (int)ring_known(&way->ring);
}

int kvmchan_glance(struct libxenvchan *ctrl, int what)
{
	struct vchan *v = vchan_of(ctrl);
	struct way *way = what == KVMCHAN_DATA ? &v->in : &v->out;
	uint32_t there;

	shared_request(v->ask, way->asks);
	there = vchan_state(v) == OFFERED ? offered_glance(v, way) : ring_glance(&way->ring);
	return there == RING_BROKEN ? 0 : (int)there;
}

int kvmchan_try_consume(struct libxenvchan *ctrl, int count)
{
	return ctrl ? or_errno(kvmchan_consume(ctrl, (size_t)count)) : -EBADF;
}

int kvmchan_try_commit(struct libxenvchan *ctrl, int count)
{
	return ctrl ? or_errno(kvmchan_commit(ctrl, (size_t)count)) : -EBADF;
}

static int try_event(struct vchan *v)
{
	enum event_result result = event_try(&v->event);

	return result == EVENT_NONE ? -EAGAIN : or_errno(event_outcome(v, result));
}

int kvmchan_await(struct libxenvchan *ctrl, int what, int least, int timeout)
{
	int64_t length = timeout < 0 ? -1 : 1000 * (int64_t)timeout;

	if (!ctrl)
		return -EBADF;
	switch (what) {
	case KVMCHAN_DATA:
		return or_errno(kvmchan_wait_data(ctrl, (size_t)least, length));
	case KVMCHAN_ROOM:
		return or_errno(kvmchan_wait_room(ctrl, (size_t)least, length));
	}
	/* A caller that is closing the end may have said so just before. */
	if (atomic_load(&vchan_of(ctrl)->state) == LOST)
		return or_errno(fail_closed());
	if (!timeout)
		return try_event(vchan_of(ctrl));
	return or_errno(wait_event(vchan_of(ctrl), deadline_of(length)));
}
