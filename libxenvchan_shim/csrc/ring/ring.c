/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ring/ring.h"

#include <string.h>

#include "ring/atomics.h"

static ring_copier *copier = memcpy;

void ring_copy_by(ring_copier *chosen) { __atomic_store_n(&copier, chosen, __ATOMIC_RELAXED); }

static void copy(void *to, const void *from, size_t count)
{
	__atomic_load_n(&copier, __ATOMIC_RELAXED)(to, from, count);
}

/* Return how many bytes are in the ring by the indexes. */
static uint32_t filled_by(const struct ring *ring, uint32_t own, uint32_t peer)
{
	return ring->produces ? own - peer : peer - own;
}

uint32_t ring_glance(const struct ring *ring)
{
	uint32_t own = shared_observe(ring->own_index);
	uint32_t filled = filled_by(ring, own, shared_observe(ring->peer_index));

	if (filled > ring->size)
		return RING_BROKEN;
	return ring->produces ? ring->size - filled : filled;
}

uint32_t ring_look(struct ring *ring)
{
	uint32_t peer = shared_observe(ring->peer_index);
	uint32_t filled = filled_by(ring, ring->own, peer);

	if (filled > ring->size)
		return RING_BROKEN;
	ring->peer = peer;
	return ring_known(ring);
}

/* Return how many of @count bytes from @offset on lie before the ring's end. */
static uint32_t before_end(const struct ring *ring, uint32_t offset, uint32_t count)
{
	uint32_t left = ring->size - offset;

	return count < left ? count : left;
}

uint8_t *ring_place(const struct ring *ring, uint32_t count, uint32_t *first)
{
	uint32_t offset = ring->own & (ring->size - 1);

	*first = before_end(ring, offset, count);
	return ring->buffer + offset;
}

void ring_move(struct ring *ring, uint32_t count)
{
	ring->own += count;
	shared_publish(ring->own_index, ring->own);
}

static inline void copy_in(const struct ring *ring, const void *data, uint32_t count)
{
	uint32_t offset = ring->own & (ring->size - 1);
	uint32_t first = before_end(ring, offset, count);

	if (first) /* a call of no bytes may come without a buffer */
		copy(ring->buffer + offset, data, first);
	if (count > first)
		copy(ring->buffer, (const uint8_t *)data + first, count - first);
}

void ring_fill(const struct ring *ring, const void *data, uint32_t count)
{
	copy_in(ring, data, count);
}

void ring_put(struct ring *ring, const void *data, uint32_t count)
{
	copy_in(ring, data, count);
	ring_move(ring, count);
}

static inline void copy_out(const struct ring *ring, void *data, uint32_t count)
{
	uint32_t offset = ring->own & (ring->size - 1);
	uint32_t first = before_end(ring, offset, count);

	if (first)
		copy(data, ring->buffer + offset, first);
	if (count > first)
		copy((uint8_t *)data + first, ring->buffer, count - first);
}

void ring_peek(const struct ring *ring, void *data, uint32_t count) { copy_out(ring, data, count); }

void ring_get(struct ring *ring, void *data, uint32_t count)
{
	copy_out(ring, data, count);
	ring_move(ring, count);
}
