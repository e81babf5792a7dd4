/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The process's first call, from a thread that a program may well have: unusual_threads PATH CASE.
 * small: its stack has 16 KiB. blocked: all signals are blocked. cancelled: a cancel is pending.
 * forked: a thread that has ended made the first call, and a child makes the next.
 */
#include <dirent.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "../rig/talk.h"

static const char *path;

static void *run(void *cancels)
{
	if (cancels)
		pthread_cancel(pthread_self());
	talk(path);
	return NULL;
}

/* Returns what the thread did. */
static void *in_thread(size_t stack, void *argument)
{
	pthread_attr_t attributes;
	pthread_t thread;
	void *result;

	EXPECT(pthread_attr_init(&attributes) == 0);
	EXPECT(pthread_attr_setstacksize(&attributes, stack) == 0);
	EXPECT(pthread_create(&thread, &attributes, run, argument) == 0);
	EXPECT(pthread_join(thread, &result) == 0);
	return result;
}

static void check_blocked(void)
{
	sigset_t all, now, pending;

	sigfillset(&all);
	EXPECT(pthread_sigmask(SIG_SETMASK, &all, NULL) == 0);
	EXPECT(raise(SIGUSR1) == 0);
	talk(path);
	EXPECT(pthread_sigmask(SIG_SETMASK, NULL, &now) == 0 && sigismember(&now, SIGTERM));
	EXPECT(sigpending(&pending) == 0 && sigismember(&pending, SIGUSR1));
}

static void check_child(void)
{
	pid_t child = fork();
	int status;

	EXPECT(child >= 0);
	if (child == 0) {
		talk(path);
		talk(path);
		_exit(0);
	}
	EXPECT(waitpid(child, &status, 0) == child && status == 0);
}

static int threads(void)
{
	DIR *directory = opendir("/proc/self/task");
	struct dirent *entry;
	int count = 0;

	EXPECT(directory);
	while ((entry = readdir(directory)))
		count += entry->d_name[0] != '.';
	closedir(directory);
	return count;
}

int main(int argc, char **argv)
{
	EXPECT(argc == 3);
	path = argv[1];
	if (strcmp(argv[2], "small") == 0) {
		EXPECT(in_thread(PTHREAD_STACK_MIN, NULL) == NULL);
	} else if (strcmp(argv[2], "blocked") == 0) {
		check_blocked();
	} else if (strcmp(argv[2], "cancelled") == 0) {
		EXPECT(in_thread(1 << 20, argv) == PTHREAD_CANCELED);
	} else {
		EXPECT(in_thread(1 << 20, NULL) == NULL);
		check_child();
	}
	/* Nothing is left in the way of the next: neither a lock, nor an offer, nor a thread. */
	talk(path);
	EXPECT(threads() == 1);
	say("ok");
	return 0;
}
