/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The channel of most tests of calls: the client writes into the smaller ring, the server into the
 * larger. */
#ifndef KVMCHAN_TEST_SMALL_H
#define KVMCHAN_TEST_SMALL_H

#include "harness.h"

#define LEFT 1024u
#define RIGHT 2048u
#define BIG 8192u

/* What a test sends, and what it receives. */
extern uint8_t out[BIG], in[BIG];

/* Opens it; no event is pending. */
void open_small(struct channel *channel);
/* Puts @count bytes of stream 1 from @position into the client's ring, and fails if they don't fit.
 */
void client_puts(struct channel *channel, uint64_t position, uint32_t count);
/* Takes them at the server's end. */
void server_gets(struct channel *channel, uint64_t position, uint32_t count);
/* One of its ends goes. */
void closes(struct channel *channel, bool server, bool dies);

#endif
