/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Leaves libxenvchan_client_init() by siglongjmp() at SIGUSR1, says "left", and makes no other
 * call: left_connect DOMAIN PATH. Its first call of all has been another, which found nothing. */
#include <libxenvchan.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>

#include "../rig/program.h"

static sigjmp_buf back;

static void leave(int number)
{
	(void)number;
	siglongjmp(back, 1);
}

int main(int argc, char **argv)
{
	EXPECT(argc == 3);
	EXPECT(!libxenvchan_client_init(NULL, atoi(argv[1]), "data/none"));
	signal(SIGUSR1, leave);
	say("ready");
	await_gate();
	if (sigsetjmp(back, 1) == 0)
		EXPECT(!libxenvchan_client_init(NULL, atoi(argv[1]), argv[2]));
	say("left");
	await_gate();
	return 0;
}
