/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A connection to the daemon. The program may have closed its descriptor, and opened something else
 * by that number, so every use looks first.
 */
#ifndef KVMCHAN_CONNECTION_H
#define KVMCHAN_CONNECTION_H

#include <stdbool.h>
#include <stdint.h>

struct connection {
	int fd;
	uint64_t cookie; /* the kernel's own number of the socket that fd was, when we got it */
};

/* Make a connection of a descriptor, which it then owns; -1 is no connection. */
struct connection connection_take(int fd);
/* Return whether the number still is that connection. */
bool connection_is_there(const struct connection *connection);
/* Return the descriptor, which the caller then owns; -1 if there is none, or the program has closed
 * it. */
int connection_steal(struct connection *connection);
/* Close the connection without telling the daemon first. Never blocks. */
void connection_close(struct connection *connection);

#endif
