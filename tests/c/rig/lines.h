/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A program that does what its stdin says, a line of answer for each line. */
#ifndef LINES_H
#define LINES_H

#include <errno.h>
#include <kvmchan.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "descriptors.h"
#include "program.h"

static char *rest; /* of the line */

/* The line's next word. */
static inline const char *word(void)
{
	char *found = strsep(&rest, " ");

	EXPECT(found);
	return found;
}

static inline long number(void) { return strtol(word(), NULL, 10); }

/* What a call returned, with errno where it failed. */
static inline void returned(long result)
{
	if (result < 0)
		printf("%ld %d\n", result, errno);
	else
		printf("%ld\n", result);
}

/* What an init returned. */
static inline void opened(const void *made)
{
	if (made)
		printf("ok\n");
	else
		printf("NULL %d %s\n", errno, kvmchan_last_error());
}

static inline int is_readable(int fd, int timeout)
{
	struct pollfd polled = {.fd = fd, .events = POLLIN};

	return poll(&polled, 1, timeout) == 1 && polled.revents & POLLIN;
}

/* Closes all but stdio, and opens others by their numbers: sockets, as ours are. */
static inline void detach(void)
{
	int other = socket(AF_UNIX, SOCK_SEQPACKET, 0);

	EXPECT(other >= 0);
	for (int fd = 3; fd < 20; fd++)
		EXPECT(dup2(other, fd) == fd);
	printf("ok\n");
}

/* The byte that a stream has at @place. */
static inline unsigned char pattern(size_t place)
{
	return (unsigned char)(place * 7 + place / 251);
}

static inline void on_signal(int number)
{
	(void)number;
	EXPECT(write(1, "signal\n", 7) == 7);
}

/* Calls @obey with each line's first word. SIGUSR1 interrupts what we do, and is told. */
static inline int obey_lines(void (*obey)(const char *command))
{
	struct sigaction action = {.sa_handler = on_signal};
	char *line = NULL;
	size_t room = 0;
	ssize_t length;

	EXPECT(sigaction(SIGUSR1, &action, NULL) == 0);
	while ((length = getline(&line, &room, stdin)) > 0) {
		line[length - 1] = '\0';
		rest = line;
		errno = 0;
		obey(word());
		fflush(stdout);
	}
	free(line);
	return 0;
}

#endif
