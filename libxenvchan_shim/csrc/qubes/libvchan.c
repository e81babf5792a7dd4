/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Qubes' libvchan, on the same data plane as libxenvchan. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>

#include "dataplane/connection.h"
#include "dataplane/error.h"
#include "dataplane/event.h"
#include "setup/daemon.h"
#include "setup/open.h"
#include "setup/peer.h"

#pragma GCC visibility push(default)
#include "vchan-kvm/libvchan.h"
#pragma GCC visibility pop

struct libvchan {
	struct libxenvchan *end; /* NULL until an async client is connected */
	/* Of an async client that waits for the daemon's answer. */
	struct connection control;
	struct peer_place place;
};

/* Make a vchan of @end, unless that is NULL. */
static libvchan_t *new_vchan(struct libxenvchan *end)
{
	libvchan_t *ctrl = end ? calloc(1, sizeof(*ctrl)) : NULL;

	if (ctrl) {
		end->blocking = -1;
		ctrl->end = end;
	} else if (end) {
		libxenvchan_close(end);
		fail(ENOMEM, "no memory for a vchan");
	}
	return ctrl;
}

/* ---- set-up ---- */

libvchan_t *libvchan_server_init(int domain, int port, size_t read_min, size_t write_min)
{
	return new_vchan(peer_offer(domain, port, read_min, write_min, 1));
}

libvchan_t *libvchan_client_init(int domain, int port)
{
	struct peer_place place;

	return peer_find(&place, domain, port) < 0 ? NULL : new_vchan(peer_connect(&place, true));
}

/* Wait for an answer on @fd, or if that is -1 on a new connection. */
static int await(libvchan_t *ctrl, int fd)
{
	if (peer_await(&ctrl->place, &fd) < 0)
		return -1;
	ctrl->control = connection_take(fd);
	return 0;
}

libvchan_t *libvchan_client_init_async(int domain, int port, EVTCHN *watch_fd)
{
	libvchan_t *ctrl = calloc(1, sizeof(*ctrl));

	if (!ctrl) {
		fail(ENOMEM, "no memory for a vchan");
		return NULL;
	}
	if (peer_find(&ctrl->place, domain, port) < 0 || await(ctrl, -1) < 0) {
		free(ctrl);
		return NULL;
	}
	*watch_fd = ctrl->control.fd;
	return ctrl;
}

int libvchan_client_init_async_finish(libvchan_t *ctrl, bool blocking)
{
	struct pollfd answer = {.fd = ctrl->control.fd, .events = POLLIN};
	int fd;

	if (ctrl->end)
		return 0;
	if (!connection_is_there(&ctrl->control))
		return fail(EINVAL, "the attempt to connect this vchan has failed: close it");
	if (poll(&answer, 1, 0) <= 0)
		return 1;
	fd = connection_steal(&ctrl->control);
	ctrl->end = answer_vchan(&fd);
	if (!ctrl->end)
		return fd >= 0 && await(ctrl, fd) == 0 ? 1 : -1;
	ctrl->end->blocking = blocking ? -1 : 0;
	return 0;
}

void libvchan_close(libvchan_t *ctrl)
{
	int error = errno;

	if (!ctrl)
		return;
	libxenvchan_close(ctrl->end);
	daemon_close(&ctrl->control);
	free(ctrl);
	errno = error;
}

/* ---- the calls ---- */

static int fail_early(void) { return fail(EAGAIN, "this vchan is not connected yet"); }

int libvchan_write(libvchan_t *ctrl, const void *data, size_t size)
{
	return ctrl->end ? libxenvchan_write(ctrl->end, data, size) : fail_early();
}

int libvchan_send(libvchan_t *ctrl, const void *data, size_t size)
{
	return ctrl->end ? libxenvchan_send(ctrl->end, data, size) : fail_early();
}

int libvchan_read(libvchan_t *ctrl, void *data, size_t size)
{
	return ctrl->end ? libxenvchan_read(ctrl->end, data, size) : fail_early();
}

int libvchan_recv(libvchan_t *ctrl, void *data, size_t size)
{
	return ctrl->end ? libxenvchan_recv(ctrl->end, data, size) : fail_early();
}

/* Return whether nothing can end a wait. No other client comes after the first, so once the peer
 * has gone only its last event may be pending. */
static bool is_over(libvchan_t *ctrl)
{
	struct pollfd event = {.fd = libxenvchan_fd_for_select(ctrl->end), .events = POLLIN};

	return libxenvchan_is_open(ctrl->end) == VCHAN_DISCONNECTED && poll(&event, 1, 0) <= 0;
}

int libvchan_wait(libvchan_t *ctrl)
{
	int result;

	if (!ctrl->end)
		return 0;
	if (is_over(ctrl))
		return fail(EPIPE, "nothing to wait for: the vchan is closed");
	do
		result = libxenvchan_wait(ctrl->end);
	while (result < 0 && errno == EINTR && libxenvchan_is_open(ctrl->end) == VCHAN_WAITING);
	return result;
}

EVTCHN libvchan_fd_for_select(libvchan_t *ctrl)
{
	return ctrl->end ? libxenvchan_fd_for_select(ctrl->end) : fail_early();
}

int libvchan_is_open(libvchan_t *ctrl)
{
	return ctrl->end ? libxenvchan_is_open(ctrl->end) : VCHAN_WAITING;
}

int libvchan_data_ready(libvchan_t *ctrl)
{
	return ctrl->end ? libxenvchan_data_ready(ctrl->end) : 0;
}

int libvchan_buffer_space(libvchan_t *ctrl)
{
	return ctrl->end ? libxenvchan_buffer_space(ctrl->end) : 0;
}

void libvchan_set_blocking(libvchan_t *ctrl, bool blocking)
{
	if (ctrl->end)
		ctrl->end->blocking = blocking ? -1 : 0;
}
