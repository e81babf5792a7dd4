/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Ends a program that hangs, and says what it was doing.
 *
 * It measures the program and not the machine, whose processors others may be using. A program
 * hangs in one of two ways:
 *  - All of it sleeps, look after look. What sleeps wants no processor, so nobody keeps one from
 *    it; and nobody outside is there to wake it.
 *  - It uses more processor time than it can need, however long it takes to get it.
 */
#ifndef KVMCHAN_TEST_WATCHDOG_H
#define KVMCHAN_TEST_WATCHDOG_H

#include <stdbool.h>

#define WATCHDOG_STATUS 3

/* What the program tells its watchdog; the memory is shared by both. */
struct watched {
	char name[128], context[128]; /* what it does, for the report */
	bool awaits_others;
};

/* How many looks in a row, ten in a second, must find all asleep; and how many seconds of processor
 * time are too many. The largest test needs less than a tenth of it. */
extern int watchdog_looks;
extern int watchdog_seconds;

/* Forks while there is one thread, and returns in the child, the program that is watched. The
 * parent ends as the child does, or with WATCHDOG_STATUS if the child had to be ended. */
struct watched *watchdog_fork(void);
/* To be called in each new child of the program: it is watched too. */
void watchdog_forked(void);
/* The processor time is counted from here on. */
void watchdog_begin(void);
/* Whether somebody outside may wake the program now, so that it is no hang if all of it sleeps. */
void watchdog_awaits_others(bool awaits);

/* The state letter of a process's thread in /proc; 0 where there is none. */
char task_state(int process, int thread);

#endif
