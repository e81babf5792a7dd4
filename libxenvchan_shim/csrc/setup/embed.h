/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What C asks of the embedded Python (libxenvchan_shim/embed.py). build_embed.py reads this file,
 * too. */
#ifndef KVMCHAN_EMBED_H
#define KVMCHAN_EMBED_H

#include <stddef.h>
#include <stdint.h>

#include "dataplane/grant.h"

/* cffi: types */
/* What a connection to the daemon opens. */
enum kvmchan_what {
	KVMCHAN_OFFER,	 /* a vchan to peer: path, read_min, write_min, once */
	KVMCHAN_CONNECT, /* a vchan of peer's: path, waits */
	KVMCHAN_BIND,	 /* an event channel for peer to join */
	KVMCHAN_JOIN,	 /* an event channel of peer's: port */
};

/* Which daemon, and as which domain: the environment's values, "" if unset. */
struct kvmchan_where {
	const char *runtime_dir;
	const char *domain;
};

/* A request to open an end. Its strings are never NULL, and stay the caller's. */
struct kvmchan_request {
	struct kvmchan_where where;
	uint32_t what; /* enum kvmchan_what */
	int peer;
	const char *path; /* "" if there is none */
	uint64_t read_min, write_min;
	uint64_t port;
	int once;  /* no other client finds the offer after the first */
	int waits; /* until the peer offers a vchan there that has no client, or is gone */
};

/* Pages shared with another domain. They are ours as long as the connection control_fd. */
struct kvmchan_pages {
	struct kvmchan_where where;
	int peer;	/* of a share: who may map them; of a mapping: who shares them */
	uint64_t ref;	/* of a mapping: any page's. Answer: the first page's; they count up */
	uint32_t pages; /* of a share: the number wanted. Answer: the number given */
	int writable;	/* of a share: by the peer; of a mapping: by us */
	/* The answer. The descriptors are the caller's. */
	int memory_fd, control_fd;
	uint64_t offset; /* where memory_fd has the pages */
};

/* An event channel's end. */
struct kvmchan_port {
	struct kvmchan_where where;
	int of; /* the domain whose port it is; -1: ours */
	uint64_t port;
	/* The answer: Xen's EVTCHNSTAT_, 0 closed, 1 unbound, 2 interdomain. */
	int state;
	int peer;	    /* the domain that may join, or has joined */
	uint64_t peer_port; /* the port's number there; of state 2 */
};

/* The domains from number first on, in rising order. */
struct kvmchan_domains {
	struct kvmchan_where where;
	int first;
	int most;
	int *numbers; /* room for `most` of them */
	/* The answer. */
	int count;
	int own;
};
/* cffi: functions */
/* Each returns 0, or an errno with the sentence in @sentence, which has @room bytes. Each blocks
 * until the daemon has answered, but for kvmchan_python_ask(). */
/* Open an end. The grant's descriptors are the caller's. */
int kvmchan_python_open(const struct kvmchan_request *request, struct kvmchan_grant *grant,
			char *sentence, int room);
/* Ask for KVMCHAN_CONNECT and return at once: *@control_fd is readable when the answer has come. */
int kvmchan_python_ask(const struct kvmchan_request *request, int *control_fd, char *sentence,
		       int room);
/* Wait for that answer. Takes ownership of @control_fd, also when it fails. */
int kvmchan_python_answer(int control_fd, struct kvmchan_grant *grant, char *sentence, int room);
/* Share pages. */
int kvmchan_python_share(struct kvmchan_pages *pages, char *sentence, int room);
/* Map pages. */
int kvmchan_python_map(struct kvmchan_pages *pages, char *sentence, int room);
/* Say what the daemon shall do when the pages of @control_fd are released, for whatever reason:
 * clear the byte at @offset if @clears, and send an event on our event channel @port unless that is
 * 0. */
int kvmchan_python_notify(int control_fd, uint64_t offset, int clears, uint64_t port,
			  char *sentence, int room);
/* Ask what an event channel is. */
int kvmchan_python_port(struct kvmchan_port *port, char *sentence, int room);
/* Ask which domains exist. */
int kvmchan_python_domains(struct kvmchan_domains *domains, char *sentence, int room);
/* Tell the daemon, wait until it has released what the connection holds, and close @control_fd. */
void kvmchan_python_close(int control_fd);
/* cffi: end */

#endif
