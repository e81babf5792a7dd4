/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One end of a libvchan that does what its stdin says:
 *
 *	server DOMAIN PORT READ WRITE, client DOMAIN PORT, async DOMAIN PORT
 *	watch                 waits until the descriptor of async is readable
 *	finish BLOCKING, wait, open, ready, space, fd, close
 *	readable              whether the vchan's descriptor is
 *	blocking 0|1
 *	send TEXT, write TEXT, recv SIZE, read SIZE
 *	fill SIZE             writes so much of a pattern in one call, drain SIZE reads and checks
 *	fds                   how many descriptors are open
 *	detach                closes all but stdio, and opens others by their numbers
 */
#include <libvchan.h>

#include "../rig/lines.h"

static libvchan_t *vchan;
static EVTCHN watch_fd = -1;

static void print_data(int got, const char *data)
{
	if (got > 0)
		printf("%.*s\n", got, data);
	else
		returned(got);
}

static void do_fill(size_t size)
{
	unsigned char *data = malloc(size);

	EXPECT(data);
	for (size_t i = 0; i < size; i++)
		data[i] = pattern(i);
	returned(libvchan_write(vchan, data, size));
	free(data);
}

static void do_drain(size_t size)
{
	unsigned char data[5000];
	size_t done = 0;

	while (done < size) {
		size_t most = size - done < sizeof(data) ? size - done : sizeof(data);
		int got = libvchan_read(vchan, data, most);

		EXPECT(got > 0);
		for (int i = 0; i < got; i++)
			EXPECT(data[i] == pattern(done + (size_t)i));
		done += (size_t)got;
	}
	printf("%zu\n", done);
}

static int is(const char *command, const char *name) { return strcmp(command, name) == 0; }

static void obey(const char *command)
{
	char data[4096];

	if (is(command, "server")) {
		int domain = (int)number(), port = (int)number();
		size_t read_min = (size_t)number(), write_min = (size_t)number();

		opened(vchan = libvchan_server_init(domain, port, read_min, write_min));
	} else if (is(command, "client")) {
		int domain = (int)number();

		opened(vchan = libvchan_client_init(domain, (int)number()));
	} else if (is(command, "async")) {
		int domain = (int)number();

		opened(vchan = libvchan_client_init_async(domain, (int)number(), &watch_fd));
	} else if (is(command, "watch"))
		printf("%d\n", is_readable(watch_fd, -1));
	else if (is(command, "finish"))
		returned(libvchan_client_init_async_finish(vchan, number()));
	else if (is(command, "wait"))
		returned(libvchan_wait(vchan));
	else if (is(command, "open"))
		returned(libvchan_is_open(vchan));
	else if (is(command, "ready"))
		returned(libvchan_data_ready(vchan));
	else if (is(command, "space"))
		returned(libvchan_buffer_space(vchan));
	else if (is(command, "fd"))
		returned(libvchan_fd_for_select(vchan) < 0 ? -1 : 0);
	else if (is(command, "readable"))
		printf("%d\n", is_readable(libvchan_fd_for_select(vchan), 0));
	else if (is(command, "blocking")) {
		libvchan_set_blocking(vchan, number());
		printf("ok\n");
	} else if (is(command, "send"))
		returned(libvchan_send(vchan, rest, strlen(rest)));
	else if (is(command, "write"))
		returned(libvchan_write(vchan, rest, strlen(rest)));
	else if (is(command, "recv"))
		print_data(libvchan_recv(vchan, data, (size_t)number()), data);
	else if (is(command, "read"))
		print_data(libvchan_read(vchan, data, (size_t)number()), data);
	else if (is(command, "fill"))
		do_fill((size_t)number());
	else if (is(command, "drain"))
		do_drain((size_t)number());
	else if (is(command, "fds"))
		printf("%d\n", count_fds());
	else if (is(command, "detach"))
		detach();
	else if (is(command, "close")) {
		libvchan_close(vchan);
		vchan = NULL;
		printf("ok\n");
	} else
		EXPECT(!"a known command");
}

int main(void) { return obey_lines(obey); }
