/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a program and its helper process send each other, in packets of a SOCK_SEQPACKET socket. A
 * message has a socket for the reply beside it, and then the connection to the daemon if it has
 * one. A reply has the answer's descriptors beside it, in order. They are of the same build, so
 * that what lies in memory is what is sent.
 */
#ifndef KVMCHAN_MESSAGE_H
#define KVMCHAN_MESSAGE_H

#include "runtime/call.h"

#define MESSAGE_FDS 2
#define MESSAGE_SENTENCE 480

enum message_step {
	MESSAGE_INVALID,
	MESSAGE_ASK,
	MESSAGE_ANSWER,
};

struct message {
	uint32_t version; /* KVMCHAN_RUNTIME_VERSION */
	uint32_t step;	  /* enum message_step */
	/* Of ask: its strings are those below. Of answer: only `what`. */
	struct kvmchan_request request;
	char domain[32];
	char runtime_dir[256]; /* cut off: one that is longer is none */
	char path[4097];       /* sent up to its end */
};

struct reply {
	int32_t error; /* 0, or an errno with the sentence */
	char sentence[MESSAGE_SENTENCE];
	struct kvmchan_answer answer; /* a descriptor's number is -1 if there is none */
};

#define REPLY_FDS 4

/* Return where an answer has its descriptors. */
static inline int32_t *answer_fd(struct kvmchan_answer *answer, int i)
{
	int32_t *const fds[REPLY_FDS] = {&answer->grant.region_fd, &answer->grant.event_fd,
					 &answer->grant.notify_fd, &answer->memory_fd};

	return fds[i];
}

#endif
