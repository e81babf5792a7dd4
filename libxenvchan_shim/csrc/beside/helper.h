/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The process beside the program that runs Python for it: kvmchan-helper, of this folder. It ends
 * when the program does. A forked child shares it. */
#ifndef KVMCHAN_HELPER_H
#define KVMCHAN_HELPER_H

#include <stdbool.h>
#include <stddef.h>

#include "runtime/message.h"

/* Start it unless it is there. Returns 0, or an errno with the sentence in @sentence, which has
 * @room bytes. */
int helper_start(char *sentence, int room);
bool helper_is_there(void);
/* Send @size bytes of a message and descriptors, which stay the caller's, to the helper. Starts
 * another if it has ended. Returns as helper_start(). */
int helper_send(const struct message *message, size_t size, const int *fds, int count,
		char *sentence, int room);

#endif
