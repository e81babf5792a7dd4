/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The sentence about a failure, kept per thread for kvmchan_last_error(). */
#ifndef KVMCHAN_ERROR_H
#define KVMCHAN_ERROR_H

#include <stdatomic.h>

struct xentoollog_logger;

/* Set errno to @error, keep the sentence, and print it if KVMCHAN_DEBUG is 1. Returns -1. */
int fail(int error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Pass this thread's sentence to a caller's logger, which may be NULL. Keeps errno. */
void error_log(struct xentoollog_logger *logger, const char *function);

/* Fail with ENOSYS in a function that is not emulated. The first call also says so, to the logger,
 * or to stderr if that is NULL. */
#define FAIL_UNSUPPORTED(logger, reason)                                                           \
	({                                                                                         \
		static atomic_flag said = ATOMIC_FLAG_INIT;                                        \
		fail_unsupported(&said, logger, __func__, reason);                                 \
	})
int fail_unsupported(atomic_flag *said, struct xentoollog_logger *logger, const char *function,
		     const char *reason);

#endif
