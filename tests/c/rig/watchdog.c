/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* See watchdog.h. Linux only: it learns from /proc who sleeps. */
#include "watchdog.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LOOK_MS 100
/* How a sanitizer's own thread is named here. */
#define SANITIZER "sanitizer"

int watchdog_looks = 100;
int watchdog_seconds = 100;

static struct watched *watched;

static _Noreturn void give_up(const char *what)
{
	perror(what);
	_exit(WATCHDOG_STATUS);
}

/* ---- who sleeps ---- */

/* What /proc says of a thread; "" where it has ended. */
static void read_task(int process, int thread, const char *name, char text[512])
{
	ssize_t count = 0;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", process, thread, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		count = read(fd, text, 511);
		close(fd);
	}
	text[count < 0 ? 0 : count] = '\0';
}

static char state_in(const char *stat)
{
	const char *end = strrchr(stat, ')');

	return end && end[1] ? end[2] : 0;
}

char task_state(int process, int thread)
{
	char stat[512];

	read_task(process, thread, "stat", stat);
	return state_in(stat);
}

/* Whether it runs, waits for a processor (R) or the disk (D), or is being debugged (t). */
static bool is_task_awake(int process, int thread)
{
	char stat[512], state;

	read_task(process, thread, "stat", stat);
	state = state_in(stat);
	return state && strchr("RDt", state) && !strstr(stat, "(" SANITIZER ")");
}

static bool is_awake(int process);

static bool has_child_awake(int process, int thread)
{
	char list[512], *rest = list;
	int child;

	read_task(process, thread, "children", list);
	while ((child = (int)strtol(rest, &rest, 10)))
		if (is_awake(child))
			return true;
	return false;
}

/* With its children. */
static bool is_awake(int process)
{
	struct dirent *entry;
	bool awake = false;
	char path[64];
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%d/task", process);
	tasks = opendir(path);
	while (tasks && !awake && (entry = readdir(tasks))) {
		int thread = atoi(entry->d_name);

		awake =
		    thread && (is_task_awake(process, thread) || has_child_awake(process, thread));
	}
	if (tasks)
		closedir(tasks);
	return awake;
}

/* ---- the watchdog ---- */

static void report(const char *what)
{
	fprintf(stderr, "%s%s%s: %s\n", watched->name, *watched->context ? ": " : "",
		watched->context, what);
}

static void watch(pid_t program)
{
	struct pollfd ended = {.fd = pidfd_open(program, 0), .events = POLLIN};
	int asleep = 0;

	if (ended.fd < 0)
		give_up("pidfd_open");
	while (asleep < watchdog_looks && poll(&ended, 1, LOOK_MS) <= 0)
		if (is_awake(program) || __atomic_load_n(&watched->awaits_others, __ATOMIC_SEQ_CST))
			asleep = 0;
		else
			asleep++;
	if (asleep == watchdog_looks) {
		report("hangs, as all of it sleeps; the watchdog ends it");
		kill(program, SIGKILL);
		_exit(WATCHDOG_STATUS);
	}
}

static _Noreturn void end_as(pid_t program)
{
	int status;

	if (waitpid(program, &status, 0) != program)
		give_up("waitpid");
	if (WIFEXITED(status))
		_exit(WEXITSTATUS(status));
	report(WTERMSIG(status) == SIGXCPU
		   ? "hangs, as it uses the processor for ever; the watchdog ends it"
		   : strsignal(WTERMSIG(status)));
	_exit(WATCHDOG_STATUS);
}

/* ---- the program ---- */

/* ThreadSanitizer has a thread that wakes up now and then, for nothing of the program's. */
static void name_sanitizer(void)
{
	DIR *tasks = opendir("/proc/self/task");
	struct dirent *entry;
	char path[64];
	int fd;

	while (tasks && (entry = readdir(tasks))) {
		if (atoi(entry->d_name) == 0 || atoi(entry->d_name) == gettid())
			continue;
		snprintf(path, sizeof(path), "/proc/self/task/%d/comm", atoi(entry->d_name));
		fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd < 0 || write(fd, SANITIZER, strlen(SANITIZER)) < 0)
			give_up(path);
		close(fd);
	}
	if (tasks)
		closedir(tasks);
}

void watchdog_forked(void)
{
	/* Nobody's death leaves somebody behind. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	name_sanitizer();
	watchdog_begin();
}

void watchdog_begin(void)
{
	struct rlimit limit;
	struct timespec used;

	if (getrlimit(RLIMIT_CPU, &limit) < 0 || clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used) < 0)
		give_up("getrlimit");
	/* At this limit the kernel itself ends it, by SIGXCPU. */
	limit.rlim_cur = (rlim_t)(used.tv_sec + watchdog_seconds);
	if (limit.rlim_cur > limit.rlim_max)
		limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_CPU, &limit) < 0)
		give_up("setrlimit");
}

void watchdog_awaits_others(bool awaits)
{
	__atomic_store_n(&watched->awaits_others, awaits, __ATOMIC_SEQ_CST);
}

struct watched *watchdog_fork(void)
{
	pid_t watchdog = getpid(), program;

	watched =
	    mmap(NULL, sizeof(*watched), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (watched == MAP_FAILED)
		give_up("mmap");
	fflush(NULL);
	program = fork();
	if (program < 0)
		give_up("fork");
	if (program) {
		watch(program);
		end_as(program);
	}
	watchdog_forked();
	if (getppid() != watchdog)
		_exit(WATCHDOG_STATUS);
	return watched;
}
