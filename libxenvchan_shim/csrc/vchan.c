/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "vchan.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "atomics.h"
#include "error.h"
#include "event.h"
#include "ring.h"
#include "spin.h"

#define PAGE 4096u
#define ORDER_IN_PAGE_MAX 11
#define ORDER_MAX 30

/*
 * Where each ring's indexes are: in the page's grants, which are not used here, with a cache line
 * boundary between cons and prod. In Xen's place, beside each other and the live and notify bytes,
 * one cache line would go back and forth between the two ends at every call. There the page shows
 * the indexes as of the last request for an event (vchan_show).
 */
#define LEFT_INDEXES 252
#define RIGHT_INDEXES 508
#define BETWEEN_LINES(offset) (((offset) + sizeof(uint32_t)) % 128 == 0)

_Static_assert(BETWEEN_LINES(LEFT_INDEXES) && BETWEEN_LINES(RIGHT_INDEXES), "one end's line each");
_Static_assert(sizeof(struct ring_shared) == 8, "Xen's ABI");

_Static_assert(offsetof(struct vchan_interface, left) == 0, "Xen's ABI");
_Static_assert(offsetof(struct vchan_interface, right) == 8, "Xen's ABI");
_Static_assert(offsetof(struct vchan_interface, left_order) == 16, "Xen's ABI");
_Static_assert(offsetof(struct vchan_interface, right_order) == 18, "Xen's ABI");
_Static_assert(offsetof(struct vchan_interface, cli_live) == 20, "Xen's ABI");
_Static_assert(offsetof(struct vchan_interface, srv_live) == 21, "Xen's ABI");
_Static_assert(offsetof(struct vchan_interface, cli_notify) == 22, "Xen's ABI");
_Static_assert(offsetof(struct vchan_interface, srv_notify) == 23, "Xen's ABI");
_Static_assert(offsetof(struct vchan_interface, grants) == 24, "Xen's ABI");
#ifdef __LP64__
_Static_assert(offsetof(struct libxenvchan, ring) == 8, "Xen's ABI");
_Static_assert(offsetof(struct libxenvchan, event) == 16, "Xen's ABI");
_Static_assert(offsetof(struct libxenvchan, event_port) == 24, "Xen's ABI");
_Static_assert(offsetof(struct libxenvchan, read) == 32, "Xen's ABI");
_Static_assert(offsetof(struct libxenvchan, write) == 56, "Xen's ABI");
_Static_assert(offsetof(struct libxenvchan, xs_path) == 80, "Xen's ABI");
_Static_assert(sizeof(struct libxenvchan) == 88, "Xen's ABI");
#endif

enum state {
	USABLE,
	LOST,	/* peer and daemon are both gone: nobody could wake us any more */
	BROKEN, /* the peer broke the ring's rules */
};

/* What libxenvchan.h shows, and behind it what the program can't reach by that header. */
struct vchan {
	struct libxenvchan ctrl;
	struct ring in, out;
	struct spin spin_in, spin_out;
	struct vchan_interface *page;
	size_t size; /* of the mapping */
	int event_fd;
	int control_fd;
	uint64_t control_cookie; /* of the socket that control_fd was, when we got it */
	_Atomic enum state state;
	uint8_t *own_live;
	uint8_t *peer_live;
	uint8_t *ask;			/* where we ask the peer for events */
	uint8_t *asked;			/* where the peer asks us */
	uint32_t *shown_in, *shown_out; /* where the page shows our indexes */
};

static struct vchan *vchan_of(struct libxenvchan *ctrl) { return (struct vchan *)ctrl; }

/* ---- set up and down ---- */

/* Where a ring of @order starts; rings with pages of their own lie at @after_page. */
static size_t ring_offset(uint32_t order, size_t after_page)
{
	return order > ORDER_IN_PAGE_MAX ? after_page : (size_t)1 << order;
}

