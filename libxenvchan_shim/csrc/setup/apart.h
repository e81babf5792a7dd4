/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A thread of our own for what the caller's may be unfit for: it may have a small stack, be about
 * to be cancelled, or be interrupted by a signal's handler at any time. */
#ifndef KVMCHAN_APART_H
#define KVMCHAN_APART_H

/* Run @body(@argument) on a new thread with KVMCHAN_RUNTIME_STACK bytes of stack, which no signal
 * interrupts, and wait for its end. The caller is neither cancelled nor interrupted meanwhile.
 * Returns 0, or -1 with errno and the sentence if there can be no such thread. */
int run_apart(void (*body)(void *argument), void *argument);

#endif
