/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One direction of a vchan, as one end sees it.
 *
 * Everything that an address is computed from is private. Of the shared page only the peer's index
 * is read, and it is checked against the size before it is believed. A ring lives as long as the
 * mapping it points into.
 */
#ifndef KVMCHAN_RING_H
#define KVMCHAN_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RING_BROKEN UINT32_MAX

struct ring {
	uint32_t *own_index;	    /* shared; we write it, and never read it back */
	const uint32_t *peer_index; /* shared; the peer writes it */
	uint8_t *buffer;	    /* shared, size bytes */
	uint32_t size;		    /* a power of two */
	uint32_t own;		    /* our index */
	uint32_t peer;		    /* the peer's index when we last looked */
	bool produces;
};

/* Copies @count bytes that do not overlap, as memcpy(). */
typedef void *ring_copier(void *to, const void *from, size_t count);

/* Have all rings copy so from now on; they begin with memcpy(). From any thread. */
void ring_copy_by(ring_copier *copier);

/* Return the bytes to read (consumer) or the room to write (producer) as last seen. Touches no
 * shared memory. */
static inline uint32_t ring_known(const struct ring *ring)
{
	/* A consumer's peer is ahead of it by the filled bytes; a producer's is behind it by them.
	 */
	uint32_t known =
	    ring->produces ? ring->size - (ring->own - ring->peer) : ring->peer - ring->own;

	/* Never more than the ring, also if a second thread has looked when it should not. */
	return known <= ring->size ? known : 0;
}
/* Look at the peer's index, and return the same; RING_BROKEN if the index is impossible. */
uint32_t ring_look(struct ring *ring);
/* Return the same as ring_look(), but keep nothing of it: for threads that this direction is not.
 */
uint32_t ring_glance(const struct ring *ring);
/* Copy @count bytes into the ring, at most ring_known(). */
void ring_fill(const struct ring *ring, const void *data, uint32_t count);
/* The same, and publish our index. */
void ring_put(struct ring *ring, const void *data, uint32_t count);
/* Copy @count bytes out of the ring, at most ring_known(), and publish our index. */
void ring_get(struct ring *ring, void *data, uint32_t count);
/* Copy the bytes that ring_get() would, and leave them in the ring. */
void ring_peek(const struct ring *ring, void *data, uint32_t count);
/* Return where @count bytes from our index on lie, of which @first come before the ring's end: the
 * others are at its start. */
uint8_t *ring_place(const struct ring *ring, uint32_t count, uint32_t *first);
/* Pass @count bytes, at most ring_known(), that were read or written in place, and publish our
 * index. */
void ring_move(struct ring *ring, uint32_t count);

#endif
