/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the caller's thread may be unfit for: it may have a small stack, be about to be cancelled,
 * or be interrupted by a signal's handler, which may never return to us.
 */
#ifndef KVMCHAN_APART_H
#define KVMCHAN_APART_H

#include <stddef.h>

/* From here to the matching undisturbed_end(), the caller is neither cancelled nor interrupted by a
 * handler. May be nested. */
void undisturbed_begin(void);
void undisturbed_end(void);
/* In between, let the caller be disturbed as before the first of them, to wait for something. What
 * undisturbed_pause() returns, undisturbed_resume() takes. If the thread leaves in between, all of
 * them have ended. */
int undisturbed_pause(void);
void undisturbed_resume(int depth);

#define APART_STACK (1024 * 1024)

/* Run @body(@argument) on a new thread with APART_STACK bytes of stack, which no signal
 * interrupts, and wait for its end. To be called undisturbed. Returns 0, or -1 with errno and the
 * sentence if there can be no such thread. */
int run_apart(void (*body)(void *argument), void *argument);
/* The same on the caller's thread if its stack has room for @size bytes: two wake-ups of a thread
 * take longer than most calls. */
int run_where_there_is_room(size_t size, void (*body)(void *argument), void *argument);

#endif
