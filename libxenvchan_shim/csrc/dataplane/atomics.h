/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Every access to memory that the peer writes too goes through here, so that the ordering is argued
 * once.
 *
 * The fields are plain integers of Xen's ABI, so these are the compiler's C11-model builtins on
 * them. Two patterns are all there is:
 *
 *   data:  copy into the ring, publish(prod)  ->  observe(prod), copy out of the ring
 *          copy out of the ring, publish(cons) ->  observe(cons), copy into the ring
 *   sleep: request(bit), observe(index)       ||  publish(index), requested(bit)
 *
 * The second is Dekker's: all four are sequentially consistent, so at least one end sees the
 * other's store, and either the sleeper finds the change or the changer finds the request. On x86
 * only publish and request cost a locked instruction.
 */
#ifndef KVMCHAN_ATOMICS_H
#define KVMCHAN_ATOMICS_H

#include <stdbool.h>
#include <stdint.h>

/* Makes an index visible, and everything written before it. Pairs with observe(); fence against
 * requested(). */
static inline void publish(uint32_t *index, uint32_t value)
{
	__atomic_store_n(index, value, __ATOMIC_SEQ_CST);
}

/* An index for onlookers; nothing depends on it. */
static inline void show(uint32_t *index, uint32_t value)
{
	__atomic_store_n(index, value, __ATOMIC_RELAXED);
}

/* The peer's index, and everything it wrote before that. Pairs with publish(); fence after
 * request(). */
static inline uint32_t observe(const uint32_t *index)
{
	return __atomic_load_n(index, __ATOMIC_SEQ_CST);
}

/* Asks the peer for events. Pairs with requested() and take_request(). */
static inline void request(uint8_t *notify, uint8_t bits)
{
	__atomic_fetch_or(notify, bits, __ATOMIC_SEQ_CST);
}

/* The same, forgetting what an earlier client asked for. */
static inline void request_only(uint8_t *notify, uint8_t bits)
{
	__atomic_store_n(notify, bits, __ATOMIC_SEQ_CST);
}

/* The bits asked for. After publish(): the load that the sleeper's request() is fenced against. */
static inline uint8_t requested(const uint8_t *notify)
{
	return __atomic_load_n(notify, __ATOMIC_SEQ_CST);
}

/* Clears the bits; true if any of them was set, so that one request makes one event. */
static inline bool take_request(uint8_t *notify, uint8_t bits)
{
	return __atomic_fetch_and(notify, (uint8_t)~bits, __ATOMIC_SEQ_CST) & bits;
}

/* A live byte. Acquire: what its owner wrote before it hung up is seen after this. Pairs with
 * set_live(). */
static inline uint8_t live(const uint8_t *byte) { return __atomic_load_n(byte, __ATOMIC_ACQUIRE); }

static inline void set_live(uint8_t *byte, uint8_t value)
{
	__atomic_store_n(byte, value, __ATOMIC_SEQ_CST);
}

/* Tells the processor that we spin, which frees its pipeline (and a sibling thread) meanwhile. */
static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
	__asm__ volatile("yield" ::: "memory");
#else
	__asm__ volatile("" ::: "memory");
#endif
}

#endif
