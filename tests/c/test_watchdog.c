/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The watchdog of all these tests: it ends what hangs, asleep or awake, and lets alone who waits
 * for one that works.
 *
 * Each case is a program of one test, which runs in a child under a watchdog of its own.
 */
#include "rig/harness.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "rig/watchdog.h"

#define LOOKS 3

/* ---- the cases ---- */

static void sleeps(void)
{
	test_context("round 7");
	pause();
}

static void *read_for_ever(void *argument)
{
	char byte;

	equal(read(*(int *)argument, &byte, 1), 1);
	return NULL;
}

static void waits_for_a_thread_that_sleeps(void)
{
	pthread_t thread;
	int ends[2];

	equal(pipe(ends), 0);
	thread_start(&thread, read_for_ever, &ends[0]);
	thread_end(thread);
}

static void pause_in_child(void *argument)
{
	(void)argument;
	pause();
}

static void waits_for_a_child_that_sleeps(void) { child_end(child_start(pause_in_child, NULL)); }

static void spin_for_ever(void *argument)
{
	volatile bool stops = argument;

	while (!stops)
		;
}

static void spins(void)
{
	test_context("round 8");
	spin_for_ever(NULL);
}

static void waits_for_a_child_that_spins(void) { child_end(child_start(spin_for_ever, NULL)); }

static uint64_t processor_ms(void)
{
	struct timespec used;

	equal(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used), 0);
	return (uint64_t)used.tv_sec * 1000 + (uint64_t)used.tv_nsec / 1000000;
}

/* Longer than the looks at a sleep would take, and shorter than what is too much. */
static void work(void *argument)
{
	uint64_t start = processor_ms();

	(void)argument;
	while (processor_ms() - start < 600)
		;
}

static void waits_for_a_child_that_works(void) { child_end(child_start(work, NULL)); }

static void sleeps_until_others_wake_it(void)
{
	watchdog_awaits_others(true);
	equal(poll(NULL, 0, 3 * LOOKS * 100), 0);
	watchdog_awaits_others(false);
}

static void ends_by_a_signal(void) { raise(SIGTERM); }

/* ---- what becomes of them ---- */

struct ran {
	void (*run)(void);
	int output[2];
};

static void run_case(void *argument)
{
	const struct ran *ran = argument;
	struct test test = {"case", ran->run};

	equal(dup2(ran->output[1], STDOUT_FILENO), STDOUT_FILENO);
	equal(dup2(ran->output[1], STDERR_FILENO), STDERR_FILENO);
	close(ran->output[1]);
	watchdog_looks = LOOKS;
	watchdog_seconds = 1;
	_exit(run_tests(&test, 1, 1, NULL));
}

static void ends_with(void (*run)(void), int expected, const char *words)
{
	struct ran ran = {.run = run};
	char text[1024];
	size_t size = 0;
	ssize_t count;
	int status;
	pid_t child;

	equal(pipe(ran.output), 0);
	child = child_start(run_case, &ran);
	close(ran.output[1]);
	while ((count = read(ran.output[0], text + size, sizeof(text) - 1 - size)) > 0)
		size += (size_t)count;
	text[size] = '\0';
	close(ran.output[0]);
	equal(waitpid(child, &status, 0), child);
	check(WIFEXITED(status));
	if (WEXITSTATUS(status) != expected || !strstr(text, words))
		test_fail(__FILE__, __LINE__, "status %d, not %d with '%s': %s",
			  WEXITSTATUS(status), expected, words, text);
}

static void what_sleeps_for_good_is_ended(void)
{
	ends_with(sleeps, WATCHDOG_STATUS, "case: round 7: hangs, as all of it sleeps");
	ends_with(waits_for_a_thread_that_sleeps, WATCHDOG_STATUS, "all of it sleeps");
	ends_with(waits_for_a_child_that_sleeps, WATCHDOG_STATUS, "all of it sleeps");
}

static void what_spins_for_ever_is_ended(void)
{
	ends_with(spins, WATCHDOG_STATUS, "case: round 8: hangs, as it uses the processor");
	ends_with(waits_for_a_child_that_spins, 1, "the child ended with signal 24");
}

static void what_gets_on_is_let_alone(void)
{
	ends_with(waits_for_a_child_that_works, 0, "nothing left over");
	ends_with(sleeps_until_others_wake_it, 0, "nothing left over");
}

static void an_end_by_a_signal_is_told(void)
{
	ends_with(ends_by_a_signal, WATCHDOG_STATUS, "case: Terminated");
}

static const struct test tests[] = {
    TEST(what_sleeps_for_good_is_ended),
    TEST(what_spins_for_ever_is_ended),
    TEST(what_gets_on_is_let_alone),
    TEST(an_end_by_a_signal_is_told),
};
TEST_MAIN(tests)
