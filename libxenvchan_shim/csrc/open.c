/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "open.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "here.h"
#include "interpreter.h"

/* What cffi leaves there when it can't run the Python at all; it returns 0 then. */
#define FAILED "the embedded Python failed"
#define NOTHING                                                                                    \
	{                                                                                          \
		.region_fd = -1, .event_fd = -1, .notify_fd = -1, .control_fd = -1                 \
	}

static int prepare(struct kvmchan_request *request)
{
	if (!request->path)
		return fail(EINVAL, "no path: give one like data/vchan/1/2");
	if (request->peer < 0)
		return fail(EINVAL, "%d is no domain's number", request->peer);
	request->where = here();
	return interpreter_start();
}

/* The end that was @opened, unless there was an @error. */
static struct libxenvchan *made(int error, const char *sentence,
				const struct kvmchan_opened *opened, int is_server)
{
	struct libxenvchan *ctrl;
	struct kvmchan_grant grant;

	if (!error && opened->region_fd < 0)
		error = EIO;
	if (error) {
		fail(error, "%s", sentence);
		return NULL;
	}
	grant = (struct kvmchan_grant){
	    .region_fd = opened->region_fd,
	    .event_fd = opened->event_fd,
	    .notify_fd = opened->notify_fd,
	    .control_fd = opened->control_fd,
	    .is_server = is_server,
	    .port = opened->port,
	    .left_order = opened->left_order,
	    .right_order = opened->right_order,
	    .events = opened->events,
	    .doorbell_value = opened->doorbell_value,
	    .region_offset = opened->region_offset,
	    .doorbell_offset = opened->doorbell_offset,
	};
	ctrl = kvmchan_attach(&grant);
	if (!ctrl || !is_server)
		return ctrl;
	ctrl->xs_path = strdup(opened->path);
	if (!ctrl->xs_path) {
		libxenvchan_close(ctrl);
		fail(ENOMEM, "no memory for a vchan");
		return NULL;
	}
	return ctrl;
}

struct libxenvchan *open_vchan(struct kvmchan_request *request)
{
	struct kvmchan_opened opened = NOTHING;
	char sentence[480] = FAILED;
	int error;

	if (prepare(request) < 0)
		return NULL;
	error = kvmchan_python_open(request, &opened, sentence, sizeof(sentence));
	return made(error, sentence, &opened, request->what == KVMCHAN_OFFER);
}

int ask_vchan(struct kvmchan_request *request, int *control_fd)
{
	char sentence[480] = FAILED;
	int error;

	if (prepare(request) < 0)
		return -1;
	*control_fd = -1;
	error = kvmchan_python_ask(request, control_fd, sentence, sizeof(sentence));
	if (!error && *control_fd < 0)
		error = EIO;
	return error ? fail(error, "%s", sentence) : 0;
}

struct libxenvchan *answer_vchan(int control_fd)
{
	struct kvmchan_opened opened = NOTHING;
	char sentence[480] = FAILED;
	int error = kvmchan_python_answer(control_fd, &opened, sentence, sizeof(sentence));

	return made(error, sentence, &opened, 0);
}
