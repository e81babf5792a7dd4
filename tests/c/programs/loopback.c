/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The smallest whole use of libxenvchan: a domain talks to itself, in one thread: loopback DOMAIN
 * PATH. */
#include <libxenvchan.h>
#include <stdlib.h>

#include "../rig/program.h"

int main(int argc, char **argv)
{
	struct libxenvchan *server, *client;
	char data[6];

	EXPECT(argc == 3);
	server = libxenvchan_server_init(NULL, atoi(argv[1]), argv[2], 0, 0);
	EXPECT(server);
	EXPECT(libxenvchan_is_open(server) == 2);
	client = libxenvchan_client_init(NULL, atoi(argv[1]), argv[2]);
	EXPECT(client);
	EXPECT(libxenvchan_is_open(server) == 1 && libxenvchan_is_open(client) == 1);
	EXPECT(libxenvchan_send(client, "hello", 6) == 6);
	EXPECT(libxenvchan_data_ready(server) == 6);
	EXPECT(libxenvchan_recv(server, data, 6) == 6 && strcmp(data, "hello") == 0);
	EXPECT(libxenvchan_write(server, "world", 6) == 6);
	EXPECT(libxenvchan_read(client, data, 6) == 6 && strcmp(data, "world") == 0);
	libxenvchan_close(client);
	EXPECT(libxenvchan_is_open(server) == 0);
	libxenvchan_close(server);
	say("ok");
	return 0;
}
