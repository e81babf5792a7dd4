/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One end of a vchan that does what its stdin says, a line of answer for each line: the peer of the
 *programs whose behaviour is tested, and what bad input is tried with.
 *
 *	server DOMAIN READ_MIN WRITE_MIN PATH    ok, or NULL, errno and the sentence. The path NULL
 *is a null pointer client DOMAIN PATH                       the same send TEXT, recv SIZE what send
 *returns, what recv received; blocking open                                     is_open's answer
 *	gone                                     waits until the peer has gone
 *	fds                                      how many descriptors are open
 *	close                                    ok
 */
#include <libxenvchan.h>

#include "../rig/lines.h"

static struct libxenvchan *vchan;

static void keep(struct libxenvchan *made)
{
	opened(made);
	if (!made)
		return;
	EXPECT(!vchan);
	vchan = made;
	vchan->blocking = 1;
}

static const char *path_of(const char *text) { return strcmp(text, "NULL") == 0 ? NULL : text; }

static void do_server(void)
{
	int domain = (int)number();
	size_t read_min = (size_t)strtoul(word(), NULL, 10);
	size_t write_min = (size_t)strtoul(word(), NULL, 10);

	keep(libxenvchan_server_init(NULL, domain, path_of(rest), read_min, write_min));
}

static void do_recv(size_t size)
{
	char data[4096];
	int got;

	EXPECT(size <= sizeof(data));
	got = libxenvchan_recv(vchan, data, size);
	if (got < 0)
		printf("-1 %d\n", errno);
	else
		printf("%.*s\n", got, data);
}

static void do_gone(void)
{
	while (libxenvchan_is_open(vchan))
		EXPECT(libxenvchan_wait(vchan) == 0);
	printf("gone\n");
}

static void obey(const char *command)
{
	if (strcmp(command, "server") == 0)
		do_server();
	else if (strcmp(command, "client") == 0) {
		int domain = (int)number();

		keep(libxenvchan_client_init(NULL, domain, path_of(rest)));
	} else if (strcmp(command, "fds") == 0)
		printf("%d\n", count_fds());
	else if (strcmp(command, "send") == 0)
		printf("%d\n", libxenvchan_send(vchan, rest, strlen(rest)));
	else if (strcmp(command, "recv") == 0)
		do_recv((size_t)number());
	else if (strcmp(command, "open") == 0)
		printf("%d\n", libxenvchan_is_open(vchan));
	else if (strcmp(command, "gone") == 0)
		do_gone();
	else if (strcmp(command, "close") == 0) {
		libxenvchan_close(vchan);
		vchan = NULL;
		printf("ok\n");
	} else
		EXPECT(!"a known command");
}

int main(void) { return obey_lines(obey); }
