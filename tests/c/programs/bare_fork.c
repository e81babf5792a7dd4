/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program that forks without libc's handlers, as _Fork() does, in which its Python can't be
 * followed: bare_fork PATH. Its child and its child's ordinary child use vchans, too.
 */
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "../rig/talk.h"

static const char *path;

static void in_child(pid_t child, void (*body)(void))
{
	int status;

	EXPECT(child >= 0);
	if (child == 0) {
		body();
		_exit(0);
	}
	EXPECT(waitpid(child, &status, 0) == child && status == 0);
}

static void grandchild(void) { talk(path); }

static void child(void)
{
	talk(path);
	in_child(fork(), grandchild);
	talk(path);
}

static void no_child(int number)
{
	(void)number;
	EXPECT(!"a SIGCHLD of a process that the program has not started");
}

int main(int argc, char **argv)
{
	EXPECT(argc == 2);
	path = argv[1];
	signal(SIGCHLD, no_child);
	talk(path);
	EXPECT(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
	signal(SIGCHLD, SIG_DFL);
	in_child(_Fork(), child);
	talk(path);
	say("ok");
	return 0;
}