static size_t ring_pages(uint32_t order)
{
	return order > ORDER_IN_PAGE_MAX ? (size_t)1 << order : 0;
}

static int check_grant(const struct kvmchan_grant *grant, size_t *size)
{
	uint32_t left = grant->left_order, right = grant->right_order;
	struct stat status;

	if (left < 10 || right < 10 || left > ORDER_MAX || right > ORDER_MAX ||
	    (left == right && left <= ORDER_IN_PAGE_MAX))
		return fail(EINVAL, "the daemon granted rings of orders %u and %u, which can't be",
			    left, right);
	*size = PAGE + ring_pages(left) + ring_pages(right);
	if (fstat(grant->region_fd, &status) < 0)
		return fail(errno, "the channel's memory can't be examined");
	if (status.st_size < 0 || (uint64_t)status.st_size < *size)
		return fail(EINVAL,
			    "the daemon granted %lld bytes of memory for rings that need %zu",
			    (long long)status.st_size, *size);
	return 0;
}

static void vchan_lay_out(struct vchan *v, const struct kvmchan_grant *grant)
{
	struct vchan_interface *page = v->page;
	uint8_t *base = (uint8_t *)page;
	struct ring_shared *left_indexes = (struct ring_shared *)(base + LEFT_INDEXES);
	struct ring_shared *right_indexes = (struct ring_shared *)(base + RIGHT_INDEXES);
	struct ring left = {
	    .buffer = base + ring_offset(grant->left_order, PAGE),
	    .size = 1u << grant->left_order,
	};
	struct ring right = {
	    .buffer = base + ring_offset(grant->right_order, PAGE + ring_pages(grant->left_order)),
	    .size = 1u << grant->right_order,
	};
	bool server = grant->is_server;

	/* left: the client writes, the server reads. */
	left.produces = !server;
	left.own_index = server ? &left_indexes->cons : &left_indexes->prod;
	left.peer_index = server ? &left_indexes->prod : &left_indexes->cons;
	right.produces = server;
	right.own_index = server ? &right_indexes->prod : &right_indexes->cons;
	right.peer_index = server ? &right_indexes->cons : &right_indexes->prod;

	v->in = server ? left : right;
	v->out = server ? right : left;
	v->shown_in = server ? &page->left.cons : &page->right.cons;
	v->shown_out = server ? &page->right.prod : &page->left.prod;
	v->own_live = server ? &page->srv_live : &page->cli_live;
	v->peer_live = server ? &page->cli_live : &page->srv_live;
	v->ask = server ? &page->cli_notify : &page->srv_notify;
	v->asked = server ? &page->srv_notify : &page->cli_notify;

	v->ctrl.ring = page;
	v->ctrl.is_server = server ? -1 : 0;
	v->ctrl.event = (xenevtchn_handle *)&v->event_fd;
	v->ctrl.event_port = grant->port;
	v->ctrl.read.shr = server ? left_indexes : right_indexes;
	v->ctrl.read.order = (int)(server ? grant->left_order : grant->right_order);
	v->ctrl.read.buffer = v->in.buffer;
	v->ctrl.write.shr = server ? right_indexes : left_indexes;
	v->ctrl.write.order = (int)(server ? grant->right_order : grant->left_order);
	v->ctrl.write.buffer = v->out.buffer;
}

/* A client goes on from where the one before it stopped; a server starts on zeroed memory. */
static int vchan_resume(struct vchan *v)
{
	v->in.own = observe(v->in.own_index);
	v->out.own = observe(v->out.own_index);
	if (ring_look(&v->in) == RING_BROKEN || ring_look(&v->out) == RING_BROKEN)
		return fail(EPROTO, "the server's ring indexes can't be true");
	return 0;
}

/* Brings what the page shows up to date; its cache line is ours just now, or our end is going. */
static void vchan_show(struct vchan *v)
{
	show(v->shown_in, v->in.own);
	show(v->shown_out, v->out.own);
}

