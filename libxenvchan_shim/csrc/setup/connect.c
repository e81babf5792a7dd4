/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "setup/connect.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "setup/daemon.h"
#include "setup/stdio.h"

#define RUNTIME_DIR "/run/kvmchand"
#define DOMAIN_DIGITS 5

/* As socket_path() of libxenvchan_shim/connection.py. Returns 0, or -1 with errno. */
static int make_address(const char *runtime_dir, const char *domain, struct sockaddr_un *address)
{
	const char *folder = *runtime_dir ? runtime_dir : RUNTIME_DIR;
	const size_t room = sizeof(address->sun_path);
	size_t digits = strspn(domain, "0123456789");
	int length;

	if (domain[digits] || digits > DOMAIN_DIGITS) {
		errno = EINVAL;
		return -1;
	}
	address->sun_family = AF_UNIX;
	if (atoi(domain))
		length =
		    snprintf(address->sun_path, room, "%s/domain-%d.sock", folder, atoi(domain));
	else
		length = snprintf(address->sun_path, room, "%s/kvmchand.sock", folder);
	if (length < (int)room)
		return 0;
	errno = ENAMETOOLONG;
	return -1;
}

static int connect_socket(int fd, const struct sockaddr_un *address)
{
	const struct timeval deadline = {.tv_sec = DAEMON_DEADLINE / 1000};
	const struct timeval none = {0};

	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &deadline, sizeof(deadline)) < 0 ||
	    connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &none, sizeof(none)) < 0)
		return -1;
	return 0;
}

int connect_daemon(const char *runtime_dir, const char *domain)
{
	struct sockaddr_un address;
	int fd, error;

	if (make_address(runtime_dir, domain, &address) < 0)
		return -1;
	fd = above_stdio(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
	if (fd < 0 || connect_socket(fd, &address) == 0)
		return fd;
	error = errno;
	close(fd);
	errno = error;
	return -1;
}
