/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "setup/open.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#include "dataplane/error.h"
#include "setup/apart.h"
#include "setup/daemon.h"

static int check_request(const struct kvmchan_request *request)
{
	if (!request->path)
		return fail(EINVAL, "no path: give one like data/vchan/1/2");
	if (strlen(request->path) > PATH_MAX)
		return fail(E2BIG, "the path has %zu characters: too many", strlen(request->path));
	if (request->peer < 0)
		return fail(EINVAL, "%d is no domain's number", request->peer);
	return 0;
}

struct libxenvchan *open_vchan(struct kvmchan_request *request)
{
	struct libxenvchan *end = NULL;
	struct kvmchan_grant grant;

	if (check_request(request) < 0)
		return NULL;
	undisturbed_begin();
	if (daemon_open(request, &grant) == 0)
		end = kvmchan_attach(&grant);
	undisturbed_end();
	return end;
}

int ask_vchan(struct kvmchan_request *request, int *control_fd)
{
	return check_request(request) < 0 ? -1 : daemon_ask(request, control_fd);
}

struct libxenvchan *answer_vchan(int *control_fd)
{
	struct libxenvchan *end = NULL;
	struct kvmchan_grant grant;

	undisturbed_begin();
	if (daemon_answer(control_fd, &grant) == 0)
		end = kvmchan_attach(&grant);
	undisturbed_end();
	return end;
}
