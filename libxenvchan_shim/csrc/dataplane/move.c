/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "dataplane/move.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dataplane/error.h"
#include "dataplane/grant.h"
#include "ring/page.h"

_Static_assert(sizeof(struct kvmchan_move) == 32, "as MOVE in kvmchand/wire/move.py has it");

#define NO_CLIENT_YET 2

/* ---- the lock ---- */

/* No handler of a signal runs meanwhile, which could call us for the same end. Nothing that is done
 * with the lock held waits, or touches the program's memory. */
static void lock(struct vchan *v, sigset_t *signals)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, signals);
	pthread_mutex_lock(&v->moving);
}

static void unlock(struct vchan *v, const sigset_t *signals)
{
	pthread_mutex_unlock(&v->moving);
	pthread_sigmask(SIG_SETMASK, signals, NULL);
}

/* With the lock held. */
static void stay(struct vchan *v)
{
	enum state offered = OFFERED;

	atomic_compare_exchange_strong(&v->state, &offered, USABLE);
}

void offered_stay(struct vchan *v)
{
	sigset_t signals;

	lock(v, &signals);
	stay(v);
	unlock(v, &signals);
}

/* ---- an end that is OFFERED ---- */

uint32_t offered_look(struct vchan *v, struct way *way)
{
	sigset_t signals;
	uint32_t there;

	lock(v, &signals);
	there = ring_look(&way->ring);
	if (way->ring.peer || there == RING_BROKEN)
		stay(v);
	unlock(v, &signals);
	return there;
}

uint32_t offered_glance(struct vchan *v, const struct way *way)
{
	sigset_t signals;
	uint32_t there;

	lock(v, &signals);
	there = ring_glance(&way->ring);
	if (there && !way->ring.produces)
		stay(v);
	unlock(v, &signals);
	return there;
}

int offered_is_open(struct vchan *v)
{
	sigset_t signals;
	uint8_t peer;

	if (v->ctrl.server_persist)
		return 1;
	lock(v, &signals);
	peer = shared_live(v->peer_live);
	if (peer != NO_CLIENT_YET)
		stay(v);
	unlock(v, &signals);
	return peer > NO_CLIENT_YET ? 1 : peer;
}

/* Publish @count bytes that were filled in. Returns false if they were left behind, because the end
 * has moved since it had moved @moves times. */
static bool publish(struct vchan *v, uint32_t count, uint32_t moves)
{
	sigset_t signals;
	bool is_there;

	lock(v, &signals);
	is_there = v->moves == moves;
	if (is_there)
		ring_move(&v->out.ring, count);
	unlock(v, &signals);
	return is_there;
}

void offered_put(struct vchan *v, const void *data, uint32_t count)
{
	uint32_t moves;

	do {
		moves = atomic_load(&v->moves);
		ring_fill(&v->out.ring, data, count);
	} while (!publish(v, count, moves));
}

/* ---- moving ---- */

/* Receive a packet. Returns false if there is none. @fd: what is beside a move, which is the
 * caller's then; -1 if it is no move. */
static bool receive_packet(int connection, struct kvmchan_move *move, int *fd)
{
	union {
		char room[CMSG_SPACE(sizeof(int))];
		struct cmsghdr aligned;
	} beside;
	struct iovec data = {.iov_base = move, .iov_len = sizeof(*move)};
	struct msghdr packet = {
	    .msg_iov = &data,
	    .msg_iovlen = 1,
	    .msg_control = beside.room,
	    .msg_controllen = sizeof(beside.room),
	};
	ssize_t got = recvmsg(connection, &packet, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct cmsghdr *header = got > 0 ? CMSG_FIRSTHDR(&packet) : NULL;

	*fd = -1;
	if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
		memcpy(fd, CMSG_DATA(header), sizeof(*fd));
	if (*fd >= 0 && (got != sizeof(*move) || memcmp(move->magic, KVMCHAN_MOVE_MAGIC, 8) != 0)) {
		close(*fd);
		*fd = -1;
	}
	return got > 0;
}

static void *map(void *at, size_t size, int fd, uint64_t offset)
{
	return mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | (at ? MAP_FIXED : 0), fd,
		    (off_t)offset);
}

