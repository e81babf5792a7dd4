/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What Python does for C when that talks to the daemon (libxenvchan_shim/embed.py): it makes the
 * packet that asks, and judges the one that answers. Connecting, sending and receiving is C
 * (setup/connect.c). build_embed.py reads this file, too.
 */
#ifndef KVMCHAN_CALL_H
#define KVMCHAN_CALL_H

#include <stdint.h>

#include "dataplane/grant.h"

/* Bytes of a packet: PACKET_MAX of kvmchand/wire/codec.py. */
#define KVMCHAN_PACKET_MAX 28672
/* Bytes that a request may take: JSON may need six for a character. */
#define KVMCHAN_REQUEST_ROOM(path) (6 * strlen(path) + 1024)

/* cffi: types */
/* What is asked. A connection to the daemon holds what it was given until it ends. */
enum kvmchan_what {
	KVMCHAN_OFFER,	 /* a vchan to peer: path, read_min, write_min, once */
	KVMCHAN_CONNECT, /* a vchan of peer's: path, waits */
	KVMCHAN_BIND,	 /* an event channel for peer to join */
	KVMCHAN_JOIN,	 /* an event channel of peer's: port */
	KVMCHAN_SHARE,	 /* pages that peer may map: pages, writable by it */
	KVMCHAN_MAP,	 /* pages that peer shares: ref, writable by us */
	KVMCHAN_NOTIFY,	 /* at the end of the connection's pages: offset, clears, port */
	KVMCHAN_PORT,	 /* what peer's event channel is, or if peer is -1 ours: port */
	KVMCHAN_DOMAINS, /* which domains there are, from number `first` on */
};

/* A request. Its strings are never NULL, and stay the caller's. */
struct kvmchan_request {
	uint32_t what; /* enum kvmchan_what */
	/* Which daemon, and as which domain: the environment's values, "" if unset. */
	const char *runtime_dir;
	const char *domain;
	int32_t connect_errno; /* 0 if there is a connection */
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

/* The packet to send. */
struct kvmchan_packet {
	uint8_t *data; /* the caller's, with so many bytes: */
	uint32_t room;
	uint32_t size;
};

/* What was received. */
struct kvmchan_received {
	int32_t error; /* errno if nothing was, and then the rest is 0 */
	uint32_t fd_count;
	uint32_t size; /* 0 at the end of the connection */
	const uint8_t *data;
};

/* An answer, without its descriptors. */
struct kvmchan_answer {
	struct kvmchan_grant grant; /* the first four */
	/* Of KVMCHAN_CONNECT after a wait: there may be a vchan now, ask again. */
	int32_t again;
	/* Of pages: where the memory has them, their first number, how many. */
	uint64_t offset, ref;
	uint32_t pages;
	/* Of an event channel: Xen's EVTCHNSTAT_, 0 closed, 1 unbound, 2 interdomain. */
	int32_t state;
	int32_t peer;	    /* the domain that may join, or has joined */
	uint64_t peer_port; /* the port's number there; of state 2 */
	/* Of domains, in rising order. */
	int32_t count;
	int32_t more;	      /* whether others follow the last */
	int32_t own;	      /* the domain that asks */
	int32_t numbers[256]; /* DOMAINS_MAX of kvmchand/wire/client.py */
};
/* cffi: functions */
/* Does nothing, after cffi has started, which the first call of all has it do. */
void kvmchan_python_start(void);
/* Each of these returns -1, or an errno with the sentence in @sentence, which has @room bytes; or
 * 0 if Python could not be run. */
/* Make the packet of a request. Fails with the connection's error if there is one. */
int kvmchan_python_encode(const struct kvmchan_request *request, struct kvmchan_packet *packet,
			  char *sentence, int room);
/* Judge what was received. Fails if the daemon refuses, or what it says can't be. */
int kvmchan_python_decode(uint32_t what, const struct kvmchan_received *received,
			  struct kvmchan_answer *answer, char *sentence, int room);
/* cffi: end */

#endif
