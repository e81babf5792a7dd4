/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Starts without stdin, stdout and stderr, whose numbers the program may yet give to files it
 * prints to: none may become the library's. no_stdio PATH; tells by its exit status. */
#include <fcntl.h>
#include <libxenvchan.h>

#include "../rig/program.h"

static void expect_none(void)
{
	for (int fd = 0; fd <= 2; fd++)
		EXPECT(fcntl(fd, F_GETFD) == -1 && errno == EBADF);
}

int main(int argc, char **argv)
{
	struct libxenvchan *server, *client;
	char data[5];

	EXPECT(argc == 2);
	for (int fd = 0; fd <= 2; fd++)
		close(fd);
	EXPECT(!libxenvchan_client_init(NULL, 0, argv[1]));
	expect_none();
	server = libxenvchan_server_init(NULL, 0, argv[1], 0, 0);
	EXPECT(server);
	expect_none();
	client = libxenvchan_client_init(NULL, 0, argv[1]);
	EXPECT(client);
	expect_none();
	EXPECT(libxenvchan_send(client, "hello", 5) == 5);
	EXPECT(libxenvchan_recv(server, data, 5) == 5 && memcmp(data, "hello", 5) == 0);
	libxenvchan_close(client);
	expect_none();
	libxenvchan_close(server);
	expect_none();
	return 0;
}
