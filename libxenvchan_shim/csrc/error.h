/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The sentence behind a failure: kept per thread for kvmchan_last_error(). */
#ifndef KVMCHAN_ERROR_H
#define KVMCHAN_ERROR_H

struct xentoollog_logger;

/* Sets errno to @error, keeps the sentence, prints it if KVMCHAN_DEBUG=1, and returns -1. */
int fail(int error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Passes this thread's sentence to a caller's logger, which may be NULL. */
void error_log(struct xentoollog_logger *logger, const char *function);

#endif
