/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The runtime that has a helper process run Python. Each step is a packet to the helper and one
 * back, on a socket of the step's own: so threads and forked children need no turns. */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "beside/helper.h"
#include "runtime/message.h"
#include "runtime/runtime.h"
#include "setup/stdio.h"

/* Milliseconds that a helper may take, whose start is a part of the first reply. */
#define DEADLINE 40000

/* One step: what is sent, and where the reply goes. */
struct exchange {
	struct message message;
	const void *data;
	size_t size;
	struct reply reply;
	void *into;
	size_t room;
	size_t got;
};

__attribute__((format(printf, 3, 4))) static int describe(struct exchange *exchange, int error,
							  const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(exchange->reply.sentence, sizeof(exchange->reply.sentence), format, arguments);
	va_end(arguments);
	return error;
}

static int receive_reply(int fd, struct exchange *exchange)
{
	struct pollfd ready = {.fd = fd, .events = POLLIN};
	struct iovec parts[] = {{&exchange->reply, sizeof(exchange->reply)},
				{exchange->into, exchange->room}};
	struct msghdr packet = {.msg_iov = parts, .msg_iovlen = 2};
	ssize_t got;
	int count;

	do
		count = poll(&ready, 1, DEADLINE);
	while (count < 0 && errno == EINTR);
	if (count == 0)
		return describe(exchange, ETIMEDOUT, "kvmchan's helper does not answer");
	got = recvmsg(fd, &packet, 0);
	if (got == 0)
		return ECONNRESET;
	if (got < 0)
		return describe(exchange, errno, "kvmchan's helper can't be heard: %s",
				strerror(errno));
	if ((size_t)got < sizeof(exchange->reply))
		return describe(exchange, EPROTO, "kvmchan's helper is of another release");
	exchange->got = (size_t)got - sizeof(exchange->reply);
	return exchange->reply.error;
}

static int exchange_with_helper(struct exchange *exchange)
{
	struct reply *reply = &exchange->reply;
	struct connection helper;
	int pair[2], error = seqpacket_pair(pair);

	exchange->message.version = KVMCHAN_RUNTIME_VERSION;
	if (error)
		return describe(
		    exchange, error,
		    "no socket for kvmchan's helper: close descriptors, or raise the limit "
		    "(ulimit -n)");
	error = helper_send(&exchange->message, exchange->data, exchange->size, pair[1], &helper,
			    reply->sentence, sizeof(reply->sentence));
	close(pair[1]);
	if (!error)
		error = receive_reply(pair[0], exchange);
	close(pair[0]);
	if (error == ECONNRESET)
		helper_forget(&helper);
	return error;
}

/* A step changes nothing, so if a helper is killed, the next can do it. */
#define TRIES 3

static int do_exchange(struct exchange *exchange, char *sentence, int room)
{
	int tries = TRIES, error;

	do
		error = exchange_with_helper(exchange);
	while (error == ECONNRESET && --tries);
	if (error == ECONNRESET)
		describe(
		    exchange, error,
		    "kvmchan's helper ends before it answers: install kvmchan again, if nobody "
		    "kills it");
	if (error)
		snprintf(sentence, (size_t)room, "%s", exchange->reply.sentence);
	return error;
}

/* The first step starts the helper, as does the first after one has ended. */
static int start(char *sentence, int room)
{
	(void)sentence;
	(void)room;
	return 0;
}

static int encode(const struct kvmchan_request *request, struct kvmchan_packet *packet,
		  char *sentence, int room)
{
	struct exchange exchange = {
	    .message = {.step = MESSAGE_ENCODE, .request = *request},
	    .data = request->path,
	    .size = strlen(request->path) + 1,
	    .into = packet->data,
	    .room = packet->room,
	};
	struct message *message = &exchange.message;
	int error;

	snprintf(message->domain, sizeof(message->domain), "%s", request->domain);
	snprintf(message->runtime_dir, sizeof(message->runtime_dir), "%s", request->runtime_dir);
	error = do_exchange(&exchange, sentence, room);
	packet->size = (uint32_t)exchange.got;
	return error;
}

static int decode(uint32_t what, const struct kvmchan_received *received,
		  struct kvmchan_answer *answer, char *sentence, int room)
{
	struct exchange exchange = {
	    .message = {.step = MESSAGE_DECODE, .request.what = what, .received = *received},
	    .data = received->data,
	    .size = received->size,
	    .into = answer,
	    .room = sizeof(*answer),
	};

	return do_exchange(&exchange, sentence, room);
}

__attribute__((visibility("default"))) const struct kvmchan_runtime kvmchan_runtime = {
    .version = KVMCHAN_RUNTIME_VERSION,
    .start = start,
    .encode = encode,
    .decode = decode,
};
