/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What kvmchan.h offers beside libxenvchan.h: bytes in place, and waits with a timeout. */
#include "dataplane/vchan.h"

#include "dataplane/way.h"
#include "ring/ring.h"

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

int kvmchan_look(struct libxenvchan *ctrl, size_t least, struct iovec pieces[2])
{
	struct vchan *v = vchan_of(ctrl);
	int count;

	if (call_begin(v, &v->in, least) < 0)
		return -1;
	if (ring_look(&v->in.ring) == RING_BROKEN)
		return way_leave(&v->in, fail_broken(v));
	count = way_readable(v, (uint32_t)least, (uint32_t)least, effort_of(v), NEVER);
	if (count >= (int)least)
		count = set_pieces(&v->in.ring, ring_known(&v->in.ring), pieces);
	return way_leave(&v->in, count);
}

int kvmchan_reserve(struct libxenvchan *ctrl, size_t least, struct iovec pieces[2])
{
	struct vchan *v = vchan_of(ctrl);
	int count;

	if (call_begin(v, &v->out, least) < 0)
		return -1;
	if (ring_look(&v->out.ring) == RING_BROKEN)
		return way_leave(&v->out, fail_broken(v));
	count = way_writable(v, least, effort_of(v), NEVER);
	if (count >= (int)least)
		count = set_pieces(&v->out.ring, ring_known(&v->out.ring), pieces);
	return way_leave(&v->out, count);
}

/* Move our index on by @count bytes, and tell the peer. */
static int move_on(struct vchan *v, struct way *way, size_t count, uint8_t bit)
{
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

static int fail_nothing(void) { return fail(EAGAIN, "it would have to wait"); }

int kvmchan_wait_data(struct libxenvchan *ctrl, size_t least, int64_t timeout)
{
	struct vchan *v = vchan_of(ctrl);
	enum effort effort = timeout ? WAIT_IN_TURNS : TRY;
	int count;

	if (call_begin(v, &v->in, least) < 0)
		return -1;
	count = way_readable(v, (uint32_t)least, (uint32_t)least, effort, deadline_of(timeout));
	if (count == 0 && least) {
		/* Events that are pending are old. The next one is asked for. */
		event_try(&v->event);
		count = way_readable(v, (uint32_t)least, (uint32_t)least, ASK, NEVER);
	}
	if (count == 0 && least)
		count = fail_nothing();
	return way_leave(&v->in, count < 0 ? count : (int)ring_known(&v->in.ring));
}

int kvmchan_wait_room(struct libxenvchan *ctrl, size_t least, int64_t timeout)
{
	struct vchan *v = vchan_of(ctrl);
	enum effort effort = timeout ? WAIT_IN_TURNS : TRY;
	int count;

	if (call_begin(v, &v->out, least) < 0)
		return -1;
	count = way_writable(v, least, effort, deadline_of(timeout));
	if (count == 0 && least) {
		event_try(&v->event);
		count = way_writable(v, least, ASK, NEVER);
	}
	if (count == 0 && least)
		count = fail_nothing();
	return way_leave(&v->out, count < 0 ? count : (int)ring_known(&v->out.ring));
}