/* Asks the peer for an event. */
static void vchan_ask(struct vchan *v, uint8_t bit)
{
	vchan_show(v);
	request(v->ask, bit);
}

/* The daemon has made the server's part of the page, before anyone could connect. */
static void vchan_arrive(struct vchan *v, const struct kvmchan_grant *grant)
{
	if (grant->is_server)
		return;
	set_live(v->own_live, 1);
	request_only(v->ask, VCHAN_NOTIFY_WRITE);
	event_send(v->event_fd);
}

/* The kernel's own number of a socket; 0 for what is none. */
static uint64_t socket_cookie(int fd)
{
	uint64_t cookie = 0;
	socklen_t size = sizeof(cookie);

	return getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &size) == 0 ? cookie : 0;
}

struct libxenvchan *kvmchan_attach(const struct kvmchan_grant *grant)
{
	struct vchan *v = calloc(1, sizeof(*v));
	int error;

	if (!v) {
		fail(ENOMEM, "no memory for a vchan");
		goto undo;
	}
	v->event_fd = grant->event_fd;
	v->control_fd = grant->control_fd;
	v->control_cookie = socket_cookie(grant->control_fd);
	if (check_grant(grant, &v->size) < 0)
		goto undo;
	v->page = mmap(NULL, v->size, PROT_READ | PROT_WRITE, MAP_SHARED, grant->region_fd, 0);
	if (v->page == MAP_FAILED) {
		v->page = NULL;
		fail(errno, "%zu bytes of the channel's memory can't be mapped", v->size);
		goto undo;
	}
	vchan_lay_out(v, grant);
	spin_init(&v->spin_in);
	v->spin_out = v->spin_in;
	if (vchan_resume(v) < 0)
		goto undo;
	close(grant->region_fd);
	vchan_arrive(v, grant);
	return &v->ctrl;
undo:
	error = errno;
	close(grant->region_fd);
	if (v) {
		kvmchan_detach(&v->ctrl);
	} else {
		close(grant->event_fd);
		close(grant->control_fd);
	}
	errno = error;
	return NULL;
}

void kvmchan_hang_up(struct libxenvchan *ctrl)
{
	struct vchan *v = vchan_of(ctrl);

	vchan_show(v);
	set_live(v->own_live, 0);
	event_send(v->event_fd);
}

int kvmchan_steal_control(struct libxenvchan *ctrl)
{
	struct vchan *v = vchan_of(ctrl);
	int fd = v->control_fd;

	v->control_fd = -1;
	/* A program may close all descriptors it did not open; the number may be another file's by
	 * now. */
	return v->control_cookie && socket_cookie(fd) == v->control_cookie ? fd : -1;
}

void kvmchan_detach(struct libxenvchan *ctrl)
{
	struct vchan *v = vchan_of(ctrl);
	int control_fd = kvmchan_steal_control(ctrl);

	if (control_fd >= 0)
		close(control_fd);

	if (v->page)
		munmap(v->page, v->size);
	close(v->event_fd);
	free(v->ctrl.xs_path);
	free(v);
}

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

/* The peer broke the rules: from now on we are gone to it, and say so. */
static int fail_broken(struct vchan *v)
{
	if (atomic_exchange(&v->state, BROKEN) != BROKEN) {
		set_live(v->own_live, 0);
		event_send(v->event_fd);
	}
	return fail(EPROTO, "the peer broke the ring's rules: close the channel");
}

static int vchan_open(struct vchan *v)
{
	uint8_t peer;

	if (atomic_load_explicit(&v->state, memory_order_relaxed) != USABLE)
		return 0;
	if (!v->ctrl.is_server)
		return live(v->peer_live) != 0;
	if (v->ctrl.server_persist)
		return 1;
	peer = live(v->peer_live);
	return peer > 2 ? 1 : peer;
}

/* Tells the peer of what we did, if it asked. After publish(). */
static void tell_peer(struct vchan *v, uint8_t bit)
{
	if ((requested(v->asked) & bit) && take_request(v->asked, bit))
		event_send(v->event_fd);
}

