/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The ends of vchans that this process has open, for xc_evtchn_status(): programs call it from
 * their is_open, too often to ask the daemon each time. One table for all of our libraries in the
 * process.
 */
#ifndef KVMCHAN_ENDS_H
#define KVMCHAN_ENDS_H

#include <stdbool.h>
#include <stdint.h>

/* What the table has of an end; part of it. */
struct listed_end {
	struct listed_end *next;
	uint32_t port;
	int32_t peer;		  /* the peer's domain */
	const uint8_t *peer_live; /* mapped for as long as this is listed */
	uint8_t waiting;	  /* what it is before the peer has come */
};

void ends_add(struct listed_end *end);
/* No harm where it was not added. */
void ends_remove(struct listed_end *end);
/* Whether this process has an end of this port; if so, whose the other end is, and if it is there.
 */
bool ends_find(uint32_t port, int32_t *peer, bool *is_there);

#endif
