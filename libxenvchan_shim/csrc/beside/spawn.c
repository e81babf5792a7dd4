/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "beside/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define STACK (64 * 1024)

struct spawn {
	const char *path;
	char *const *environment;
	const posix_spawn_file_actions_t *actions;
	const posix_spawnattr_t *attributes;
};

static void raise_limit(int kind)
{
	struct rlimit limit;

	if (getrlimit(kind, &limit) < 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(kind, &limit);
}

/* In between, a process that shares our memory, and whose end nobody notices: so what it starts has
 * another parent than us. Returns its status, an errno. */
static int between(void *argument)
{
	const struct spawn *spawn = argument;
	char *const arguments[] = {(char *)spawn->path, NULL};
	pid_t pid;

	/* The program's limits are for what it does itself. */
	raise_limit(RLIMIT_AS);
	raise_limit(RLIMIT_DATA);
	return posix_spawn(&pid, spawn->path, spawn->actions, spawn->attributes, arguments,
			   spawn->environment);
}

static int run_between(struct spawn *spawn)
{
	char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	int error, status = 0;
	sigset_t all, before;
	pid_t pid;

	if (stack == MAP_FAILED)
		return errno;
	sigfillset(&all);
	/* A handler must not run there, in our memory. */
	pthread_sigmask(SIG_SETMASK, &all, &before);
	/* No number of a signal, as which its end would be told. */
	pid = clone(between, stack + STACK, CLONE_VM | CLONE_VFORK, spawn);
	error = pid < 0 ? errno : 0;
	/* Only a program that waits for processes of this kind, too, could take the status. */
	while (pid >= 0 && waitpid(pid, &status, __WCLONE) < 0 && errno == EINTR)
		;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	munmap(stack, STACK);
	return error ? error : WEXITSTATUS(status);
}

static int add_actions(posix_spawn_file_actions_t *actions, int fd)
{
	int error = posix_spawn_file_actions_adddup2(actions, fd, STDIN_FILENO);

	if (!error)
		error = posix_spawn_file_actions_addopen(actions, STDOUT_FILENO, "/dev/null",
							 O_WRONLY, 0);
	if (!error)
		error = posix_spawn_file_actions_adddup2(actions, STDOUT_FILENO, STDERR_FILENO);
	if (!error)
		error = posix_spawn_file_actions_addclosefrom_np(actions, STDERR_FILENO + 1);
	return error;
}

static void set_attributes(posix_spawnattr_t *attributes)
{
	sigset_t none, all;

	sigemptyset(&none);
	sigfillset(&all);
	posix_spawnattr_setsigmask(attributes, &none);
	posix_spawnattr_setsigdefault(attributes, &all);
	posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
						 POSIX_SPAWN_SETSID);
}

int spawn_unnoticed(const char *path, int fd)
{
	const char *folders = secure_getenv("LD_LIBRARY_PATH");
	char *variable = NULL;
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	int error;

	/* Where the program finds its libraries, Python may be, too. */
	if (folders && asprintf(&variable, "LD_LIBRARY_PATH=%s", folders) < 0)
		return ENOMEM;
	posix_spawn_file_actions_init(&actions);
	posix_spawnattr_init(&attributes);
	set_attributes(&attributes);
	error = add_actions(&actions, fd);
	if (!error)
		error = run_between(&(struct spawn){
		    .path = path,
		    .environment = (char *const[]){variable, NULL},
		    .actions = &actions,
		    .attributes = &attributes,
		});
	posix_spawnattr_destroy(&attributes);
	posix_spawn_file_actions_destroy(&actions);
	free(variable);
	return error;
}
