/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The sentence behind a failure: kept per thread for kvmchan_last_error(). */
#ifndef KVMCHAN_ERROR_H
#define KVMCHAN_ERROR_H

#include <stdatomic.h>

struct xentoollog_logger;

/* Sets errno to @error, keeps the sentence, prints it if KVMCHAN_DEBUG=1, and returns -1. */
int fail(int error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Passes this thread's sentence to a caller's logger, which may be NULL. */
void error_log(struct xentoollog_logger *logger, const char *function);

/* Fails, with ENOSYS, in a function that is not emulated, and says so: at its first call, to the
 * logger, or to stderr where that is NULL. */
#define FAIL_UNSUPPORTED(logger, reason)                                                           \
	({                                                                                         \
		static atomic_flag said = ATOMIC_FLAG_INIT;                                        \
		fail_unsupported(&said, logger, __func__, reason);                                 \
	})
int fail_unsupported(atomic_flag *said, struct xentoollog_logger *logger, const char *function,
		     const char *reason);

#endif
