/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "event.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

void event_send(int fd)
{
	int error = errno;

	/* Failure is one of: the peer's queue is full, so it has events; or the peer is gone. */
	(void)send(fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
	errno = error;
}

static enum event_result event_take(int fd, int flags)
{
	char events[512];
	ssize_t count = recv(fd, events, sizeof(events), flags);

	if (count > 0)
		return EVENT_TAKEN;
	if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return EVENT_NONE;
	if (count < 0 && errno == EINTR)
		return EVENT_INTERRUPTED;
	return EVENT_LOST;
}

enum event_result event_try(int fd) { return event_take(fd, MSG_DONTWAIT); }

enum event_result event_wait(int fd)
{
	for (;;) {
		enum event_result result = event_take(fd, 0);
		struct pollfd readable = {.fd = fd, .events = POLLIN};

		if (result != EVENT_NONE)
			return result;
		/* The program has made the descriptor non-blocking. */
		if (poll(&readable, 1, -1) < 0)
			return errno == EINTR ? EVENT_INTERRUPTED : EVENT_LOST;
	}
}
