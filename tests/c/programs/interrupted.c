/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sits, for ^C to end it: interrupted idle|recv PATH. */
#include <libxenvchan.h>
#include <signal.h>

#include "../rig/program.h"

int main(int argc, char **argv)
{
	struct libxenvchan *vchan;
	char data[1];

	EXPECT(argc == 3);
	signal(SIGINT, SIG_DFL); /* whatever the test was started by */
	vchan = libxenvchan_server_init(NULL, 0, argv[2], 0, 0);
	EXPECT(vchan);
	vchan->blocking = 1;
	say("ready");
	if (strcmp(argv[1], "recv") == 0)
		libxenvchan_recv(vchan, data, 1);
	else
		pause();
	EXPECT(!"a signal ends the program");
	return 0;
}
