/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Set-up and close of a vchan: the three functions of libxenvchan that need the daemon, which they
 * reach through the embedded Python. */
#include <errno.h>

#include "dataplane/end.h"
#include "dataplane/ends.h"
#include "dataplane/error.h"
#include "dataplane/vchan.h"
#include "setup/daemon.h"
#include "setup/open.h"

/* List an end for xc_evtchn_status(). */
static void list_end(struct libxenvchan *ctrl, int peer)
{
	struct vchan *v = vchan_of(ctrl);

	v->listed = (struct listed_end){
	    .port = ctrl->event_port,
	    .peer = peer,
	    .peer_live = v->peer_live,
	    .waiting = ctrl->is_server ? 2 : 0,
	};
	ends_add(&v->listed);
}

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

	if (ctrl)
		list_end(ctrl, domain);
	else
		error_log(logger, "libxenvchan_server_init");
	return ctrl;
}

struct libxenvchan *libxenvchan_client_init(struct xentoollog_logger *logger, int domain,
					    const char *xs_path)
{
	struct kvmchan_request request = {.what = KVMCHAN_CONNECT, .peer = domain, .path = xs_path};
	struct libxenvchan *ctrl = open_vchan(&request);

	if (ctrl)
		list_end(ctrl, domain);
	else
		error_log(logger, "libxenvchan_client_init");
	return ctrl;
}

void libxenvchan_close(struct libxenvchan *ctrl)
{
	int error = errno;

	if (!ctrl)
		return;
	kvmchan_hang_up(ctrl);
	ends_remove(&vchan_of(ctrl)->listed);
	daemon_close(&vchan_of(ctrl)->event.control);
	kvmchan_detach(ctrl);
	errno = error;
}
