/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "small.h"

#include <string.h>

uint8_t out[BIG], in[BIG];

void open_small(struct channel *channel)
{
	channel_open(channel, 10, 11);
	take_events(channel->server);
}

void client_puts(struct channel *channel, uint64_t position, uint32_t count)
{
	pattern_fill(1, position, out, count);
	equal(libxenvchan_send(channel->client, out, count), count);
}

void server_gets(struct channel *channel, uint64_t position, uint32_t count)
{
	memset(in, 0, sizeof(in));
	equal(libxenvchan_recv(channel->server, in, count), count);
	pattern_check(1, position, in, count);
}

void closes(struct channel *channel, bool server, bool dies)
{
	if (server && dies)
		channel_server_dies(channel);
	else if (server)
		end_close(&channel->server);
	else if (dies)
		channel_client_dies(channel);
	else
		end_close(&channel->client);
}
