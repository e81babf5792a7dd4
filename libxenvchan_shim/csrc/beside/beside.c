/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The runtime that has a helper process run Python. Each step is a packet to the helper and one
 * back, on a socket of the step's own: so threads and forked children need no turns. */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "beside/helper.h"
#include "runtime/message.h"
#include "runtime/runtime.h"
#include "setup/daemon.h"
#include "setup/stdio.h"

struct exchange {
	struct message message;
	struct reply reply;
};

/* The helper's own deadline is the daemon's. */
#define DEADLINE (DAEMON_DEADLINE + 5000)

static int describe(struct reply *reply, int error, const char *sentence)
{
	snprintf(reply->sentence, sizeof(reply->sentence), "%s", sentence);
	return error;
}

/* Take what lies beside the reply into the answer, or close it. */
static int take_fds(struct reply *reply, struct msghdr *packet)
{
	struct cmsghdr *header = CMSG_FIRSTHDR(packet);
	size_t size = header ? header->cmsg_len - CMSG_LEN(0) : 0, at = 0;
	int i, fd, error = packet->msg_flags & MSG_CTRUNC ? EMFILE : 0;

	for (i = 0; i < REPLY_FDS; i++) {
		int32_t *into = answer_fd(&reply->answer, i);

		if (*into < 0 || at + sizeof(fd) > size) {
			*into = -1;
			continue;
		}
		memcpy(&fd, CMSG_DATA(header) + at, sizeof(fd));
		at += sizeof(fd);
		*into = above_stdio(fd);
		if (*into < 0)
			error = errno;
	}
	for (i = 0; error && i < REPLY_FDS; i++) {
		int32_t *into = answer_fd(&reply->answer, i);

		if (*into >= 0)
			close(*into);
		*into = -1;
	}
	return error;
}

static int receive_reply(int fd, struct reply *reply)
{
	struct iovec data = {reply, sizeof(*reply)};
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(REPLY_FDS * sizeof(int))];
	} beside;
	struct msghdr packet = {
	    .msg_iov = &data,
	    .msg_iovlen = 1,
	    .msg_control = &beside,
	    .msg_controllen = sizeof(beside),
	};
	struct pollfd ready = {.fd = fd, .events = POLLIN};
	ssize_t got;
	int count;

	do
		count = poll(&ready, 1, DEADLINE);
	while (count < 0 && errno == EINTR);
	if (count == 0)
		return describe(reply, ETIMEDOUT, "kvmchan's helper does not answer");
	got = recvmsg(fd, &packet, MSG_CMSG_CLOEXEC);
	if (got == 0)
		return describe(reply, ECONNRESET,
				"kvmchan's helper has ended before it answered: call again");
	if (got < 0)
		return describe(reply, errno, "kvmchan's helper can't be heard");
	if (take_fds(reply, &packet) != 0)
		return describe(
		    reply, EMFILE,
		    "no more descriptors can be open for those that came: close some, or "
		    "raise the limit (ulimit -n)");
	return reply->error;
}

static int exchange(struct exchange *exchange, int control_fd)
{
	struct message *message = &exchange->message;
	struct reply *reply = &exchange->reply;
	int pair[2], fds[MESSAGE_FDS], error;

	message->version = KVMCHAN_RUNTIME_VERSION;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return describe(
		    reply, errno,
		    "no socket for kvmchan's helper: close descriptors, or raise the limit "
		    "(ulimit -n)");
	pair[0] = above_stdio(pair[0]);
	pair[1] = above_stdio(pair[1]);
	fds[0] = pair[1];
	fds[1] = control_fd;
	error = helper_send(message, offsetof(struct message, path) + strlen(message->path) + 1,
			    fds, control_fd < 0 ? 1 : 2, reply->sentence, sizeof(reply->sentence));
	close(pair[1]);
	if (!error)
		error = receive_reply(pair[0], reply);
	close(pair[0]);
	return error;
}

static struct exchange *exchange_new(uint32_t step, char *sentence, int room)
{
	struct exchange *made = calloc(1, sizeof(*made));

	if (made)
		made->message.step = step;
	else
		snprintf(sentence, (size_t)room, "no memory to talk to the daemon");
	return made;
}

/* Give the sentence of a failure, and free the exchange. */
static int finish(struct exchange *exchange, int error, char *sentence, int room)
{
	if (error)
		snprintf(sentence, (size_t)room, "%s", exchange->reply.sentence);
	free(exchange);
	return error;
}

static enum kvmchan_runtime_state state(void)
{
	return helper_is_there() ? RUNTIME_STARTED : RUNTIME_STOPPED;
}

static int ask(const struct kvmchan_request *request, char *sentence, int room)
{
	struct exchange *made = exchange_new(MESSAGE_ASK, sentence, room);
	struct message *message;

	if (!made)
		return ENOMEM;
	message = &made->message;
	message->request = *request;
	snprintf(message->domain, sizeof(message->domain), "%s", request->domain);
	snprintf(message->runtime_dir, sizeof(message->runtime_dir), "%s", request->runtime_dir);
	snprintf(message->path, sizeof(message->path), "%s", request->path);
	return finish(made, exchange(made, request->control_fd), sentence, room);
}

static int answer(uint32_t what, int control_fd, struct kvmchan_answer *answer, char *sentence,
		  int room)
{
	struct exchange *made = exchange_new(MESSAGE_ANSWER, sentence, room);
	int error;

	if (!made)
		return ENOMEM;
	made->message.request.what = what;
	made->reply.answer = *answer;
	error = exchange(made, control_fd);
	if (!error)
		*answer = made->reply.answer;
	return finish(made, error, sentence, room);
}

__attribute__((visibility("default"))) const struct kvmchan_runtime kvmchan_runtime = {
    .version = KVMCHAN_RUNTIME_VERSION,
    .state = state,
    .start = helper_start,
    .ask = ask,
    .answer = answer,
};
