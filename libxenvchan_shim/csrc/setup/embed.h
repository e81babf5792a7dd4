/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What C asks of the embedded Python (libxenvchan_shim/embed.py). build_embed.py reads this file
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

/* Which daemon, and as which domain: the environment's values, "" where unset. */
struct kvmchan_where {
	const char *runtime_dir;
	const char *domain;
};

/* Strings are never NULL; they stay the caller's. */
struct kvmchan_request {
	struct kvmchan_where where;
	uint32_t what; /* enum kvmchan_what */
	int peer;
	const char *path; /* "" where there is none */
	uint64_t read_min, write_min;
	uint64_t port;
	int once;  /* the offer is for the first client that comes, and no other */
	int waits; /* until peer offers a vchan there that has no client, or is gone */
};

/* Pages shared with another domain. They are ours for as long as the connection control_fd. */
struct kvmchan_pages {
	struct kvmchan_where where;
	int peer;	/* whom they are for; of a mapping, whose they are */
	uint64_t ref;	/* of a mapping: any of them. Answer: the first's; they count up */
	uint32_t pages; /* of a share: how many are wanted. Answer: how many there are */
	int writable;	/* of a share: for the peer; of a mapping: it is to be written to */
	/* The answer's; the descriptors are the caller's. */
	int memory_fd, control_fd;
	uint64_t offset; /* where memory_fd has them */
};

/* An event channel's end. */
struct kvmchan_port {
	struct kvmchan_where where;
	int of; /* whose; -1: ours */
	uint64_t port;
	/* The answer: Xen's EVTCHNSTAT_ 0 closed, 1 unbound, 2 interdomain. */
	int state;
	int peer;	    /* who may join, or has */
	uint64_t peer_port; /* the number there; of state 2 */
};

/* Domains by rising number, from first on. */
struct kvmchan_domains {
	struct kvmchan_where where;
	int first;
	int most;
	int *numbers; /* room for most */
	/* The answer. */
	int count;
	int own;
};
/* cffi: functions */
/* These return 0, or an errno with the sentence in @sentence, which holds @room bytes. */
int kvmchan_python_open(const struct kvmchan_request *request, struct kvmchan_grant *grant,
			char *sentence, int room);
/* KVMCHAN_CONNECT without waiting for the answer: @control_fd is readable when it is there. */
int kvmchan_python_ask(const struct kvmchan_request *request, int *control_fd, char *sentence,
		       int room);
/* Waits for that answer. Takes @control_fd, also when it fails. */
int kvmchan_python_answer(int control_fd, struct kvmchan_grant *grant, char *sentence, int room);
int kvmchan_python_share(struct kvmchan_pages *pages, char *sentence, int room);
int kvmchan_python_map(struct kvmchan_pages *pages, char *sentence, int room);
/* When the pages of @control_fd are let go of, however that comes, the daemon clears the byte at
 * @offset, if @clears, and sends an event on our event channel @port, if that is not 0. */
int kvmchan_python_notify(int control_fd, uint64_t offset, int clears, uint64_t port,
			  char *sentence, int room);
int kvmchan_python_port(struct kvmchan_port *port, char *sentence, int room);
int kvmchan_python_domains(struct kvmchan_domains *domains, char *sentence, int room);
/* Tells the daemon, waits until it knows, and closes @control_fd. */
void kvmchan_python_close(int control_fd);
/* cffi: end */

#endif