/* Nobody is left who could send an event: the peer is gone, and the daemon too. */
static void vchan_lose(struct vchan *v)
{
	enum state usable = USABLE;

	if (atomic_compare_exchange_strong(&v->state, &usable, LOST))
		set_live(v->peer_live, 0);
}

/*
 * How much @ring has for a call that wants @want bytes, RING_BROKEN if the peer broke the rules.
 * Where it falls short an event is asked for, and then looked again: the change may have come
 * before the request could be seen.
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

/* Lets more than the @available bytes gather in @ring, as long as the peer adds some: see spin.h.
 */
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
 * Blocks until @ring has @want bytes, the peer has gone or broke the rules, or a signal came: 0 to
 * look again, or -1. Spins first if that pays, which asks for no event and so spares both ends a
 * system call.
 */
static int ring_wait(struct vchan *v, struct ring *ring, struct spin *spin, uint32_t want)
{
	enum event_result result;
	struct spin_wait wait;
	uint32_t available;

	spin_begin(spin, &wait);
	while (spin_turn(&wait)) {
		available = ring_look(ring);
		if (available >= want || !vchan_open(v)) {
			spin_end(spin, &wait, false);
			ring_gather(ring, spin, available);
			return 0;
		}
	}
	for (;;) {
		if (ring_available(v, ring, want) >= want || !vchan_open(v)) {
			spin_end(spin, &wait, true);
			return 0;
		}
		result = event_wait(v->event_fd);
		if (result == EVENT_INTERRUPTED)
			return fail_interrupted();
		if (result == EVENT_LOST)
			vchan_lose(v); /* and look again: it may have written last */
	}
}

/* ---- the calls ---- */

static int check_call(struct vchan *v, size_t size)
{
	if (atomic_load_explicit(&v->state, memory_order_relaxed) == BROKEN)
		return fail_broken(v);
	if (size > INT_MAX)
		return fail(EINVAL, "%zu bytes are more than one call can answer for", size);
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

/* recv and read: between @least and @most bytes. As on Xen, taking none also counts as having read.
 */
static int receive(struct vchan *v, void *data, uint32_t least, uint32_t most)
{
	for (;;) {
		uint32_t available = ring_known(&v->in);
		int open = 1;

		if (available < most) {
			/* Before the look, so that what was written before a close is seen. */
			open = vchan_open(v);
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
		return vchan_open(v) ? 0 : fail_closed();
	return receive(v, data, size ? 1 : 0, (uint32_t)size);
}

int libxenvchan_send(struct libxenvchan *ctrl, const void *data, size_t size)
{
	struct vchan *v = vchan_of(ctrl);

	if (check_call(v, size) < 0)
		return -1;
	for (;;) {
		uint32_t available = ring_known(&v->out);

		if (!vchan_open(v))
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

		if (!vchan_open(v))
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
		result = event_try(v->event_fd);
	if (result == EVENT_NONE) {
		uint8_t asked = requested(v->ask), peer = live(v->peer_live);
		bool slept = true;

		/* The peer clears a bit just before it sends the event. */
		while (slept && spin_turn(&wait))
			slept = requested(v->ask) == asked && live(v->peer_live) == peer;
		result = event_wait(v->event_fd);
		spin_end(&v->spin_in, &wait, slept);
	}
	if (result == EVENT_TAKEN)
		return 0;
	if (result == EVENT_INTERRUPTED)
		return fail_interrupted();
	vchan_lose(v);
	return fail_closed();
}

int libxenvchan_fd_for_select(struct libxenvchan *ctrl) { return vchan_of(ctrl)->event_fd; }

int libxenvchan_is_open(struct libxenvchan *ctrl) { return vchan_open(vchan_of(ctrl)); }

/* Asks for an event at the next change, then looks. An index that can't be true counts as nothing.
 */
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
