/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "beside/helper.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "beside/spawn.h"
#include "dataplane/connection.h"
#include "setup/stdio.h"

#define NAME "kvmchan-helper"
/* Bytes of the address space and of data in which it can say that Python has too little. */
#define ALL_BYTES (32 << 20)
#define OWN_BYTES (12 << 20)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct connection helper = {.fd = -1}; /* our end of its socket */

static void before_fork(void) { pthread_mutex_lock(&lock); }

static void after_fork(void) { pthread_mutex_unlock(&lock); }

/* So that a forked child finds the lock free. To be called with the lock held. */
static void follow_forks(void)
{
	static bool follows;

	if (!follows)
		follows = pthread_atfork(before_fork, after_fork, after_fork) == 0;
}

static bool is_limited(int kind, rlim_t bytes)
{
	struct rlimit limit;

	return getrlimit(kind, &limit) == 0 && limit.rlim_max < bytes;
}

/* Return the path of the program: in the folder of this file, which the loader gave an absolute
 * path. */
static bool find_program(char path[PATH_MAX])
{
	Dl_info self;
	const char *slash;

	if (!dladdr((void *)&find_program, &self) || !self.dli_fname)
		return false;
	slash = strrchr(self.dli_fname, '/');
	return slash && snprintf(path, PATH_MAX, "%.*s/" NAME, (int)(slash - self.dli_fname),
				 self.dli_fname) < PATH_MAX;
}

static int start_with(int ours, int theirs, char *sentence, int room)
{
	char path[PATH_MAX] = NAME;
	int error = find_program(path) ? spawn_unnoticed(path, theirs) : ENOENT;

	if (error) {
		snprintf(sentence, (size_t)room,
			 "kvmchan's helper %s can't be started (%s): install kvmchan again", path,
			 strerror(error));
		return error;
	}
	connection_close(&helper);
	helper = connection_take(ours);
	return 0;
}

static int start(char *sentence, int room)
{
	int pair[2], error;

	if (is_limited(RLIMIT_AS, ALL_BYTES) || is_limited(RLIMIT_DATA, OWN_BYTES)) {
		snprintf(
		    sentence, (size_t)room,
		    "Python, which talks to the daemon, needs %d MiB of address space and %d MiB "
		    "of data: raise the limits (ulimit -v, -d)",
		    ALL_BYTES >> 20, OWN_BYTES >> 20);
		return ENOMEM;
	}
	error = seqpacket_pair(pair);
	if (error) {
		snprintf(
		    sentence, (size_t)room,
		    "no socket for kvmchan's helper: %s: close descriptors, or raise the limit "
		    "(ulimit -n)",
		    strerror(error));
		return error;
	}
	error = start_with(pair[0], pair[1], sentence, room);
	if (error)
		close(pair[0]);
	close(pair[1]);
	return error;
}

static int start_unless_there(char *sentence, int room)
{
	follow_forks();
	return connection_is_there(&helper) ? 0 : start(sentence, room);
}

static int try_send(const struct message *message, const void *data, size_t size, int reply_fd)
{
	struct iovec parts[] = {{(void *)message, sizeof(*message)}, {(void *)data, size}};
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} beside = {0};
	struct msghdr packet = {
	    .msg_iov = parts,
	    .msg_iovlen = 2,
	    .msg_control = &beside,
	    .msg_controllen = sizeof(beside),
	};

	beside.header.cmsg_level = SOL_SOCKET;
	beside.header.cmsg_type = SCM_RIGHTS;
	beside.header.cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(&beside.header), &reply_fd, sizeof(int));
	return sendmsg(helper.fd, &packet, MSG_NOSIGNAL) < 0 ? errno : 0;
}

static int send_to_helper(const struct message *message, const void *data, size_t size,
			  int reply_fd, struct connection *to, char *sentence, int room)
{
	int error = start_unless_there(sentence, room);

	*to = helper;
	if (error)
		return error;
	error = try_send(message, data, size, reply_fd);
	if (error == EPIPE || error == ECONNREFUSED)
		error = ECONNRESET;
	if (error)
		snprintf(sentence, (size_t)room, "kvmchan's helper can't be asked: %s",
			 strerror(error));
	return error;
}

int helper_send(const struct message *message, const void *data, size_t size, int reply_fd,
		struct connection *to, char *sentence, int room)
{
	int error;

	pthread_mutex_lock(&lock);
	error = send_to_helper(message, data, size, reply_fd, to, sentence, room);
	pthread_mutex_unlock(&lock);
	return error;
}

void helper_forget(const struct connection *ended)
{
	pthread_mutex_lock(&lock);
	if (helper.cookie == ended->cookie)
		connection_close(&helper);
	pthread_mutex_unlock(&lock);
}
