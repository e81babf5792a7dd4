/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the daemon grants one end of a channel: its message Grant (kvmchand/wire/client.py), whose
 * fields have the same names here, and the descriptors that come beside it. The embedded Python
 * fills it in (build_embed.py reads this file), wire/dataplane.py has it for ctypes.
 */
#ifndef KVMCHAN_GRANT_H
#define KVMCHAN_GRANT_H

#include <stdbool.h>
#include <stdint.h>

/* cffi: types */
/* What an end waits on, and how it sends its peer an event. */
enum kvmchan_events {
	/* Both ends are on this machine: event_fd is our end of a socket pair. */
	KVMCHAN_EVENTS_SOCKET,
	/* The peer is in a guest: event_fd and notify_fd are eventfds. Both are non-blocking. */
	KVMCHAN_EVENTS_EVENTFD,
	/* We are in a guest: event_fd is a non-blocking eventfd, and a store to the ivshmem
	 * device's doorbell interrupts the peer. */
	KVMCHAN_EVENTS_DOORBELL,
	/* The same two where other ends wait for the same eventfd, so that nobody may read it:
	 * event_fd is an epoll with it, edge-triggered. Events may be meant for others. A server's
	 * end in a guest always has an epoll, since another eventfd may come (move.h). */
	KVMCHAN_EVENTS_SHARED_EVENTFD,
	KVMCHAN_EVENTS_SHARED_DOORBELL,
};

struct kvmchan_grant {
	int32_t region_fd; /* the memory: Xen's page, then the rings. Sealed, or a VFIO device */
	int32_t event_fd;
	int32_t notify_fd;  /* -1 but for eventfds */
	int32_t control_fd; /* the connection to the daemon, which whoever closes needs; or -1 */
	int32_t is_server;  /* 0 or 1 */
	uint32_t left_order, right_order;
	uint32_t events;	 /* enum kvmchan_events */
	uint32_t doorbell_value; /* what interrupts our peer; with a doorbell */
	uint64_t channel;
	uint64_t offset;   /* where region_fd has the memory */
	uint64_t doorbell; /* where it has BAR 0; with a doorbell */
	char path[4352];   /* absolute; "" where there is none */
};
/* cffi: end */

#define KVMCHAN_MOVE_MAGIC "kvmmove" /* and its NUL */

/* What a server's end in a guest may be sent behind its grant: where it goes on. No JSON, since the
 * data plane reads it (kvmchand/wire/move.py). The memory is beside it. */
struct kvmchan_move {
	char magic[8];
	uint64_t offset;   /* as in the grant */
	uint64_t doorbell; /* the same */
	uint32_t doorbell_value;
	uint32_t reserved; /* 0 */
};

/* Return whether an end rings the device's doorbell. */
static inline bool events_have_doorbell(uint32_t events)
{
	return events == KVMCHAN_EVENTS_DOORBELL || events == KVMCHAN_EVENTS_SHARED_DOORBELL;
}

static inline bool events_are_shared(uint32_t events)
{
	return events == KVMCHAN_EVENTS_SHARED_EVENTFD || events == KVMCHAN_EVENTS_SHARED_DOORBELL;
}

/* Return the number that the event channel has in our domain: port_of() in kvmchand/wire/client.py.
 */
static inline uint32_t grant_port(const struct kvmchan_grant *grant)
{
	return (uint32_t)(2 * grant->channel + !grant->is_server) & 0x7fffffff;
}

#endif
