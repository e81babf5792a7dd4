/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sets a vchan up and goes on in a child: forks fork|daemonize DOMAIN PATH.
 * fork: the child uses and closes it; parent and child can both set up others. daemonize: the
 * parent has ended by then.
 */
#include <libxenvchan.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "../rig/program.h"

static struct libxenvchan *vchan;

/* Sends back what comes, word by word of 5 letters, until it is "close". */
static void serve(void)
{
	char word[5];

	do {
		EXPECT(libxenvchan_recv(vchan, word, 5) == 5);
		EXPECT(libxenvchan_send(vchan, word, 5) == 5);
	} while (memcmp(word, "close", 5) != 0);
	libxenvchan_close(vchan);
}

static void open_another(const char *path)
{
	struct libxenvchan *another = libxenvchan_server_init(NULL, 0, path, 0, 0);

	EXPECT(another);
	libxenvchan_close(another);
}

static void fork_and_wait(const char *path)
{
	int status;
	pid_t child = fork();

	EXPECT(child >= 0);
	if (child == 0) {
		open_another("data/child");
		serve();
		/* Ours again, as the parent's is closed. */
		open_another(path);
		_exit(0);
	}
	open_another("data/parent");
	EXPECT(waitpid(child, &status, 0) == child && status == 0);
	say("child ended");
	await_gate();
	open_another("data/parent");
}

int main(int argc, char **argv)
{
	char word[5];

	EXPECT(argc == 4);
	vchan = libxenvchan_server_init(NULL, atoi(argv[2]), argv[3], 0, 0);
	EXPECT(vchan);
	vchan->blocking = 1;
	say("offered");
	EXPECT(libxenvchan_recv(vchan, word, 5) == 5);
	EXPECT(libxenvchan_send(vchan, word, 5) == 5);
	if (strcmp(argv[1], "fork") == 0) {
		fork_and_wait(argv[3]);
		return 0;
	}
	switch (fork()) {
	case -1:
		EXPECT(!"fork works");
		break;
	case 0:
		EXPECT(setsid() >= 0 && chdir("/") == 0);
		serve();
		say("daemon ended");
		break;
	}
	return 0;
}
