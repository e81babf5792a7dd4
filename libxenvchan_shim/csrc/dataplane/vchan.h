/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One end of a vchan on memory that is already there: the data plane.
 *
 * Nothing here knows of the daemon or of Python. What sets a channel up fills a struct
 * kvmchan_grant and attaches; the calls that move data, declared in libxenvchan.h, are in vchan.c.
 */
#ifndef KVMCHAN_VCHAN_H
#define KVMCHAN_VCHAN_H

#include <stddef.h>
#include <stdint.h>

/* The libraries' version maps decide what of these they export. */
#pragma GCC visibility push(default)

#include "libxenvchan.h"

/* What an end waits on, and how it sends its peer an event. */
enum kvmchan_events {
	/* Both ends are on this machine: event_fd is our end of a socket pair. */
	KVMCHAN_EVENTS_SOCKET,
	/* The peer is in a guest: event_fd and notify_fd are eventfds. Both are non-blocking. */
	KVMCHAN_EVENTS_EVENTFD,
	/* We are in a guest: event_fd is a non-blocking eventfd, and a store to the ivshmem
	 * device's doorbell interrupts the peer. */
	KVMCHAN_EVENTS_DOORBELL,
};

/* What the daemon grants one end of a channel. The descriptors pass to kvmchan_attach(). */
struct kvmchan_grant {
	int32_t region_fd; /* the memory: Xen's page, then the rings. Sealed, or a VFIO device */
	int32_t event_fd;
	int32_t notify_fd;  /* -1 but for KVMCHAN_EVENTS_EVENTFD */
	int32_t control_fd; /* the connection to the daemon, to be kept for whoever closes; or -1 */
	int32_t is_server;  /* 0 or 1 */
	uint32_t port;	    /* what ctrl->event_port shows */
	uint32_t left_order, right_order;
	uint32_t events;	  /* enum kvmchan_events */
	uint32_t doorbell_value;  /* what rings our peer; with KVMCHAN_EVENTS_DOORBELL */
	uint64_t region_offset;	  /* where region_fd has the memory */
	uint64_t doorbell_offset; /* where it has BAR 0; with KVMCHAN_EVENTS_DOORBELL */
};

/*
 * Maps the region, takes our place in the shared page and tells the peer. Takes the descriptors,
 * also when it fails; region_fd is closed at once, for the mapping alone keeps the end alive. NULL
 * with errno EINVAL (an order, size, offset or kind of events that can't be), EPROTO (the page's
 * indexes can't be true), ENOMEM.
 */
struct libxenvchan *kvmchan_attach(const struct kvmchan_grant *grant);

/*
 * Copy the next @size bytes, and leave them to be read. Never blocks. Returns @size; 0 if fewer are
 * there, and then asks for an event when there are more; or -1 with errno EINVAL (@size is too
 * large for any call) or EPROTO (the peer broke the ring's rules). As the peer may change the bytes
 * until they are taken, look at the copy only.
 */
int kvmchan_peek(struct libxenvchan *ctrl, void *data, size_t size);

/* Says that our end is gone, and tells the peer. */
void kvmchan_hang_up(struct libxenvchan *ctrl);
/* The connection to the daemon, now the caller's; -1 where there is none, or the program has closed
 * it. */
int kvmchan_steal_control(struct libxenvchan *ctrl);
/* Unmaps, closes what descriptors there are, and frees, with xs_path. */
void kvmchan_detach(struct libxenvchan *ctrl);

#pragma GCC visibility pop

#endif
