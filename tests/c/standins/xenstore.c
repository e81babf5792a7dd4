/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Stand-in for libxenstore.so.4, so that a distribution's libxenvchan runs without Xen.
 *
 * A node is a directory below $XEN_STANDIN_DIR/store, its value the file "=" in it (no node can
 * have that name). One lock covers the store: a transaction holds it from start to end, so that
 * others see all of it or nothing. Abandoned transactions are not undone; libxenvchan has no use
 * for that. A domain writes below its own node only; reading is open to all, because what guards a
 * channel is who may map its pages and bind its port.
 */
#define _GNU_SOURCE 1

#include "standin.h"

#include <ctype.h>
#include <ftw.h>
#include <stdbool.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xenstore.h>

struct xs_handle {
	int lock_fd;
	bool in_transaction;
};

struct xs_handle *xs_open(unsigned long flags)
{
	const char *dir = standin_dir();
	struct xs_handle *h;
	char path[PATH_MAX];

	(void)flags;
	if (!dir || snprintf(path, sizeof(path), "%s/store.lock", dir) >= (int)sizeof(path))
		return NULL;
	h = calloc(1, sizeof(*h));
	if (!h)
		return NULL;
	h->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (h->lock_fd < 0) {
		free(h);
		return NULL;
	}
	return h;
}

void xs_close(struct xs_handle *h)
{
	if (!h)
		return;
	close(h->lock_fd);
	free(h);
}

static bool lock(struct xs_handle *h, int how)
{
	return h->in_transaction || !flock(h->lock_fd, how);
}

static void unlock(struct xs_handle *h)
{
	int saved = errno;

	if (!h->in_transaction)
		flock(h->lock_fd, LOCK_UN);
	errno = saved;
}

static bool valid(const char *path)
{
	size_t len = strlen(path);

	if (!len || path[len - 1] == '/' || strstr(path, "//"))
		return false;
	for (; *path; path++)
		if (!isalnum((unsigned char)*path) && !strchr("-/_@", *path))
			return false;
	return true;
}

/* Where a node is kept. Room is left for the name of the value in it. */
static bool node_dir(char dir[PATH_MAX], const char *path, bool to_write)
{
	const char *root = standin_dir();
	char own[64];
	int len;

	if (!root)
		return false;
	if (!valid(path)) {
		errno = EINVAL;
		return false;
	}
	snprintf(own, sizeof(own), "/local/domain/%u/", standin_domid());
	if (to_write && standin_domid() && path[0] == '/' && strncmp(path, own, strlen(own))) {
		errno = EACCES;
		return false;
	}
	len = snprintf(dir, PATH_MAX, "%s/store%s%s", root, path[0] == '/' ? "" : own, path);
	if (len >= PATH_MAX - 2) {
		errno = ENAMETOOLONG;
		return false;
	}
	return true;
}

static char *own_domid(unsigned int *len)
{
	char text[16];
	int n = snprintf(text, sizeof(text), "%u", standin_domid());

	if (len)
		*len = (unsigned int)n;
	return strdup(text);
}

void *xs_read(struct xs_handle *h, xs_transaction_t t, const char *path, unsigned int *len)
{
	char file[PATH_MAX], *value = NULL;
	struct stat st;
	int fd;

	(void)t;
	/* The toolstack writes this one on Xen; a domain reads there who it is. */
	if (!strcmp(path, "domid"))
		return own_domid(len);
	if (!node_dir(file, path, false))
		return NULL;
	strcat(file, "/=");
	if (!lock(h, LOCK_SH))
		return NULL;
	fd = open(file, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		if (!fstat(fd, &st) && (value = calloc(1, (size_t)st.st_size + 1)) &&
		    read(fd, value, (size_t)st.st_size) != st.st_size) {
			free(value);
			value = NULL;
		}
		if (value && len)
			*len = (unsigned int)st.st_size;
		close(fd);
	}
	unlock(h);
	return value;
}

static bool make_parents(char *dir)
{
	for (char *slash = strchr(dir + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		if (mkdir(dir, 0700) && errno != EEXIST)
			return false;
		*slash = '/';
	}
	return true;
}

bool xs_write(struct xs_handle *h, xs_transaction_t t, const char *path, const void *data,
	      unsigned int len)
{
	char file[PATH_MAX];
	bool done = false;
	int fd;

	(void)t;
	if (!node_dir(file, path, true))
		return false;
	strcat(file, "/=");
	if (!lock(h, LOCK_EX))
		return false;
	if (make_parents(file)) {
		fd = open(file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		if (fd >= 0) {
			done = write(fd, data, len) == (ssize_t)len;
			close(fd);
		}
	}
	unlock(h);
	return done;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *where)
{
	(void)st;
	(void)type;
	(void)where;
	return remove(path);
}

bool xs_rm(struct xs_handle *h, xs_transaction_t t, const char *path)
{
	char dir[PATH_MAX];
	bool done;

	(void)t;
	if (!node_dir(dir, path, true) || !lock(h, LOCK_EX))
		return false;
	done = !nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
	unlock(h);
	return done;
}

bool xs_set_permissions(struct xs_handle *h, xs_transaction_t t, const char *path,
			struct xs_permissions *perms, unsigned int num_perms)
{
	char dir[PATH_MAX];

	(void)h;
	(void)t;
	(void)perms;
	(void)num_perms;
	return node_dir(dir, path, true) && !access(dir, F_OK);
}

xs_transaction_t xs_transaction_start(struct xs_handle *h)
{
	if (!lock(h, LOCK_EX))
		return 0;
	h->in_transaction = true;
	return 1;
}

bool xs_transaction_end(struct xs_handle *h, xs_transaction_t t, bool abandon)
{
	(void)t;
	(void)abandon;
	h->in_transaction = false;
	unlock(h);
	return true;
}
