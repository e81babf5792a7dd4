/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The daemon as libxenevtchn and libxengnttab see it (daemon.h), in this process and without
 * Python, so that they run under the sanitizers. There is one domain, 0, which shares with itself.
 */
#ifndef KVMCHAN_TEST_FAKEDAEMON_H
#define KVMCHAN_TEST_FAKEDAEMON_H

#include "dataplane/vchan.h"

/* What the next event channels are. */
extern enum kvmchan_events fake_events;
/* How many more requests are met before the next ones fail with EIO; -1: all are. */
extern int fake_requests_left;

/* How many connections are open, as the daemon sees it. */
int fake_connections(void);
/* What the daemon was last asked to do at the end of a page; the port is 0 where it was not. */
struct fake_notice {
	uint64_t offset, port;
	int clears;
};
extern struct fake_notice fake_notice;
/* The daemon's end. Also to be called by a test that has used it, as nothing may be left. */
void fake_end(void);

#endif
