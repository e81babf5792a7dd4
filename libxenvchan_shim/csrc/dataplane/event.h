/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One end of a channel's event channel.
 *
 * Between two ends on this machine it is a UNIX stream socket whose bytes are events. We use a
 * socket pair instead of two eventfds because an end then owns one descriptor, the one that the
 * program selects on; a peer can neither take our events nor change our descriptor's flags; and
 * when the peer and the daemon are both gone, the kernel itself ends our wait.
 *
 * If the peer is in a guest, or we are, events are interrupts there, which the kernel delivers
 * through an eventfd. Nobody's death ends a wait on an eventfd, so such a wait also watches the
 * connection to the daemon, which reports the peer's death.
 */
#ifndef KVMCHAN_EVENT_H
#define KVMCHAN_EVENT_H

#include <stdbool.h>
#include <stdint.h>

#include "dataplane/connection.h"
#include "dataplane/grant.h"
#include "dataplane/handle.h"
#include "dataplane/waiters.h"

enum event_result {
	EVENT_TAKEN,
	EVENT_LAST,	   /* one was taken, and nobody is left who could send another */
	EVENT_NONE,	   /* none is pending, or none came until the deadline */
	EVENT_INTERRUPTED, /* a signal */
	EVENT_LOST, /* nobody is left who could send one, or the descriptor is no longer ours */
};

struct event {
	struct xenevtchn_handle handle; /* what ctrl->event points to */
	uint32_t port;
	int fd; /* what we wait on, and the program selects on */
	enum kvmchan_events kind;
	int notify_fd;	/* where we send to an eventfd */
	void *doorbell; /* where we ring one: the page it is in */
	_Atomic uint32_t doorbell_value;
	struct connection control;
	struct waiters waiters;
	int wake_fd; /* an eventfd that event_shut() makes readable; -1: none yet */
	/* Takes what the daemon sends to an end that may move (move.h); NULL: it sends nothing. */
	enum event_result (*move)(struct event *event);
};

/* Mark a file of ours that is no socket, so that it can be told from what a program opens by the
 * same number. Returns 0, or -1 with errno and the sentence. */
int event_mark(int fd);
/* Return whether @fd is a file that event_mark() marked. */
bool event_is_marked(int fd);

/* Take ownership of the grant's event, notify and control descriptors. */
void event_take_over(struct event *event, const struct kvmchan_grant *grant);
/* Prepare what was taken over for use; the grant has been checked. Returns 0, or -1 with errno and
 * the sentence. */
int event_prepare(struct event *event, const struct kvmchan_grant *grant);
/* Close and unmap everything, prepared or not. Does nothing the second time. */
void event_end(struct event *event);

/* Send the peer an event. Never blocks, never raises SIGPIPE, keeps errno. Does nothing if the peer
 * has events pending. */
void event_send(const struct event *event);
/* Return how many events any thread has taken: read it before you look for what you wait for. */
static inline uint32_t event_count(const struct event *event)
{
	return waiters_events(&event->waiters);
}
/*
 * Take every pending event, and block until there is one, at most until @deadline (see clock.h).
 * An event that another thread took counts as well, if the count was @count before. A cancelled
 * thread leaves nothing behind.
 */
enum event_result event_wait(struct event *event, uint32_t count, uint64_t deadline);
/* Take every pending event without blocking. Leaves them to a thread that waits for one. */
enum event_result event_try(struct event *event);
/* Let event_shut() end the waits that begin from now on. Returns 0, or -1 with errno and the
 * sentence. */
int event_make_wakeable(struct event *event);
/* End the waits of all threads, as nobody is left who could send an event. */
void event_shut(struct event *event);

/* Return whether a wait goes on after a signal has ended its poll(2), as a read(2) would go on:
 * SA_RESTART does nothing for poll(2). */
bool event_wait_goes_on(void);

/* Return the connection to the daemon, which the caller then owns; -1 if there is none, or the
 * program has closed it. */
int event_steal_control(struct event *event);

#endif
