/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Everything of a process that starting a Python could change, before and after: locale, stdio,
 * signals, environment, working directory, descriptors, threads. unnoticed PATH LOCALE; a locale of
 * "" is left as a program finds it.
 */
#include <dirent.h>
#include <fcntl.h>
#include <fenv.h>
#include <libxenvchan.h>
#include <locale.h>
#include <signal.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <wchar.h>

#include "../rig/descriptors.h"
#include "../rig/program.h"

extern char **environ;

static void show_stream(FILE *out, const char *name, FILE *stream)
{
	fprintf(out, "%s wide %d, buffer %zu, by lines %d, pending %zu, flags %x\n", name,
		fwide(stream, 0), __fbufsize(stream), __flbf(stream), __fpending(stream),
		(unsigned int)fcntl(fileno(stream), F_GETFL));
}

static void show_signals(FILE *out)
{
	struct sigaction action;
	sigset_t blocked;
	stack_t stack;

	for (int number = 1; number <= SIGRTMAX; number++) {
		memset(&action, 0, sizeof(action));
		if (sigaction(number, NULL, &action) == 0)
			fprintf(out, "signal %d: %p flags %x restorer mask %d\n", number,
				(void *)action.sa_handler, (unsigned int)action.sa_flags,
				sigismember(&action.sa_mask, SIGTERM));
	}
	EXPECT(sigprocmask(SIG_SETMASK, NULL, &blocked) == 0);
	for (int number = 1; number <= SIGRTMAX; number++)
		fprintf(out, "%d", sigismember(&blocked, number));
	EXPECT(sigaltstack(NULL, &stack) == 0);
	fprintf(out, " stack %p %d\n", stack.ss_sp, stack.ss_flags);
}

static void show_folder(FILE *out, const char *path)
{
	DIR *directory = opendir(path);
	bool is_fds = strcmp(path, "/proc/self/fd") == 0, has_helper = false;
	struct dirent *entry;

	EXPECT(directory);
	fprintf(out, "%s", path);
	while ((entry = readdir(directory)))
		if (is_fds && !has_helper && is_helpers(atoi(entry->d_name)))
			has_helper = true;
		else if (entry->d_name[0] != '.')
			fprintf(out, strcmp(path, "/proc/self/task") == 0 ? " task" : " %s",
				entry->d_name);
	fprintf(out, "\n");
	closedir(directory);
}

static void show_process(FILE *out)
{
	char name[17] = "", directory[4096];
	struct rlimit limit;
	mode_t mask = umask(0);

	umask(mask);
	EXPECT(prctl(PR_GET_NAME, name) == 0);
	EXPECT(getcwd(directory, sizeof(directory)));
	fprintf(out, "name %s, cwd %s, umask %o, rounding %d\n", name, directory,
		(unsigned int)mask, fegetround());
	for (int resource = 0; resource < RLIM_NLIMITS; resource++) {
		EXPECT(getrlimit(resource, &limit) == 0);
		fprintf(out, "limit %d: %lu %lu\n", resource, limit.rlim_cur, limit.rlim_max);
	}
	for (char **each = environ; *each; each++)
		fprintf(out, "%s\n", *each);
	show_folder(out, "/proc/self/fd");
	show_folder(out, "/proc/self/task");
}

/* Everything, as text; the caller's. */
static char *snapshot(void)
{
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	EXPECT(out);
	for (int category = 0; category <= LC_IDENTIFICATION; category++)
		fprintf(out, "locale %s\n", setlocale(category, NULL));
	show_stream(out, "stdin", stdin);
	show_stream(out, "stdout", stdout);
	show_stream(out, "stderr", stderr);
	show_signals(out);
	show_process(out);
	EXPECT(fclose(out) == 0);
	return text;
}

static void same(const char *before, char *after, const char *when)
{
	if (strcmp(before, after) != 0)
		dprintf(2, "---- before\n%s---- %s\n%s", before, when, after);
	EXPECT(strcmp(before, after) == 0);
	free(after);
}

static void on_usr1(int number) { (void)number; }

int main(int argc, char **argv)
{
	static char buffer[100];
	struct sigaction action = {.sa_handler = on_usr1, .sa_flags = SA_RESTART};
	struct libxenvchan *vchan;
	sigset_t blocked;
	char *before;

	EXPECT(argc == 3);
	if (*argv[2])
		EXPECT(setlocale(LC_ALL, argv[2]));
	/* A program's own settings, too. */
	EXPECT(sigaction(SIGUSR1, &action, NULL) == 0);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR2);
	EXPECT(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0);
	setvbuf(stdout, buffer, _IOFBF, sizeof(buffer));
	EXPECT(fesetround(FE_UPWARD) == 0);
	printf("not flushed yet\n");

	before = snapshot();
	vchan = libxenvchan_server_init(NULL, 0, argv[1], 0, 0);
	EXPECT(vchan);
	libxenvchan_close(vchan);
	same(before, snapshot(), "after an init and a close");
	EXPECT(!libxenvchan_client_init(NULL, 0, argv[1]));
	same(before, snapshot(), "after an init that failed");
	free(before);
	return 0;
}
