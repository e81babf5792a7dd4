/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What C asks of the daemon, by way of the embedded Python, which the first of these starts. Each
 * returns 0 or a number, or -1 with errno and the sentence. Callable from any thread.
 */
#ifndef KVMCHAN_DAEMON_H
#define KVMCHAN_DAEMON_H

#include "dataplane/connection.h"
#include "dataplane/vchan.h"
#include "setup/embed.h"

/* Opens an end of a vchan or of an event channel. @request's where is filled in; @opened's
 * descriptors are the caller's. */
int daemon_open(struct kvmchan_request *request, struct kvmchan_opened *opened);
/* Asks for it only: *@control_fd is readable when there is an answer. */
int daemon_ask(struct kvmchan_request *request, int *control_fd);
/* Takes that answer, waiting for it, and @control_fd. */
int daemon_answer(int control_fd, struct kvmchan_opened *opened);
/* What was opened, for whoever takes its descriptors. */
static inline struct kvmchan_grant grant_of(const struct kvmchan_opened *opened, bool is_server)
{
	return (struct kvmchan_grant){
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
}

/* These fill in @pages' where; its descriptors are the caller's. */
int daemon_share(struct kvmchan_pages *pages);
int daemon_map(struct kvmchan_pages *pages);
/* See kvmchan_python_notify(). */
int daemon_notify(int control_fd, uint64_t offset, bool clears, uint64_t port);

int daemon_port(struct kvmchan_port *port);
int daemon_domains(struct kvmchan_domains *domains);

/* Ends what the connection holds, and returns when the daemon has released it. */
void daemon_close(struct connection *connection);

/* Our own domain's number. */
int daemon_own(void);
/* Xen's DOMID_SELF: whoever asks. */
#define DOMAIN_SELF 0x7ff0
/* The number of @domain, which may be that. */
int daemon_domain(uint32_t domain);

#endif
