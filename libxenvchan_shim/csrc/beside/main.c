/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * kvmchan-helper: runs Python for a program whose process can't. Its stdin is the program's socket,
 * and it ends when nobody has the other end any more. It never connects to the daemon itself: the
 * program does that, as the daemon judges a client by its process.
 */
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/message.h"
#include "setup/loader.h"

/* What Python needs. */
#define STACK (1024 * 1024)

struct job {
	struct message message;
	struct reply reply;
	int fds[MESSAGE_FDS]; /* for the reply, and to the daemon; -1 if there is none */
};

/* ---- the steps ---- */

static void do_step(struct job *job)
{
	struct message *message = &job->message;
	struct reply *reply = &job->reply;
	const struct kvmchan_runtime *runtime =
	    runtime_get(INSIDE, &reply->error, reply->sentence, sizeof(reply->sentence));

	if (!runtime)
		return;
	reply->error = EPROTO;
	if (message->step == MESSAGE_ASK) {
		message->request.control_fd = job->fds[1];
		message->request.domain = message->domain;
		message->request.runtime_dir = message->runtime_dir;
		message->request.path = message->path;
		reply->error =
		    runtime->ask(&message->request, reply->sentence, sizeof(reply->sentence));
	} else if (message->step == MESSAGE_ANSWER) {
		reply->error = runtime->answer(message->request.what, job->fds[1], &reply->answer,
					       reply->sentence, sizeof(reply->sentence));
	}
}

static void send_reply(struct job *job)
{
	struct iovec data = {&job->reply, sizeof(job->reply)};
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(REPLY_FDS * sizeof(int))];
	} beside = {0};
	struct msghdr packet = {.msg_iov = &data, .msg_iovlen = 1};
	int fds[REPLY_FDS], count = 0, i;

	for (i = 0; i < REPLY_FDS; i++)
		if (*answer_fd(&job->reply.answer, i) >= 0)
			fds[count++] = *answer_fd(&job->reply.answer, i);
	if (count) {
		beside.header.cmsg_level = SOL_SOCKET;
		beside.header.cmsg_type = SCM_RIGHTS;
		beside.header.cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
		memcpy(CMSG_DATA(&beside.header), fds, (size_t)count * sizeof(int));
		packet.msg_control = &beside;
		packet.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
	}
	/* The program may have gone, and then nobody wants it. */
	sendmsg(job->fds[0], &packet, MSG_NOSIGNAL);
	while (count)
		close(fds[--count]);
}

static void job_free(struct job *job)
{
	int i;

	for (i = 0; i < MESSAGE_FDS; i++)
		if (job->fds[i] >= 0)
			close(job->fds[i]);
	free(job);
}

static void *run(void *argument)
{
	struct job *job = argument;

	do_step(job);
	send_reply(job);
	job_free(job);
	return NULL;
}

static void start_thread(struct job *job)
{
	pthread_attr_t attributes;
	pthread_t thread;
	int error;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	error = pthread_create(&thread, &attributes, run, job);
	pthread_attr_destroy(&attributes);
	if (!error)
		return;
	job->reply.error = error;
	snprintf(job->reply.sentence, sizeof(job->reply.sentence),
		 "kvmchan's helper can start no thread: %s", strerror(error));
	send_reply(job);
	job_free(job);
}

/* ---- messages ---- */

static void take_fds(struct job *job, struct msghdr *packet)
{
	const struct cmsghdr *header = CMSG_FIRSTHDR(packet);
	size_t size = header ? header->cmsg_len - CMSG_LEN(0) : 0;

	job->fds[0] = job->fds[1] = -1;
	memcpy(job->fds, header ? CMSG_DATA(header) : (void *)job->fds,
	       size < sizeof(job->fds) ? size : sizeof(job->fds));
}

/* Have all strings end. */
static bool is_valid(struct message *message, size_t size)
{
	message->domain[sizeof(message->domain) - 1] = '\0';
	message->runtime_dir[sizeof(message->runtime_dir) - 1] = '\0';
	message->path[sizeof(message->path) - 1] = '\0';
	return size > offsetof(struct message, path) && message->version == KVMCHAN_RUNTIME_VERSION;
}

/* Returns false at the end. */
static bool receive(struct job *job)
{
	struct iovec data = {&job->message, sizeof(job->message)};
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(MESSAGE_FDS * sizeof(int))];
	} beside;
	struct msghdr packet = {
	    .msg_iov = &data,
	    .msg_iovlen = 1,
	    .msg_control = &beside,
	    .msg_controllen = sizeof(beside),
	};
	ssize_t got;
	int i;

	do
		got = recvmsg(STDIN_FILENO, &packet, MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	if (got <= 0)
		return false;
	take_fds(job, &packet);
	for (i = 0; i < REPLY_FDS; i++)
		*answer_fd(&job->reply.answer, i) = -1;
	job->reply.answer.grant.control_fd = -1;
	if (!is_valid(&job->message, (size_t)got))
		job->message.step = MESSAGE_INVALID;
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

		if (!job)
			return EXIT_FAILURE;
		job->fds[0] = job->fds[1] = -1;
		if (!receive(job)) {
			job_free(job);
			/* Threads may still be in Python, so no destructor shall run. */
			_exit(EXIT_SUCCESS);
		}
		start_thread(job);
	}
}
