/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "dataplane/connection.h"

#include <sys/socket.h>
#include <unistd.h>

/* Return the kernel's number of the socket; 0 if @fd is no socket. */
static uint64_t socket_cookie(int fd)
{
	uint64_t cookie = 0;
	socklen_t size = sizeof(cookie);

	return getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &size) == 0 ? cookie : 0;
}

struct connection connection_take(int fd)
{
	return (struct connection){.fd = fd, .cookie = socket_cookie(fd)};
}

bool connection_is_there(const struct connection *connection)
{
	return connection->cookie && socket_cookie(connection->fd) == connection->cookie;
}

int connection_steal(struct connection *connection)
{
	int fd = connection_is_there(connection) ? connection->fd : -1;

	connection->fd = -1;
	return fd;
}

void connection_close(struct connection *connection)
{
	int fd = connection_steal(connection);

	if (fd >= 0)
		close(fd);
}
