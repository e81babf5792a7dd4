/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A user of libkvmchan that does what its stdin says:
 *
 *	server DOMAIN PORT READ WRITE, client DOMAIN PORT
 *	send TEXT, write TEXT, recv SIZE, read SIZE
 *	fill SIZE             writes so many bytes in one call
 *	eventfd, clear        of the descriptor to poll; await waits until it is readable
 *	readable              whether it is
 *	state, ready, space, close
 *	start, end            of the shared memory's handle
 *	create DOMAIN PAGES   the region's number
 *	connect DOMAIN REGION
 *	put OFFSET TEXT       into the region that was opened last
 *	get OFFSET SIZE
 *	forget                unmaps that region, by where it is
 *	id DOMAIN REGION      unmaps one by its number
 *	fds                   how many descriptors are open
 *	detach                closes all but stdio, and opens others by their numbers
 */
#include <libkvmchan.h>

#include "../rig/lines.h"

static struct libkvmchan *chan;
static struct libkvmchan_shmem *shmem;
static char *region;

static void print_data(int got, const char *data)
{
	if (got > 0)
		printf("%.*s\n", got, data);
	else
		returned(got);
}

static void do_fill(size_t size)
{
	void *data = malloc(size);

	EXPECT(data);
	memset(data, 'f', size);
	returned(libkvmchan_write(chan, data, size));
	free(data);
}

static int is(const char *command, const char *name) { return strcmp(command, name) == 0; }

static int obey_region(const char *command)
{
	if (is(command, "start"))
		opened(shmem = libkvmchan_shmem_start());
	else if (is(command, "end")) {
		libkvmchan_shmem_end(shmem);
		printf("ok\n");
	} else if (is(command, "create")) {
		uint32_t domain = (uint32_t)number(), id = 0;

		region = libkvmchan_shmem_region_create(shmem, domain, (uint32_t)number(), &id);
		if (region)
			printf("%u\n", id);
		else
			opened(region);
	} else if (is(command, "connect")) {
		uint32_t domain = (uint32_t)number();

		region = libkvmchan_shmem_region_connect(shmem, domain, (uint32_t)number());
		opened(region);
	} else if (is(command, "put")) {
		long offset = number();

		memcpy(region + offset, rest, strlen(rest));
		printf("ok\n");
	} else if (is(command, "get")) {
		long offset = number();

		printf("'%.*s'\n", (int)number(), region + offset);
	} else if (is(command, "forget"))
		returned(libkvmchan_shmem_region_close(shmem, region));
	else if (is(command, "id")) {
		uint32_t domain = (uint32_t)number();

		returned(libkvmchan_shmem_region_close_by_id(shmem, domain, (uint32_t)number()));
	} else
		return 0;
	return 1;
}

static void obey(const char *command)
{
	char data[4096];

	if (obey_region(command))
		return;
	if (is(command, "server")) {
		uint32_t domain = (uint32_t)number(), port = (uint32_t)number();
		size_t read_min = (size_t)number(), write_min = (size_t)number();

		opened(chan = libkvmchan_server_init(domain, port, read_min, write_min));
	} else if (is(command, "client")) {
		uint32_t domain = (uint32_t)number();

		opened(chan = libkvmchan_client_init(domain, (uint32_t)number()));
	} else if (is(command, "state"))
		returned(libkvmchan_get_state(chan));
	else if (is(command, "ready"))
		printf("%zu\n", libkvmchan_data_ready(chan));
	else if (is(command, "space"))
		printf("%zu\n", libkvmchan_buffer_space(chan));
	else if (is(command, "eventfd"))
		returned(libkvmchan_get_eventfd(chan) < 0 ? -1 : 0);
	else if (is(command, "readable"))
		printf("%d\n", is_readable(libkvmchan_get_eventfd(chan), 0));
	else if (is(command, "await"))
		printf("%d\n", is_readable(libkvmchan_get_eventfd(chan), -1));
	else if (is(command, "clear")) {
		libkvmchan_clear_eventfd(chan);
		printf("ok\n");
	} else if (is(command, "send"))
		returned(libkvmchan_send(chan, rest, strlen(rest)));
	else if (is(command, "write"))
		returned(libkvmchan_write(chan, rest, strlen(rest)));
	else if (is(command, "recv"))
		print_data(libkvmchan_recv(chan, data, (size_t)number()), data);
	else if (is(command, "read"))
		print_data(libkvmchan_read(chan, data, (size_t)number()), data);
	else if (is(command, "fill"))
		do_fill((size_t)number());
	else if (is(command, "fds"))
		printf("%d\n", count_fds());
	else if (is(command, "detach"))
		detach();
	else if (is(command, "close")) {
		printf("%d\n", libkvmchan_close(chan));
		chan = NULL;
	} else
		EXPECT(!"a known command");
}

int main(void) { return obey_lines(obey); }
