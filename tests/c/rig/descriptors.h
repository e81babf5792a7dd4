/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which descriptors a program has. */
#ifndef DESCRIPTORS_H
#define DESCRIPTORS_H

#include <dirent.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "program.h"

/* Return whether @fd is the one that the library keeps where Python runs beside the program: the
 * socket of the helper, whose other end this process has made. */
static inline bool is_helpers(int fd)
{
	const char *runtime = getenv("KVMCHAN_RUNTIME");
	struct ucred peer;
	socklen_t size = sizeof(peer);

	return runtime && strcmp(runtime, "beside") == 0 &&
	       getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.pid == getpid();
}

/* How many there are, without the helper's. */
static inline int count_fds(void)
{
	DIR *directory = opendir("/proc/self/fd");
	struct dirent *entry;
	bool has_helper = false;
	int count = 0;

	EXPECT(directory);
	while ((entry = readdir(directory))) {
		count++;
		has_helper |= is_helpers(atoi(entry->d_name));
	}
	closedir(directory);
	return count - 3 - has_helper; /* ., .. and the directory itself */
}

#endif
