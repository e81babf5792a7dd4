/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How a server's end in a guest goes on in other memory, while it waits for its first client.
 *
 * When the link to the host is lost, or a device has to go, the guest's daemon moves such an end
 * into memory of the guest's own, where no client can come. Once the host has offered it again, the
 * daemon moves it onto a device. The program keeps its handle, its rings' addresses, its
 * descriptor, and what it has written: only the memory behind the addresses is another.
 *
 * An end may move as long as it is OFFERED. It ceases to be when one of our threads first sees
 * something of a client, since that client's connection can not move. Both are done with the lock
 * held, so what a call has seen of a client is never gone when it is used. Programs may write
 * before a client comes, and what they write is published with the lock held, too.
 */
#ifndef KVMCHAN_MOVE_H
#define KVMCHAN_MOVE_H

#include "dataplane/end.h"

/* Let the daemon move an end that was attached, if it is one that it moves. Returns 0, or -1 with
 * errno and the sentence. */
int vchan_let_move(struct vchan *v);

/* ---- of an end that is OFFERED ---- */

/* ring_look(), vchan_is_open() and ring_glance(). If they see a client, the end stays. */
uint32_t offered_look(struct vchan *v, struct way *way);
int offered_is_open(struct vchan *v);
uint32_t offered_glance(struct vchan *v, const struct way *way);
/* ring_put(). */
void offered_put(struct vchan *v, const void *data, uint32_t count);
/* Let the end stay where it is from now on. */
void offered_stay(struct vchan *v);

/* offered_stay(), if it is OFFERED. */
static inline void vchan_stay(struct vchan *v)
{
	if (vchan_state(v) == OFFERED)
		offered_stay(v);
}

#endif