/* Write to memory that was made as for a new server what this one has written so far. A client may
 * be there already. */
static void copy_written(struct vchan *v, uint8_t *to)
{
	const uint8_t *from = (const uint8_t *)v->page;
	struct ring ring = v->out.ring;

	ring.own_index = (uint32_t *)(void *)(to + ((const uint8_t *)ring.own_index - from));
	memcpy(to + (ring.buffer - from), ring.buffer, ring.own);
	ring_move(&ring, 0);
	/* Other threads may have asked for events just now. */
	shared_request(to + (v->ask - from), VCHAN_NOTIFY_WRITE | VCHAN_NOTIFY_READ);
}

/* Put the memory of a move behind our addresses. If that fails, nothing may be there. */
static bool replace(struct vchan *v, const struct kvmchan_move *move, int fd)
{
	struct event *event = &v->event;

	if (map(v->page, v->size, fd, move->offset) == MAP_FAILED ||
	    map(event->doorbell, PAGE, fd, move->doorbell) == MAP_FAILED)
		return false;
	atomic_store(&event->doorbell_value, move->doorbell_value);
	return true;
}

/* Put zeroes there, so that nobody's access fails. */
static void replace_by_none(struct vchan *v)
{
	int flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS;

	(void)mmap(v->page, v->size, PROT_READ | PROT_WRITE, flags, -1, 0);
	(void)mmap(v->event.doorbell, PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
}

/* Return whether no client has come, and the memory is still ours: it may have been freed if we did
 * not look for long. */
static bool may_go(const struct vchan *v)
{
	return v->state == OFFERED && shared_live(v->peer_live) == NO_CLIENT_YET &&
	       shared_observe(v->out.ring.own_index) == v->out.ring.own;
}

/* With the lock held. */
static bool go(struct vchan *v, const struct kvmchan_move *move, int fd)
{
	void *page;

	if (!may_go(v))
		return false;
	page = map(NULL, v->size, fd, move->offset);
	if (page == MAP_FAILED)
		return false;
	copy_written(v, page);
	munmap(page, v->size);
	v->moves++;
	if (replace(v, move, fd))
		return true;
	replace_by_none(v);
	return false;
}

static bool go_on(struct vchan *v, const struct kvmchan_move *move, int fd)
{
	sigset_t signals;
	bool went;

	lock(v, &signals);
	went = go(v, move, fd);
	if (!went)
		stay(v);
	unlock(v, &signals);
	return went;
}

/* Take what the daemon has sent. Returns EVENT_NONE if that is nothing, EVENT_LAST if the end could
 * not move. Anything else is an event, too, since the program's descriptor was ready for it. */
static enum event_result take_moves(struct event *event)
{
	struct vchan *v = (struct vchan *)((char *)event - offsetof(struct vchan, event));
	enum event_result result = EVENT_NONE;
	struct kvmchan_move move;
	int fd, cancel;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel); /* it does not wait */
	while (result != EVENT_LAST && receive_packet(event->control.fd, &move, &fd)) {
		result = fd < 0 || go_on(v, &move, fd) ? EVENT_TAKEN : EVENT_LAST;
		if (fd >= 0)
			close(fd);
	}
	if (result == EVENT_TAKEN)
		event_send(event);
	else if (result == EVENT_LAST)
		shutdown(event->control.fd, SHUT_WR); /* the daemon shall not offer it again */
	pthread_setcancelstate(cancel, NULL);
	return result;
}

int vchan_let_move(struct vchan *v)
{
	struct epoll_event moved = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET};
	struct event *event = &v->event;

	if (!v->ctrl.is_server || event->kind != KVMCHAN_EVENTS_SHARED_DOORBELL ||
	    event->control.fd < 0)
		return 0;
	/* So a move is an event for the program, too, and so is the daemon's end. */
	if (epoll_ctl(event->fd, EPOLL_CTL_ADD, event->control.fd, &moved) < 0)
		return fail(errno, "the connection to the daemon could not be waited for");
	pthread_mutex_init(&v->moving, NULL);
	event->move = take_moves;
	if (!v->in.ring.peer && !v->out.ring.peer) /* no client has come meanwhile */
		v->state = OFFERED;
	return 0;
}
