/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "setup/open.h"

#include <errno.h>
#include <string.h>

#include "dataplane/error.h"
#include "setup/daemon.h"

static int check_request(const struct kvmchan_request *request)
{
	if (!request->path)
		return fail(EINVAL, "no path: give one like data/vchan/1/2");
	if (request->peer < 0)
		return fail(EINVAL, "%d is no domain's number", request->peer);
	return 0;
}

static struct libxenvchan *end_of(const struct kvmchan_opened *opened, bool is_server)
{
	struct kvmchan_grant grant = grant_of(opened, is_server);
	struct libxenvchan *ctrl = kvmchan_attach(&grant);

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
	struct kvmchan_opened opened;

	if (check_request(request) < 0 || daemon_open(request, &opened) < 0)
		return NULL;
	return end_of(&opened, request->what == KVMCHAN_OFFER);
}

int ask_vchan(struct kvmchan_request *request, int *control_fd)
{
	return check_request(request) < 0 ? -1 : daemon_ask(request, control_fd);
}

struct libxenvchan *answer_vchan(int control_fd)
{
	struct kvmchan_opened opened;

	return daemon_answer(control_fd, &opened) < 0 ? NULL : end_of(&opened, false);
}
