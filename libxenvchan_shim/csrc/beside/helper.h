/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The process beside the program that runs Python for it: kvmchan-helper, of this folder. It ends
 * when the program does. A forked child shares it. */
#ifndef KVMCHAN_HELPER_H
#define KVMCHAN_HELPER_H

#include <stddef.h>

#include "dataplane/connection.h"
#include "runtime/message.h"

/* Start the helper unless it is there. Send a message and the @size bytes of @data to the helper,
 * and beside them the socket for the reply, which stays the caller's. *@to is the helper. Returns
 * 0; or an errno with the sentence in
 * @sentence, which has @room bytes; or ECONNRESET if it has ended. */
int helper_send(const struct message *message, const void *data, size_t size, int reply_fd,
		struct connection *to, char *sentence, int room);
/* A helper has ended: the next that is needed is another. */
void helper_forget(const struct connection *ended);

#endif
