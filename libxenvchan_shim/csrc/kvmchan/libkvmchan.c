/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* libkvmchan's vchans, on the same data plane as libxenvchan. Its shared memory is in
 * libkvmchan_shmem.c. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "dataplane/error.h"
#include "dataplane/event.h"
#include "libkvmchan.h"
#include "setup/peer.h"

/*
 * The descriptor that get_eventfd returns must be readable while there is data, even if our own
 * blocking calls have taken the events. So it is an epoll descriptor over the event channel and an
 * eventfd of our own, which is readable while there is data.
 */
struct libkvmchan {
	struct libxenvchan *end;
	int poll_fd; /* -1 until it is asked for */
	int data_fd;
	bool up;
};

/* ---- set-up ---- */

static struct libkvmchan *new_chan(struct libxenvchan *end)
{
	struct libkvmchan *chan;

	if (!end)
		return NULL;
	chan = calloc(1, sizeof(*chan));
	if (!chan) {
		libxenvchan_close(end);
		fail(ENOMEM, "no memory for a vchan");
		return NULL;
	}
	*chan = (struct libkvmchan){.end = end, .poll_fd = -1, .data_fd = -1};
	end->blocking = -1;
	return chan;
}

struct libkvmchan *libkvmchan_server_init(uint32_t domain, uint32_t port, size_t read_min,
					  size_t write_min)
{
	return new_chan(peer_offer(domain, port, read_min, write_min, 0));
}

struct libkvmchan *libkvmchan_client_init(uint32_t domain, uint32_t port)
{
	struct peer_place place;

	return peer_find(&place, domain, port) < 0 ? NULL : new_chan(peer_connect(&place, false));
}

/* Close @fd unless the program has closed it already, and opened another file by that number. */
static void close_marked(int fd)
{
	if (fd >= 0 && event_is_marked(fd))
		close(fd);
}

bool libkvmchan_close(struct libkvmchan *chan)
{
	if (!chan)
		return true;
	libxenvchan_close(chan->end);
	close_marked(chan->poll_fd);
	close_marked(chan->data_fd);
	free(chan);
	return true;
}

/* ---- the descriptor to poll ---- */

/* Take the pending events, and make the descriptor show whether there is data. Call it after
 * everything that may change that. */
static void settle(struct libkvmchan *chan)
{
	struct pollfd event = {.fd = libxenvchan_fd_for_select(chan->end), .events = POLLIN};
	int error = errno;
	eventfd_t taken;
	bool up;

	if (chan->poll_fd < 0 || !event_is_marked(chan->data_fd))
		return;
	if (poll(&event, 1, 0) > 0)
		(void)libxenvchan_wait(chan->end);
	/* This comes second, so that no event is lost: data_ready asks for the next one, then
	 * looks. */
	up = libxenvchan_data_ready(chan->end) > 0 || !libxenvchan_is_open(chan->end);
	if (up != chan->up)
		(void)(up ? eventfd_write(chan->data_fd, 1) : eventfd_read(chan->data_fd, &taken));
	chan->up = up;
	errno = error;
}

static int watch(int poll_fd, int fd)
{
	struct epoll_event event = {.events = EPOLLIN};

	return epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event);
}

int libkvmchan_get_eventfd(struct libkvmchan *chan)
{
	int poll_fd, data_fd, error;

	if (chan->poll_fd >= 0)
		return chan->poll_fd;
	poll_fd = epoll_create1(EPOLL_CLOEXEC);
	data_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (poll_fd < 0 || data_fd < 0 || event_mark(poll_fd) < 0 || event_mark(data_fd) < 0 ||
	    watch(poll_fd, data_fd) < 0 ||
	    watch(poll_fd, libxenvchan_fd_for_select(chan->end)) < 0) {
		error = errno;
		close(poll_fd);
		close(data_fd);
		return fail(error, "no descriptor to poll the vchan by");
	}
	chan->poll_fd = poll_fd;
	chan->data_fd = data_fd;
	settle(chan);
	return poll_fd;
}

void libkvmchan_clear_eventfd(struct libkvmchan *chan) { settle(chan); }

/* ---- the calls ---- */

/* Wait for a server's client, as all its calls do first. */
static int await_client(struct libkvmchan *chan)
{
	while (libxenvchan_is_open(chan->end) == VCHAN_WAITING)
		if (libxenvchan_wait(chan->end) < 0)
			return -1;
	return 0;
}

static int settled(struct libkvmchan *chan, int result)
{
	settle(chan);
	return result;
}

int libkvmchan_recv(struct libkvmchan *chan, void *data, size_t size)
{
	if (await_client(chan) < 0)
		return -1;
	return settled(chan, libxenvchan_recv(chan->end, data, size));
}

int libkvmchan_send(struct libkvmchan *chan, void *data, size_t size)
{
	if (await_client(chan) < 0)
		return -1;
	return settled(chan, libxenvchan_send(chan->end, data, size));
}

int libkvmchan_read(struct libkvmchan *chan, void *data, size_t size)
{
	if (await_client(chan) < 0)
		return -1;
	return settled(chan, libxenvchan_read(chan->end, data, size));
}

int libkvmchan_write(struct libkvmchan *chan, void *data, size_t size)
{
	int count;

	if (await_client(chan) < 0)
		return -1;
	/* Write what there is room for. A blocking write of libxenvchan waits until all fits. */
	chan->end->blocking = 0;
	while ((count = libxenvchan_write(chan->end, data, size)) == 0 && size > 0)
		if (libxenvchan_wait(chan->end) < 0) {
			count = -1;
			break;
		}
	chan->end->blocking = -1;
	return settled(chan, count);
}

size_t libkvmchan_data_ready(struct libkvmchan *chan)
{
	return (size_t)libxenvchan_data_ready(chan->end);
}

size_t libkvmchan_buffer_space(struct libkvmchan *chan)
{
	return (size_t)libxenvchan_buffer_space(chan->end);
}

int libkvmchan_get_state(struct libkvmchan *chan) { return libxenvchan_is_open(chan->end); }
