/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "setup/stdio.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

int above_stdio(int fd)
{
	int other, error;

	if (fd < 0 || fd > STDERR_FILENO)
		return fd;
	other = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	error = errno;
	close(fd);
	errno = error;
	return other;
}

int seqpacket_pair(int pair[2])
{
	int error;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return errno;
	pair[0] = above_stdio(pair[0]);
	error = errno;
	pair[1] = above_stdio(pair[1]);
	if (pair[0] >= 0 && pair[1] >= 0)
		return 0;
	error = pair[1] < 0 ? errno : error;
	if (pair[0] >= 0)
		close(pair[0]);
	if (pair[1] >= 0)
		close(pair[1]);
	return error;
}
