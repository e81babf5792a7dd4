/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One end of a channel's event channel: a UNIX stream socket whose bytes are events.
 *
 * A socket pair and not two eventfds: an end then owns one descriptor, the very one that the
 * program is given to select on; a peer can neither take our events nor change our descriptor's
 * flags; and once peer and daemon are both gone the kernel itself ends our wait.
 */
#ifndef KVMCHAN_EVENT_H
#define KVMCHAN_EVENT_H

enum event_result {
	EVENT_TAKEN,
	EVENT_NONE,	   /* event_try only */
	EVENT_INTERRUPTED, /* a signal */
	EVENT_LOST, /* nobody is left who could send one, or the descriptor is no longer ours */
};

/* Sends the peer an event. Never blocks, never raises SIGPIPE; events that are already pending are
 * enough. */
void event_send(int fd);
/* Takes every pending event; blocks until there is one. */
enum event_result event_wait(int fd);
/* The same without blocking. */
enum event_result event_try(int fd);

#endif
