/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One end of a vchan that waits for the other to go: watch server|client DOMAIN PATH.
 *
 * It says "offered" (the server), "open" and "gone", then closes.
 */
#include <libxenvchan.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void say(const char *line)
{
	puts(line);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct libxenvchan *vchan;

	if (argc != 4)
		return 2;
	vchan = strcmp(argv[1], "server") == 0
		    ? libxenvchan_server_init(NULL, atoi(argv[2]), argv[3], 1, 1)
		    : libxenvchan_client_init(NULL, atoi(argv[2]), argv[3]);
	if (!vchan) {
		perror("init");
		return 1;
	}
	if (vchan->is_server)
		say("offered");
	while (libxenvchan_is_open(vchan) == 2)
		if (libxenvchan_wait(vchan) < 0)
			break;
	say("open");
	while (libxenvchan_is_open(vchan) == 1)
		if (libxenvchan_wait(vchan) < 0)
			break;
	say("gone");
	libxenvchan_close(vchan);
	return 0;
}
