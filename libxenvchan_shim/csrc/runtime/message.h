/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a program and its helper process send each other, in packets of a SOCK_SEQPACKET socket. A
 * message has a socket for the reply beside it. They are of the same build, so that what lies in
 * memory is what is sent.
 */
#ifndef KVMCHAN_MESSAGE_H
#define KVMCHAN_MESSAGE_H

#include "runtime/call.h"

enum message_step {
	MESSAGE_ENCODE,
	MESSAGE_DECODE,
};

/* The request's path, or the received packet, follows it. */
struct message {
	uint32_t version;		/* KVMCHAN_RUNTIME_VERSION */
	uint32_t step;			/* enum message_step */
	struct kvmchan_request request; /* without its strings; of decode, only `what` */
	char domain[32];
	char runtime_dir[256];		  /* cut off: one that is longer is none */
	struct kvmchan_received received; /* without its data */
};

/* The packet to send, or the answer, follows it. */
struct reply {
	int32_t error; /* 0, or an errno with the sentence */
	char sentence[480];
};

#endif
