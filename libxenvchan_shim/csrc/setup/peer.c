/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "setup/peer.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>

#include "dataplane/error.h"
#include "setup/daemon.h"
#include "setup/open.h"

/* Room for a path with the longest numbers. */
typedef char path_text[96];

int check_domain(int64_t domain)
{
	if (domain < 0 || domain > INT_MAX)
		return fail(EINVAL, "%lld is no domain's number", (long long)domain);
	return 0;
}

static int check(int64_t domain, int64_t port)
{
	if (port < 0)
		return fail(EINVAL, "%lld is no port: give a number from 0 on", (long long)port);
	return check_domain(domain);
}

static int client_path(path_text path, int64_t domain, int64_t port)
{
	int own;

	if (check(domain, port) < 0)
		return -1;
	own = daemon_own();
	if (own < 0)
		return -1;
	snprintf(path, sizeof(path_text), "/local/domain/%lld/data/vchan/%d/%lld",
		 (long long)domain, own, (long long)port);
	return 0;
}

struct libxenvchan *peer_offer(int64_t domain, int64_t port, size_t read_min, size_t write_min,
			       int once)
{
	path_text path;
	struct kvmchan_request request = {
	    .what = KVMCHAN_OFFER,
	    .peer = (int)domain,
	    .path = path,
	    .read_min = ring_size(read_min),
	    .write_min = ring_size(write_min),
	    .once = once,
	};

	if (check(domain, port) < 0)
		return NULL;
	snprintf(path, sizeof(path), "data/vchan/%lld/%lld", (long long)domain, (long long)port);
	return open_vchan(&request);
}

struct libxenvchan *peer_connect(int64_t domain, int64_t port)
{
	path_text path;
	struct kvmchan_request request = {
	    .what = KVMCHAN_CONNECT, .peer = (int)domain, .path = path};

	if (client_path(path, domain, port) < 0)
		return NULL;
	return open_vchan(&request);
}

int peer_await(int64_t domain, int64_t port, int *control_fd)
{
	path_text path;
	struct kvmchan_request request = {
	    .what = KVMCHAN_CONNECT, .peer = (int)domain, .path = path, .waits = 1};

	if (client_path(path, domain, port) < 0)
		return -1;
	return ask_vchan(&request, control_fd);
}
