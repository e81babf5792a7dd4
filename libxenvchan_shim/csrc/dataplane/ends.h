/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The vchans' ends that this process has open. It is for xc_evtchn_status(), which programs call
 * from their is_open: too often to ask the daemon each time. All of our libraries in the process
 * share one table. Every function may be called from any thread.
 */
#ifndef KVMCHAN_ENDS_H
#define KVMCHAN_ENDS_H

#include <stdbool.h>
#include <stdint.h>

/* An end's place in the table, which is part of the end. */
struct listed_end {
	struct listed_end *next;
	uint32_t port;
	int32_t peer;		  /* the peer's domain */
	const uint8_t *peer_live; /* mapped for as long as this is listed */
	uint8_t waiting;	  /* the live byte's value before the peer has come */
};

/* Add an end. It must be removed before its memory is unmapped or freed. */
void ends_add(struct listed_end *end);
/* Remove an end; does nothing if it was not added. */
void ends_remove(struct listed_end *end);
/* Return whether this process has an end with this port. If so, set *@peer to the domain of the
 * other end, and *@is_there to whether it is connected. */
bool ends_find(uint32_t port, int32_t *peer, bool *is_there);

#endif
