/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "setup/apart.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>

#include "dataplane/error.h"
#include "runtime/runtime.h"

struct errand {
	void (*body)(void *argument);
	void *argument;
};

static void *run(void *argument)
{
	const struct errand *errand = argument;

	errand->body(errand->argument);
	return NULL;
}

/* The thread inherits the caller's mask, so this is to be called with all signals blocked. */
static int run_and_wait(struct errand *errand)
{
	pthread_attr_t attributes;
	pthread_t thread;
	int error = pthread_attr_init(&attributes);

	if (!error)
		error = pthread_attr_setstacksize(&attributes, KVMCHAN_RUNTIME_STACK);
	if (!error)
		error = pthread_create(&thread, &attributes, run, errand);
	if (error)
		return fail(error, "no thread can be started to talk to the daemon: %s",
			    strerror(error));
	pthread_attr_destroy(&attributes);
	pthread_join(thread, NULL);
	return 0;
}

int run_apart(void (*body)(void *argument), void *argument)
{
	struct errand errand = {body, argument};
	sigset_t all, before;
	int cancels, result;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancels);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	result = run_and_wait(&errand);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_setcancelstate(cancels, NULL);
	return result;
}
