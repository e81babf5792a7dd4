/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The clock by which waits are measured. */
#ifndef KVMCHAN_CLOCK_H
#define KVMCHAN_CLOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

/* A time that does not come. */
#define NEVER UINT64_MAX

/* Return the time now, in ns of CLOCK_MONOTONIC. */
static inline uint64_t time_now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* Return when a wait of at most @timeout ns ends that begins now; -1: never. */
static inline uint64_t deadline_of(int64_t timeout)
{
	return timeout < 0 ? NEVER : time_now() + (uint64_t)timeout;
}

static inline bool has_passed(uint64_t deadline)
{
	return deadline != NEVER && time_now() >= deadline;
}

#endif
