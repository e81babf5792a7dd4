/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One end of a vchan on memory that is already there: the data plane.
 *
 * Nothing here knows of the daemon or of Python. What sets a channel up fills a struct
 * kvmchan_grant and attaches; the calls that move data, declared in libxenvchan.h, are in vchan.c.
 */
#ifndef KVMCHAN_VCHAN_H
#define KVMCHAN_VCHAN_H

#include <stdint.h>

/* The libraries' version maps decide what of these they export. */
#pragma GCC visibility push(default)

#include "libxenvchan.h"

/* What the daemon grants one end of a channel. The descriptors pass to kvmchan_attach(). */
struct kvmchan_grant {
	int32_t region_fd;  /* sealed memory: Xen's page, then the rings */
	int32_t event_fd;   /* our end of the event channel */
	int32_t control_fd; /* the connection to the daemon, to be kept for whoever closes; or -1 */
	int32_t is_server;  /* 0 or 1 */
	uint32_t port;	    /* what ctrl->event_port shows */
	uint32_t left_order, right_order;
};

/*
 * Maps the region, takes our place in the shared page and tells the peer. Takes the descriptors,
 * also when it fails; region_fd is closed at once, for the mapping alone keeps the end alive. NULL
 * with errno EINVAL (an order or size that can't be), EPROTO (the page's indexes can't be true),
 * ENOMEM.
 */
struct libxenvchan *kvmchan_attach(const struct kvmchan_grant *grant);

/* Says that our end is gone, and tells the peer. */
void kvmchan_hang_up(struct libxenvchan *ctrl);
/* The connection to the daemon, now the caller's; -1 where there is none, or the program has closed
 * it. */
int kvmchan_steal_control(struct libxenvchan *ctrl);
/* Unmaps, closes what descriptors there are, and frees, with xs_path. */
void kvmchan_detach(struct libxenvchan *ctrl);

#pragma GCC visibility pop

#endif
