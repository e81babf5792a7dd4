/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Every access to the indexes and flags that the peer uses too goes through here, so that the
 * memory order is argued once. The bytes of the rings are copied in ring.c.
 *
 * The fields are plain integers of Xen's ABI, so these are the compiler's C11-model builtins on
 * them. There are two patterns:
 *
 *   data:  copy into the ring, publish(prod)   ->  observe(prod), copy out of the ring
 *          copy out of the ring, publish(cons) ->  observe(cons), copy into the ring
 *   sleep: request(bit), observe(index)        ||  publish(index), requested(bit)
 *
 * The second is Dekker's: all four are sequentially consistent, so at least one end sees the
 * other's store, and either the sleeper finds the change or the changer finds the request. On x86
 * only publish and request cost a locked instruction.
 */
#ifndef KVMCHAN_ATOMICS_H
#define KVMCHAN_ATOMICS_H

#include <stdbool.h>
#include <stdint.h>

/* Publish an index, and everything written before it. Pairs with shared_observe(); is the fence
 * before shared_requested(). */
static inline void shared_publish(uint32_t *index, uint32_t value)
{
	__atomic_store_n(index, value, __ATOMIC_SEQ_CST);
}

/* Show an index to onlookers. Nothing depends on it. */
static inline void shared_show(uint32_t *index, uint32_t value)
{
	__atomic_store_n(index, value, __ATOMIC_RELAXED);
}

/* Return the peer's index, and see everything it wrote before that. Pairs with shared_publish(); is
 * the fence after shared_request(). */
static inline uint32_t shared_observe(const uint32_t *index)
{
	return __atomic_load_n(index, __ATOMIC_SEQ_CST);
}

/* Ask the peer for events. Pairs with shared_requested() and shared_take_request(). */
static inline void shared_request(uint8_t *notify, uint8_t bits)
{
	__atomic_fetch_or(notify, bits, __ATOMIC_SEQ_CST);
}

/* Ask the peer for events, and forget what an earlier client asked for. */
static inline void shared_request_only(uint8_t *notify, uint8_t bits)
{
	__atomic_store_n(notify, bits, __ATOMIC_SEQ_CST);
}

/* Return the bits that the peer asked for. Call it after shared_publish(): the sleeper's
 * shared_request() is fenced against this load. */
static inline uint8_t shared_requested(const uint8_t *notify)
{
	return __atomic_load_n(notify, __ATOMIC_SEQ_CST);
}

/* Clear the bits, and return whether any of them was set, so that one request makes one event. */
static inline bool shared_take_request(uint8_t *notify, uint8_t bits)
{
	return __atomic_fetch_and(notify, (uint8_t)~bits, __ATOMIC_SEQ_CST) & bits;
}

/* Return a live byte, and see everything its owner wrote before it hung up. Pairs with
 * shared_set_live(). */
static inline uint8_t shared_live(const uint8_t *byte)
{
	return __atomic_load_n(byte, __ATOMIC_ACQUIRE);
}

/* Change our live byte. Pairs with shared_live(). */
static inline void shared_set_live(uint8_t *byte, uint8_t value)
{
	__atomic_store_n(byte, value, __ATOMIC_SEQ_CST);
}

#endif
