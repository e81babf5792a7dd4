/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Set-up and close of a vchan: the three functions of libxenvchan that need the daemon, by way of
 * the embedded Python. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "embed.h"
#include "error.h"
#include "here.h"
#include "interpreter.h"
#include "vchan.h"

/* Asks the daemon; on success the descriptors in @opened are ours. */
static int open_end(const struct kvmchan_request *request, struct kvmchan_opened *opened)
{
	char sentence[480] = "the embedded Python failed";
	int error;

	if (!request->path)
		return fail(EINVAL, "no path: give one like data/vchan/1/2");
	if (request->peer < 0)
		return fail(EINVAL, "%d is no domain's number", request->peer);
	if (interpreter_start() < 0)
		return -1;
	error = kvmchan_python_open(request, opened, sentence, sizeof(sentence));
	if (!error && opened->region_fd < 0)
		error = EIO; /* cffi could not run it, and returned 0 in its stead */
	return error ? fail(error, "%s", sentence) : 0;
}

static struct libxenvchan *open_vchan(struct kvmchan_request *request)
{
	struct kvmchan_opened opened = {
	    .region_fd = -1, .event_fd = -1, .notify_fd = -1, .control_fd = -1};
	struct libxenvchan *ctrl;
	struct kvmchan_grant grant;
	int error;

	request->where = here();
	if (open_end(request, &opened) < 0)
		return NULL;
	grant = (struct kvmchan_grant){
	    .region_fd = opened.region_fd,
	    .event_fd = opened.event_fd,
	    .notify_fd = opened.notify_fd,
	    .control_fd = opened.control_fd,
	    .is_server = request->what == KVMCHAN_OFFER,
	    .port = opened.port,
	    .left_order = opened.left_order,
	    .right_order = opened.right_order,
	    .events = opened.events,
	    .doorbell_value = opened.doorbell_value,
	    .region_offset = opened.region_offset,
	    .doorbell_offset = opened.doorbell_offset,
	};
	ctrl = kvmchan_attach(&grant);
	if (!ctrl)
		return NULL;
	if (request->what == KVMCHAN_OFFER) {
		ctrl->xs_path = strdup(opened.path);
		if (!ctrl->xs_path) {
			error = errno;
			libxenvchan_close(ctrl);
			fail(error, "no memory for a vchan");
			return NULL;
		}
	}
	return ctrl;
}

/* The protocol's sizes are 63 bits; what is more is too much all the same. */
static uint64_t ring_size(size_t size) { return size < INT64_MAX ? size : INT64_MAX; }

struct libxenvchan *libxenvchan_server_init(struct xentoollog_logger *logger, int domain,
					    const char *xs_path, size_t read_min, size_t write_min)
{
	struct kvmchan_request request = {
	    .what = KVMCHAN_OFFER,
	    .peer = domain,
	    .path = xs_path,
	    .read_min = ring_size(read_min),
	    .write_min = ring_size(write_min),
	};
	struct libxenvchan *ctrl = open_vchan(&request);

	if (!ctrl)
		error_log(logger, "libxenvchan_server_init");
	return ctrl;
}

struct libxenvchan *libxenvchan_client_init(struct xentoollog_logger *logger, int domain,
					    const char *xs_path)
{
	struct kvmchan_request request = {.what = KVMCHAN_CONNECT, .peer = domain, .path = xs_path};
	struct libxenvchan *ctrl = open_vchan(&request);

	if (!ctrl)
		error_log(logger, "libxenvchan_client_init");
	return ctrl;
}

void libxenvchan_close(struct libxenvchan *ctrl)
{
	int error = errno, control_fd;

	if (!ctrl)
		return;
	kvmchan_hang_up(ctrl);
	/* -1: the program closed it; the daemon then sees the end of the mapping. */
	control_fd = kvmchan_steal_control(ctrl);
	if (control_fd >= 0)
		kvmchan_python_close(control_fd);
	kvmchan_detach(ctrl);
	errno = error;
}
