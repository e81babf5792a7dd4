/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "dataplane/waiters.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

bool waiters_lead(struct waiters *waiters)
{
	pthread_t first = 0, self = pthread_self();

	return atomic_compare_exchange_strong(&waiters->first, &first, self) || first == self;
}

/* The change is counted before the others are looked at, and whoever is one of the others counts
 * himself before the kernel compares: so either he does not sleep, or he is woken. */
static void change(struct waiters *waiters)
{
	atomic_fetch_add(&waiters->changes, 1);
	if (atomic_load(&waiters->others))
		syscall(SYS_futex, &waiters->changes, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void waiters_leave(struct waiters *waiters, bool took)
{
	int error = errno;

	if (took)
		atomic_fetch_add(&waiters->events, 1);
	atomic_store(&waiters->first, 0);
	change(waiters);
	errno = error;
}

static void count_out(void *waiters) { atomic_fetch_sub(&((struct waiters *)waiters)->others, 1); }

static enum waiters_result sleep_until(struct waiters *waiters, uint32_t changes, uint64_t deadline)
{
	struct timespec until = {
	    .tv_sec = (time_t)(deadline / 1000000000u),
	    .tv_nsec = (long)(deadline % 1000000000u),
	};

	if (syscall(SYS_futex, &waiters->changes, FUTEX_WAIT_BITSET_PRIVATE, changes,
		    deadline == NEVER ? NULL : &until, NULL, FUTEX_BITSET_MATCH_ANY) == 0)
		return WAITERS_LOOK;
	if (errno == EINTR)
		return WAITERS_INTERRUPTED;
	return errno == ETIMEDOUT ? WAITERS_LATE : WAITERS_LOOK;
}

enum waiters_result waiters_follow(struct waiters *waiters, uint32_t changes, uint64_t deadline)
{
	enum waiters_result result;
	int cancel;

	pthread_cleanup_push(count_out, waiters);
	atomic_fetch_add(&waiters->others, 1);
	/* As any blocked call of the C library, this one may be cancelled. */
	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &cancel);
	result = sleep_until(waiters, changes, deadline);
	pthread_setcanceltype(cancel, NULL);
	pthread_cleanup_pop(1);
	return result;
}

void waiters_stir(struct waiters *waiters)
{
	atomic_fetch_add(&waiters->events, 1);
	change(waiters);
}
