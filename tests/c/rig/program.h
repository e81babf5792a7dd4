/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the test programs share: an expectation that ends the program, telling the line where stderr
 * is there, and by the exit status where it isn't. */
#ifndef PROGRAM_H
#define PROGRAM_H

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define EXPECT(condition)                                                                          \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			dprintf(2, "%s:%d: not so: %s (errno: %s)\n", __FILE__, __LINE__,          \
				#condition, strerror(errno));                                      \
			_exit(__LINE__ % 200 + 2);                                                 \
		}                                                                                  \
	} while (0)

/* A line for the test, at once. */
static inline void say(const char *line) { EXPECT(puts(line) >= 0 && fflush(stdout) == 0); }

/* Goes on when the test sends a line or closes our stdin. */
static inline void await_gate(void)
{
	int c;

	do
		c = getchar();
	while (c != '\n' && c != EOF);
}

#endif
