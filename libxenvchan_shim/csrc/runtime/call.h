/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What C asks of the daemon through Python (libxenvchan_shim/embed.py), in two steps: to ask, and
 * to take the answer once it has come. build_embed.py reads this file, too.
 */
#ifndef KVMCHAN_CALL_H
#define KVMCHAN_CALL_H

#include <stdint.h>

#include "dataplane/grant.h"

/* Numbers of domains in an answer: DOMAINS_MAX of kvmchand/wire/client.py. */
#define KVMCHAN_DOMAINS_MAX 256

/* cffi: types */
/* What is asked. A connection to the daemon holds what it was given until it ends. */
enum kvmchan_what {
	KVMCHAN_OFFER,	 /* a vchan to peer: path, read_min, write_min, once */
	KVMCHAN_CONNECT, /* a vchan of peer's: path, waits */
	KVMCHAN_BIND,	 /* an event channel for peer to join */
	KVMCHAN_JOIN,	 /* an event channel of peer's: port */
	KVMCHAN_SHARE,	 /* pages that peer may map: pages, writable by it */
	KVMCHAN_MAP,	 /* pages that peer shares: ref, writable by us */
	KVMCHAN_NOTIFY,	 /* at the end of the pages of connection `of`: offset, clears, port */
	KVMCHAN_PORT,	 /* what peer's event channel is, or if peer is -1 ours: port */
	KVMCHAN_DOMAINS, /* which domains there are, from number `first` on */
};

/* A request. Its strings are never NULL, and stay the caller's. */
struct kvmchan_request {
	uint32_t what; /* enum kvmchan_what */
	/* Which daemon, and as which domain: the environment's values, "" if unset. */
	const char *runtime_dir;
	const char *domain;
	/* The connection that is asked, or -1 for a new one. It stays the caller's where it holds
	 * the pages of a KVMCHAN_NOTIFY, and is handed over where it was told to ask again. */
	int32_t of;
	int32_t peer;
	const char *path; /* "" if there is none */
	uint64_t read_min, write_min;
	uint64_t port, ref, offset;
	uint32_t pages;
	int32_t first;
	int32_t once;  /* no other client finds the offer after the first */
	int32_t waits; /* until the peer offers a vchan there that has no client, or is gone */
	int32_t writable;
	int32_t clears; /* the byte at `offset` becomes 0 */
};

/* An answer. Its descriptors are the caller's. */
struct kvmchan_answer {
	struct kvmchan_grant grant; /* the first four */
	/* Of KVMCHAN_CONNECT after a wait: there may be a vchan now, ask again on control_fd. */
	int32_t again;
	/* Of pages: the connection, the memory, where it has them, their first number, how many. */
	int32_t control_fd, memory_fd;
	uint64_t offset, ref;
	uint32_t pages;
	/* Of an event channel: Xen's EVTCHNSTAT_, 0 closed, 1 unbound, 2 interdomain. */
	int32_t state;
	int32_t peer;	    /* the domain that may join, or has joined */
	uint64_t peer_port; /* the port's number there; of state 2 */
	/* Of domains, in rising order. More may follow if there is no room for more. */
	int32_t count;
	int32_t own; /* the domain that asks */
	int32_t numbers[256];
};
/* cffi: functions */
/* Does nothing, after cffi has started, which the first call of all has it do. */
void kvmchan_python_start(void);
/* Each of these returns 0, or an errno with the sentence in @sentence, which has @room bytes. */
/* Connect to the daemon and ask. *@control_fd is readable when the answer has come; it is the
 * caller's, also that of a KVMCHAN_NOTIFY. */
int kvmchan_python_ask(const struct kvmchan_request *request, int32_t *control_fd, char *sentence,
		       int room);
/* Take the answer. Takes ownership of @control_fd, also when it fails. */
int kvmchan_python_answer(uint32_t what, int control_fd, struct kvmchan_answer *answer,
			  char *sentence, int room);
/* cffi: end */

#endif
