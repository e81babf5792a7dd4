/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the three stand-ins share: the directory that takes the hypervisor's place.
 *
 * Everything in it is named <kind>-<owner>-<number>-<peer>. A domain can only build the name of
 * something that was offered to it, which is all the access control the reference relies on.
 *
 *   XEN_STANDIN_DIR    that directory; must exist, and be on tmpfs where speed matters
 *   XEN_STANDIN_DOMID  the domain of the calling process; 0 if not set
 */
#ifndef KVMCHAN_TESTS_STANDIN_H
#define KVMCHAN_TESTS_STANDIN_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

static inline const char *standin_dir(void)
{
	const char *dir = getenv("XEN_STANDIN_DIR");

	if (!dir || !*dir) {
		errno = ENOENT;
		return NULL;
	}
	return dir;
}

static inline unsigned int standin_domid(void)
{
	const char *domid = getenv("XEN_STANDIN_DOMID");

	return domid ? (unsigned int)strtoul(domid, NULL, 10) : 0;
}

static inline int standin_name(char path[PATH_MAX], const char *kind, unsigned int owner,
			       unsigned int number, unsigned int peer)
{
	const char *dir = standin_dir();

	if (!dir)
		return -1;
	if (snprintf(path, PATH_MAX, "%s/%s-%u-%u-%u", dir, kind, owner, number, peer) >=
	    PATH_MAX) {
		errno = ENAMETOOLONG;
		return -1;
	}
	return 0;
}

/* Takes a number that no process uses for this kind; its new, empty file is returned open. */
static inline int standin_claim(char path[PATH_MAX], const char *kind, unsigned int peer,
				unsigned int *number)
{
	static unsigned int next = 1;
	int fd;

	do {
		*number = next++;
		if (standin_name(path, kind, standin_domid(), *number, peer))
			return -1;
		fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	} while (fd < 0 && errno == EEXIST);
	return fd;
}

#endif
