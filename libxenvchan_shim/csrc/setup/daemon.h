/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What C asks of the daemon, through Python, which the first call starts. Every function may be
 * called from any thread, and blocks until the daemon has answered, but for daemon_ask(). Those
 * that return an int return 0 or a number, or -1 with errno and the sentence. Descriptors that they
 * return are the caller's to close. A thread that is cancelled, or leaves by siglongjmp(), while it
 * waits for an answer leaves nothing behind: see daemon.c.
 */
#ifndef KVMCHAN_DAEMON_H
#define KVMCHAN_DAEMON_H

#include <stdbool.h>

#include "dataplane/connection.h"
#include "runtime/call.h"

/* Milliseconds that the daemon may take to answer: the first channel between two guests costs a
 * hot-plug in each. */
#define DAEMON_DEADLINE 40000

/* Pages shared with another domain. They are ours as long as the connection control_fd. */
struct kvmchan_pages {
	int peer;	/* of a share: who may map them; of a mapping: who shares them */
	uint64_t ref;	/* of a mapping: any page's. Answer: the first page's; they count up */
	uint32_t pages; /* of a share: the number wanted. Answer: the number given */
	int writable;	/* of a share: by the peer; of a mapping: by us */
	/* The answer. */
	int memory_fd, control_fd;
	uint64_t offset; /* where memory_fd has the pages */
};

/* An event channel's end. */
struct kvmchan_port {
	int of; /* the domain whose port it is; -1: ours */
	uint64_t port;
	/* The answer: Xen's EVTCHNSTAT_, 0 closed, 1 unbound, 2 interdomain. */
	int state;
	int peer;	    /* the domain that may join, or has joined */
	uint64_t peer_port; /* the port's number there; of state 2 */
};

/* The domains from number first on, in rising order. */
struct kvmchan_domains {
	int first;
	int most;
	int *numbers; /* room for `most` of them */
	/* The answer. */
	int count;
	int own;
};

/* Open an end of a vchan or of an event channel. */
int daemon_open(struct kvmchan_request *request, struct kvmchan_grant *grant);
/* Ask to connect to a vchan, and return at once: *@control_fd is readable when the answer has come.
 * It is -1 before, or the connection of daemon_answer() that is to ask again. */
int daemon_ask(struct kvmchan_request *request, int *control_fd);
/* Take the answer to daemon_ask(), which has come. Takes ownership of *@control_fd. Returns 1 if it
 * is to ask again, and then *@control_fd is the caller's. */
int daemon_answer(int *control_fd, struct kvmchan_grant *grant);

/* Share pages with another domain. */
int daemon_share(struct kvmchan_pages *pages);
/* Map pages that another domain shares. */
int daemon_map(struct kvmchan_pages *pages);
/* Say what the daemon shall do when the pages of @control_fd are released, for whatever reason:
 * clear the byte at @offset if @clears, and send an event on our event channel @port unless that is
 * 0. */
int daemon_notify(int control_fd, uint64_t offset, bool clears, uint64_t port);

/* Ask what an event channel is. */
int daemon_port(struct kvmchan_port *port);
/* Ask which domains exist. */
int daemon_domains(struct kvmchan_domains *domains);

/* End what the connection holds, and return when the daemon has released it. Needs no Python. Keeps
 * errno. */
void daemon_close(struct connection *connection);

/* Return our own domain's number. */
int daemon_own(void);
/* Xen's DOMID_SELF: the domain that asks. */
#define DOMAIN_SELF 0x7ff0
/* Return the number of @domain, which may be DOMAIN_SELF. */
int daemon_domain(uint32_t domain);

#endif
