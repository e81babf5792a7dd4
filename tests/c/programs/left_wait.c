/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Leaves a wait for a server, and waits once more: left_wait jump|cancel|end DOMAIN PORT. It says
 * "left" after the first wait, and goes on when the test says so. jump: SIGUSR1's handler leaves it
 * by siglongjmp(). cancel: the thread is cancelled. end: the handler ends the thread.
 */
#include <libvchan.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>

#include "../rig/program.h"

static int domain, port;
static sigjmp_buf back;

static void leave(int number)
{
	(void)number;
	siglongjmp(back, 1);
}

static void end_thread(int number)
{
	(void)number;
	pthread_exit(NULL);
}

static void *wait_for_server(void *argument)
{
	(void)argument;
	libvchan_client_init(domain, port);
	return NULL;
}

static void leave_thread(const char *how)
{
	pthread_t thread;
	void *result;

	signal(SIGUSR1, end_thread);
	EXPECT(pthread_create(&thread, NULL, wait_for_server, NULL) == 0);
	await_gate();
	if (strcmp(how, "cancel") == 0)
		EXPECT(pthread_cancel(thread) == 0);
	else
		EXPECT(pthread_kill(thread, SIGUSR1) == 0);
	EXPECT(pthread_join(thread, &result) == 0);
}

int main(int argc, char **argv)
{
	libvchan_t *vchan;

	EXPECT(argc == 4);
	domain = atoi(argv[2]);
	port = atoi(argv[3]);
	if (strcmp(argv[1], "jump") == 0) {
		signal(SIGUSR1, leave);
		if (sigsetjmp(back, 1) == 0)
			wait_for_server(NULL);
	} else {
		leave_thread(argv[1]);
	}
	say("left");
	await_gate();
	vchan = libvchan_client_init(domain, port);
	EXPECT(vchan);
	EXPECT(libvchan_send(vchan, "hello", 5) == 5);
	say("sent");
	await_gate();
	libvchan_close(vchan);
	return 0;
}
