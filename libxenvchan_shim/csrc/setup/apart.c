/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "setup/apart.h"

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "dataplane/error.h"

/* ---- undisturbed ---- */

static _Thread_local struct {
	int depth;
	sigset_t handled; /* the signals that have a handler */
	sigset_t signals; /* what was blocked before */
	int cancels;
} undisturbed;

/* The signals without a handler may still end the program. */
static void find_handled(void)
{
	struct sigaction action;
	int number;

	sigemptyset(&undisturbed.handled);
	for (number = 1; number <= SIGRTMAX; number++)
		if (sigaction(number, NULL, &action) == 0 && action.sa_handler != SIG_DFL &&
		    action.sa_handler != SIG_IGN)
			sigaddset(&undisturbed.handled, number);
}

static void begin(int depth)
{
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &undisturbed.cancels);
	pthread_sigmask(SIG_BLOCK, &undisturbed.handled, &undisturbed.signals);
	undisturbed.depth = depth;
}

static void end(void)
{
	undisturbed.depth = 0;
	pthread_sigmask(SIG_SETMASK, &undisturbed.signals, NULL);
	pthread_setcancelstate(undisturbed.cancels, NULL);
}

void undisturbed_begin(void)
{
	if (undisturbed.depth == 0) {
		find_handled();
		begin(1);
	} else {
		undisturbed.depth++;
	}
}

void undisturbed_end(void)
{
	if (undisturbed.depth == 1)
		end();
	else
		undisturbed.depth--;
}

int undisturbed_pause(void)
{
	int depth = undisturbed.depth;

	end();
	return depth;
}

void undisturbed_resume(int depth) { begin(depth); }

/* ---- apart ---- */

struct errand {
	void (*body)(void *argument);
	void *argument;
};

/* The leak checker's, in a program that was built with one. */
extern void __lsan_disable(void) __attribute__((weak));
extern void __lsan_enable(void) __attribute__((weak));

static void run_here(void (*body)(void *argument), void *argument)
{
	/* What Python allocates lives as long as the process, and it finds it by memory of its own,
	 * where the checker does not look. */
	if (__lsan_disable)
		__lsan_disable();
	body(argument);
	if (__lsan_enable)
		__lsan_enable();
}

static void *run(void *argument)
{
	const struct errand *errand = argument;

	run_here(errand->body, errand->argument);
	return NULL;
}

/* Start a thread in which all signals are blocked, as it inherits our mask. */
static int start_thread(pthread_t *thread, struct errand *errand)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	int error = pthread_attr_init(&attributes);

	if (error)
		return error;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_attr_setstacksize(&attributes, APART_STACK);
	if (!error)
		error = pthread_create(thread, &attributes, run, errand);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	return error;
}

int run_apart(void (*body)(void *argument), void *argument)
{
	struct errand errand = {body, argument};
	pthread_t thread;
	int error = start_thread(&thread, &errand);

	if (error)
		return fail(error, "no thread can be started to talk to the daemon: %s",
			    strerror(error));
	pthread_join(thread, NULL);
	return 0;
}

/* ---- here, if there is room ---- */

/* The stack that the thread was started with. A handler or a coroutine may run on another. */
static _Thread_local struct {
	bool known;
	const char *low, *high;
} stack;

static void find_stack(void)
{
	pthread_attr_t attributes;
	size_t size = 0;
	void *low = NULL;

	stack.known = true;
	if (pthread_getattr_np(pthread_self(), &attributes) != 0)
		return;
	if (pthread_attr_getstack(&attributes, &low, &size) == 0) {
		stack.low = low;
		stack.high = stack.low + size;
	}
	pthread_attr_destroy(&attributes);
}

static bool has_room(size_t size)
{
	const char *here = __builtin_frame_address(0);

	if (!stack.known)
		find_stack();
	return here > stack.low && here < stack.high && here - stack.low >= (ptrdiff_t)size;
}

int run_where_there_is_room(size_t size, void (*body)(void *argument), void *argument)
{
	if (!has_room(size))
		return run_apart(body, argument);
	run_here(body, argument);
	return 0;
}
