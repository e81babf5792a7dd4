/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A connection to the daemon whose number a program may have closed, and given to something else.
 */
#ifndef KVMCHAN_CONNECTION_H
#define KVMCHAN_CONNECTION_H

#include <stdbool.h>
#include <stdint.h>

struct connection {
	int fd;
	uint64_t cookie; /* the kernel's own number of the socket that fd was, when we got it */
};

/* Takes the descriptor; -1 is no connection. */
struct connection connection_take(int fd);
/* Whether the number still is that connection. */
bool connection_is_there(const struct connection *connection);
/* The descriptor, now the caller's; -1 where there is none, or the program has closed it. */
int connection_steal(struct connection *connection);
/* Closes it without a word to the daemon. */
void connection_close(struct connection *connection);

#endif
