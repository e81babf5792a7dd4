/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "dataplane/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#pragma GCC visibility push(default)
#include "kvmchan.h"
#pragma GCC visibility pop

/* The part of Xen's logger (xentoollog.h) that we call. The level numbers belong to its ABI. */
struct xentoollog_logger {
	void (*vmessage)(struct xentoollog_logger *logger, int level, int errnoval,
			 const char *context, const char *format, va_list arguments);
};
#define XTL_ERROR 8

static _Thread_local char sentence[512];

const char *kvmchan_last_error(void) { return sentence; }

int fail(int error, const char *format, ...)
{
	va_list arguments;
	const char *debug = secure_getenv("KVMCHAN_DEBUG");

	va_start(arguments, format);
	vsnprintf(sentence, sizeof(sentence), format, arguments);
	va_end(arguments);
	if (debug && strcmp(debug, "1") == 0)
		fprintf(stderr, "kvmchan: %s\n", sentence);
	errno = error;
	return -1;
}

static void log_message(struct xentoollog_logger *logger, int error, const char *context,
			const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	logger->vmessage(logger, XTL_ERROR, error, context, format, arguments);
	va_end(arguments);
}

void error_log(struct xentoollog_logger *logger, const char *function)
{
	int error = errno;

	/* errno goes beside the sentence, which already says what it means. */
	if (logger && logger->vmessage)
		log_message(logger, -1, "kvmchan", "%s: %s", function, sentence);
	errno = error;
}

int fail_unsupported(atomic_flag *said, struct xentoollog_logger *logger, const char *function,
		     const char *reason)
{
	fail(ENOSYS, "not emulated by kvmchan: %s", reason);
	if (atomic_flag_test_and_set(said))
		return -1;
	if (logger)
		error_log(logger, function);
	else
		fprintf(stderr, "kvmchan: %s: %s\n", function, sentence);
	errno = ENOSYS;
	return -1;
}
