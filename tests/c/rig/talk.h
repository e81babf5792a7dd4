/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A whole life of a vchan between two ends of one thread. */
#ifndef TALK_H
#define TALK_H

#include <libxenvchan.h>

#include "program.h"

static inline void talk(const char *path)
{
	struct libxenvchan *server = libxenvchan_server_init(NULL, 0, path, 0, 0), *client;
	char data[5];

	EXPECT(server);
	client = libxenvchan_client_init(NULL, 0, path);
	EXPECT(client);
	EXPECT(libxenvchan_send(client, "there", 5) == 5);
	EXPECT(libxenvchan_recv(server, data, 5) == 5 && memcmp(data, "there", 5) == 0);
	libxenvchan_close(client);
	libxenvchan_close(server);
}

#endif
