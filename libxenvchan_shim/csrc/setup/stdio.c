/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "setup/stdio.h"

#include <errno.h>
#include <fcntl.h>
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
