/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What kvmchan.h offers beside libxenvchan.h: bytes in place, and waits with a timeout. */
#include "dataplane/vchan.h"

#include "dataplane/way.h"
#include "ring/ring.h"

/* Return whether @way has at least @least bytes: way_readable() or way_writable(). */
static int way_has(struct vchan *v, struct way *way, size_t least, enum effort effort,
		   uint64_t deadline)
{
	return way->ring.produces
		   ? way_writable(v, least, effort, deadline)
		   : way_readable(v, (uint32_t)least, (uint32_t)least, effort, deadline);
}

/* ---- in place ---- */

/* Show where the @count bytes from our index on lie. Returns @count. */
static int set_pieces(const struct ring *ring, uint32_t count, struct iovec pieces[2])
{
	uint32_t first;

	pieces[0].iov_base = ring_place(ring, count, &first);
	pieces[0].iov_len = first;
	pieces[1].iov_base = ring->buffer;
	pieces[1].iov_len = count - first;
	return (int)count;
}

static int in_place(struct vchan *v, struct way *way, size_t least, struct iovec pieces[2])
{
	int count;

	if (call_begin(v, way, least) < 0)
		return -1;
	if (way_look(v, way) == RING_BROKEN)
		return way_leave(way, fail_broken(v));
	count = way_has(v, way, least, effort_of(v), NEVER);
	if (count >= (int)least)
		count = set_pieces(&way->ring, ring_known(&way->ring), pieces);
	return way_leave(way, count);
}

int kvmchan_look(struct libxenvchan *ctrl, size_t least, struct iovec pieces[2])
{
	return in_place(vchan_of(ctrl), &vchan_of(ctrl)->in, least, pieces);
}

int kvmchan_reserve(struct libxenvchan *ctrl, size_t least, struct iovec pieces[2])
{
	vchan_stay(vchan_of(ctrl)); /* the caller writes to the ring */
	return in_place(vchan_of(ctrl), &vchan_of(ctrl)->out, least, pieces);
}

/* Move our index on by @count bytes, and tell the peer. */
static int move_on(struct vchan *v, struct way *way, size_t count, uint8_t bit)
{
	vchan_stay(v);
	if (call_begin(v, way, count) < 0)
		return -1;
	if (count > ring_known(&way->ring))
		return way_leave(way, fail(EINVAL, "%zu bytes are more than the %u that were seen",
					   count, ring_known(&way->ring)));
	ring_move(&way->ring, (uint32_t)count);
	tell_peer(v, bit);
	return way_leave(way, 0);
}

int kvmchan_consume(struct libxenvchan *ctrl, size_t count)
{
	return move_on(vchan_of(ctrl), &vchan_of(ctrl)->in, count, VCHAN_NOTIFY_READ);
}

int kvmchan_commit(struct libxenvchan *ctrl, size_t count)
{
	struct vchan *v = vchan_of(ctrl);

	return vchan_is_open(v) ? move_on(v, &v->out, count, VCHAN_NOTIFY_WRITE) : fail_closed();
}

/* ---- with a timeout ---- */

/* Take the events that are pending, which are old, then ask for the next one. */
static int ask_anew(struct vchan *v, struct way *way, size_t least)
{
	enum event_result result = event_try(&v->event);
	int count;

	if (result == EVENT_LOST || result == EVENT_LAST)
		vchan_lose(v); /* and look: it may have written last */
	count = way_has(v, way, least, ASK, NEVER);
	return count ? count : fail(EAGAIN, "it would have to wait");
}

static int wait_in_time(struct vchan *v, struct way *way, size_t least, int64_t timeout)
{
	int count;

	if (call_begin(v, way, least) < 0)
		return -1;
	count = way_has(v, way, least, timeout ? WAIT_IN_TURNS : TRY, deadline_of(timeout));
	if (count == 0 && least)
		count = ask_anew(v, way, least);
	return way_leave(way, count < 0 ? count : (int)ring_known(&way->ring));
}

int kvmchan_wait_data(struct libxenvchan *ctrl, size_t least, int64_t timeout)
{
	return wait_in_time(vchan_of(ctrl), &vchan_of(ctrl)->in, least, timeout);
}

int kvmchan_wait_room(struct libxenvchan *ctrl, size_t least, int64_t timeout)
{
	return wait_in_time(vchan_of(ctrl), &vchan_of(ctrl)->out, least, timeout);
}
