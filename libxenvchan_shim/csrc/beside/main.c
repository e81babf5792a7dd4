/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * kvmchan-helper: runs Python for a program whose process can't. Its stdin is the program's socket,
 * and it ends when nobody has the other end any more. It never talks to the daemon: the
 * program does.
 */
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/message.h"
#include "setup/apart.h"
#include "setup/loader.h"

struct job {
	int reply_fd;
	size_t size; /* of the data behind the message */
	struct message message;
	uint8_t data[KVMCHAN_PACKET_MAX + 1];
	struct reply reply;
	struct kvmchan_answer answer;
	uint8_t packet[KVMCHAN_PACKET_MAX];
};

/* ---- the steps ---- */

/* Return how many bytes follow the reply. */
static size_t encode(struct job *job, const struct kvmchan_runtime *runtime)
{
	struct kvmchan_packet packet = {.data = job->packet, .room = sizeof(job->packet)};
	struct reply *reply = &job->reply;
	struct kvmchan_request request = job->message.request;

	request.domain = job->message.domain;
	request.runtime_dir = job->message.runtime_dir;
	request.path = (char *)job->data;
	reply->error = runtime->encode(&request, &packet, reply->sentence, sizeof(reply->sentence));
	return reply->error ? 0 : packet.size;
}

static size_t decode(struct job *job, const struct kvmchan_runtime *runtime)
{
	struct kvmchan_received received = {
	    .error = job->message.received.error,
	    .fd_count = job->message.received.fd_count,
	    .size = (uint32_t)job->size,
	    .data = job->data,
	};
	struct reply *reply = &job->reply;

	reply->error = runtime->decode(job->message.request.what, &received, &job->answer,
				       reply->sentence, sizeof(reply->sentence));
	return reply->error ? 0 : sizeof(job->answer);
}

static void send_reply(struct job *job, const void *data, size_t size)
{
	struct iovec parts[] = {{&job->reply, sizeof(job->reply)}, {(void *)data, size}};
	struct msghdr packet = {.msg_iov = parts, .msg_iovlen = 2};

	/* The program may have gone, and then nobody wants it. */
	sendmsg(job->reply_fd, &packet, MSG_NOSIGNAL);
}

static void do_step(struct job *job)
{
	struct reply *reply = &job->reply;
	const struct kvmchan_runtime *runtime =
	    runtime_get(INSIDE, &reply->error, reply->sentence, sizeof(reply->sentence));

	if (!runtime)
		send_reply(job, NULL, 0);
	else if (job->message.step == MESSAGE_ENCODE)
		send_reply(job, job->packet, encode(job, runtime));
	else
		send_reply(job, &job->answer, decode(job, runtime));
}

static void job_free(struct job *job)
{
	if (job->reply_fd >= 0)
		close(job->reply_fd);
	free(job);
}

static void *run(void *argument)
{
	struct job *job = argument;

	do_step(job);
	job_free(job);
	return NULL;
}

static void start_thread(struct job *job)
{
	pthread_attr_t attributes;
	pthread_t thread;
	int error;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, APART_STACK);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	error = pthread_create(&thread, &attributes, run, job);
	pthread_attr_destroy(&attributes);
	if (!error)
		return;
	job->reply.error = error;
	snprintf(job->reply.sentence, sizeof(job->reply.sentence),
		 "kvmchan's helper can start no thread: %s", strerror(error));
	send_reply(job, NULL, 0);
	job_free(job);
}

/* ---- messages ---- */

/* Take ownership of the socket beside a message. */
static int take_fd(struct msghdr *packet)
{
	struct cmsghdr *header = CMSG_FIRSTHDR(packet);
	int fd = -1;

	if (header && header->cmsg_type == SCM_RIGHTS && header->cmsg_len >= CMSG_LEN(sizeof(fd)))
		memcpy(&fd, CMSG_DATA(header), sizeof(fd));
	return fd;
}

/* Wait for a message. Returns its size; 0 at the end. */
static size_t receive(struct job *job)
{
	struct iovec parts[] = {{&job->message, sizeof(job->message)},
				{job->data, KVMCHAN_PACKET_MAX}};
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} beside;
	struct msghdr packet = {
	    .msg_iov = parts,
	    .msg_iovlen = 2,
	    .msg_control = &beside,
	    .msg_controllen = sizeof(beside),
	};
	ssize_t got;

	do
		got = recvmsg(STDIN_FILENO, &packet, MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	if (got <= 0)
		return 0;
	job->reply_fd = take_fd(&packet);
	return (size_t)got;
}

/* Have all strings end. Returns false if it is no message. */
static bool check(struct job *job, size_t size)
{
	struct message *message = &job->message;

	if (size < sizeof(*message) || message->version != KVMCHAN_RUNTIME_VERSION)
		return false;
	job->size = size - sizeof(*message);
	job->data[job->size] = '\0';
	message->domain[sizeof(message->domain) - 1] = '\0';
	message->runtime_dir[sizeof(message->runtime_dir) - 1] = '\0';
	return true;
}

int main(void)
{
	/* We must not keep the program's folder, and each heap of a thread's takes address space.
	 */
	if (chdir("/") < 0)
		return EXIT_FAILURE;
	mallopt(M_ARENA_MAX, 1);
	for (;;) {
		struct job *job = calloc(1, sizeof(*job));
		size_t size;

		if (!job)
			return EXIT_FAILURE;
		job->reply_fd = -1;
		size = receive(job);
		/* Threads may still be in Python, so no destructor shall run. */
		if (size == 0)
			_exit(EXIT_SUCCESS);
		if (check(job, size))
			start_thread(job);
		else
			job_free(job);
	}
}
