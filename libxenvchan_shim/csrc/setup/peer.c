/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "setup/peer.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>

#include "dataplane/error.h"
#include "setup/daemon.h"
#include "setup/open.h"

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

struct libxenvchan *peer_offer(int64_t domain, int64_t port, size_t read_min, size_t write_min,
			       int once)
{
	char path[PEER_PATH_MAX];
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

int peer_find(struct peer_place *place, int64_t domain, int64_t port)
{
	int own;

	if (check(domain, port) < 0)
		return -1;
	own = daemon_own();
	if (own < 0)
		return -1;
	place->domain = (int)domain;
	snprintf(place->path, sizeof(place->path), "/local/domain/%lld/data/vchan/%d/%lld",
		 (long long)domain, own, (long long)port);
	return 0;
}

static struct kvmchan_request request_for(const struct peer_place *place, bool waits)
{
	return (struct kvmchan_request){
	    .what = KVMCHAN_CONNECT,
	    .peer = place->domain,
	    .path = place->path,
	    .waits = waits,
	};
}

struct libxenvchan *peer_connect(const struct peer_place *place, bool waits)
{
	struct kvmchan_request request = request_for(place, waits);

	return open_vchan(&request);
}

int peer_await(const struct peer_place *place, int *control_fd)
{
	struct kvmchan_request request = request_for(place, true);

	return ask_vchan(&request, control_fd);
}
