/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One end of a channel's event channel.
 *
 * Between two ends on this machine it is a UNIX stream socket whose bytes are events. A socket pair
 * and not two eventfds: an end then owns one descriptor, the very one that the program is given to
 * select on; a peer can neither take our events nor change our descriptor's flags; and once peer
 * and daemon are both gone the kernel itself ends our wait.
 *
 * Where the peer is in a guest, or we are, events are interrupts there, and an eventfd is all that
 * they can be on the way. Nobody's death ends a wait on one, so such a wait also watches the
 * connection to the daemon, which would tell of the peer's.
 */
#ifndef KVMCHAN_EVENT_H
#define KVMCHAN_EVENT_H

#include <stdbool.h>
#include <stdint.h>

#include "dataplane/connection.h"
#include "dataplane/grant.h"
#include "dataplane/handle.h"

struct event {
	struct xenevtchn_handle handle; /* it is what ctrl->event points to */
	uint32_t port;
	int fd; /* what we wait on, and the program selects on */
	enum kvmchan_events kind;
	int notify_fd;	/* KVMCHAN_EVENTS_EVENTFD */
	void *doorbell; /* KVMCHAN_EVENTS_DOORBELL: the page it is in */
	uint32_t doorbell_value;
	struct connection control;
};

enum event_result {
	EVENT_TAKEN,
	EVENT_LAST,	   /* one was taken, and nobody is left who could send another */
	EVENT_NONE,	   /* event_try only */
	EVENT_INTERRUPTED, /* a signal */
	EVENT_LOST, /* nobody is left who could send one, or the descriptor is no longer ours */
};

/* Marks a file of ours that is no socket, so that it can be told from what a program opens by its
 * number. -1 with errno and sentence. */
int event_mark(int fd);
bool event_is_marked(int fd);

/* Takes the grant's event, notify and control descriptors. */
void event_take_over(struct event *event, const struct kvmchan_grant *grant);
/* Makes what was taken over fit for use, by a grant that was checked. -1 with errno and sentence.
 */
int event_prepare(struct event *event, const struct kvmchan_grant *grant);
/* Closes and unmaps, prepared or not. */
void event_end(struct event *event);

/* Sends the peer an event. Never blocks, never raises SIGPIPE; events that are already pending are
 * enough. */
void event_send(const struct event *event);
/* Takes every pending event; blocks until there is one. */
enum event_result event_wait(struct event *event);
/* The same without blocking. */
enum event_result event_try(struct event *event);

/* After a poll(2) that a signal ended, which no SA_RESTART prevents: whether the wait goes on, as
 * that of a read(2) would. */
bool event_wait_goes_on(void);

/* The connection to the daemon, now the caller's; -1 where there is none, or the program has closed
 * it. */
int event_steal_control(struct event *event);

#endif
