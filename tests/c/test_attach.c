/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What an end is made from and must be refused for, and what a program may do to its descriptors.
 *
 * A call that has to wait is made by a thread, and what it waits for is done only once that thread
 * sleeps.
 */
#include "rig/harness.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "kvmchan.h"
#include "rig/small.h"

/* ---- what a program does to its descriptors ---- */

static void a_nonblocking_descriptor_still_waits(void)
{
	struct channel channel;
	int kind;

	for (kind = SEND; kind <= WAIT; kind++) {
		struct call call = {.kind = kind, .data = out, .size = 2};

		test_context("%s", call_name(kind));
		open_small(&channel);
		equal(fcntl(libxenvchan_fd_for_select(channel.server), F_SETFL, O_NONBLOCK), 0);
		if (kind == SEND || kind == WRITE)
			equal(libxenvchan_write(channel.server, out, BIG), RIGHT);
		take_events(channel.server);
		set_blocking(channel.server, true);
		call.end = channel.server;
		call_start(&call);
		call_until_asleep(&call);
		if (kind == SEND || kind == WRITE)
			equal(libxenvchan_recv(channel.client, in, 2), 2);
		else
			client_puts(&channel, 0, 2);
		equal(call_end(&call), kind == WAIT ? 0 : 2);
		channel_close(&channel);
	}
}

/* An end with a control connection, whose descriptor is known to the test. */
static void client_with_control(struct channel *channel, int *control, int *daemon)
{
	struct kvmchan_grant grant = channel_grant(channel, false);
	int sockets[2];

	equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
	grant.control_fd = *control = sockets[0];
	*daemon = sockets[1];
	channel->client = kvmchan_attach(&grant);
	check(channel->client);
}

static void the_control_connection_is_given_back_once(void)
{
	struct channel channel;
	int control, daemon;

	channel_make(&channel, 10, 11);
	channel_attach_server(&channel);
	client_with_control(&channel, &control, &daemon);
	equal(kvmchan_steal_control(channel.client), control);
	equal(kvmchan_steal_control(channel.client), -1);
	channel_close(&channel);
	equal(close(control), 0);
	equal(close(daemon), 0);
}

static void the_control_connection_ends_with_the_end(void)
{
	struct channel channel;
	int control, daemon;
	char byte;

	channel_make(&channel, 10, 11);
	channel_attach_server(&channel);
	client_with_control(&channel, &control, &daemon);
	equal(recv(daemon, &byte, 1, MSG_DONTWAIT), -1);
	equal(errno, EAGAIN);
	channel_close(&channel);
	equal(recv(daemon, &byte, 1, MSG_DONTWAIT), 0);
	close(daemon);
}

static void an_end_without_control_has_none_to_give(void)
{
	struct channel channel;

	open_small(&channel);
	equal(kvmchan_steal_control(channel.client), -1);
	channel_close(&channel);
}

/* The program closes all it did not open; the number is soon another file's, and must be left
 * alone. */
static void a_reused_number_is_not_the_control_connection(void)
{
	struct channel channel;
	int control, daemon, other, variant;

	for (variant = 0; variant < 3; variant++) {
		test_context("variant %d", variant);
		channel_make(&channel, 10, 11);
		channel_attach_server(&channel);
		client_with_control(&channel, &control, &daemon);
		close(control);
		if (variant == 0) {
			equal(kvmchan_steal_control(channel.client), -1);
			channel_close(&channel);
			close(daemon);
			continue;
		}
		other = variant == 1 ? open("/dev/null", O_RDWR | O_CLOEXEC)
				     : socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
		check(other >= 0);
		equal(dup3(other, control, O_CLOEXEC), other == control ? -1 : control);
		equal(kvmchan_steal_control(channel.client), -1);
		channel_close(&channel);
		check(fcntl(control, F_GETFD) >= 0);
		close(control);
		if (other != control)
			close(other);
		close(daemon);
	}
}

static void close_all_but(int fd)
{
	if (fd > 3)
		equal(close_range(3, (unsigned int)fd - 1, 0), 0);
	equal(close_range((unsigned int)fd + 1, ~0u, 0), 0);
}

/* The child: a program that closed everything but the descriptor that it selects on. */
static void careless_client(void *argument)
{
	struct channel *channel = argument;
	struct libxenvchan *client = channel->client;

	close_all_but(libxenvchan_fd_for_select(client));
	set_blocking(client, true);
	equal(libxenvchan_recv(client, in, RIGHT), RIGHT);
	pattern_check(2, 0, in, RIGHT);
	client_puts(channel, 0, LEFT);
	client_puts(channel, LEFT, 1); /* when there is room */
	equal(kvmchan_steal_control(client), -1);
	end_close(&channel->client);
}

static void a_channel_lives_by_its_one_descriptor(void)
{
	struct channel channel;
	int control, daemon;
	pid_t child;

	channel_make(&channel, 10, 11);
	channel_attach_server(&channel);
	client_with_control(&channel, &control, &daemon);
	child = child_start(careless_client, &channel);
	child_until_asleep(child);
	pattern_fill(2, 0, out, RIGHT);
	equal(libxenvchan_send(channel.server, out, RIGHT), RIGHT);
	set_blocking(channel.server, true);
	server_gets(&channel, 0, LEFT);
	server_gets(&channel, LEFT, 1);
	child_end(child);
	equal(libxenvchan_is_open(channel.server), 0);
	kvmchan_detach(channel.client);
	channel.client = NULL;
	channel_close(&channel);
	close(daemon);
}

/* ---- attach ---- */

static void attach_fails(struct channel *channel, bool server, int error)
{
	struct kvmchan_grant grant = channel_grant(channel, server);
	int sockets[2];

	equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
	grant.control_fd = sockets[0];
	errno = 0;
	check(!kvmchan_attach(&grant));
	equal(errno, error);
	check(*kvmchan_last_error());
	equal(fcntl(grant.region_fd, F_GETFD), -1);
	equal(fcntl(grant.event_fd, F_GETFD), -1);
	equal(fcntl(grant.control_fd, F_GETFD), -1);
	close(sockets[1]);
}

static void attach_refuses_orders_that_cannot_be(void)
{
	static const uint32_t orders[][2] = {
	    {9, 11},  {11, 9},	{0, 12},  {12, 0},  {10, 10},	      {11, 11},
	    {31, 12}, {12, 31}, {32, 12}, {64, 64}, {UINT32_MAX, 12}, {12, UINT32_MAX},
	};
	struct channel channel;
	size_t index;

	channel_make(&channel, 12, 12);
	for (index = 0; index < sizeof(orders) / sizeof(orders[0]); index++) {
		test_context("orders %u, %u", orders[index][0], orders[index][1]);
		channel.left = orders[index][0];
		channel.right = orders[index][1];
		attach_fails(&channel, true, EINVAL);
		attach_fails(&channel, false, EINVAL);
	}
	channel_close(&channel);
}

static void attach_refuses_memory_that_is_too_small(void)
{
	static const struct {
		uint32_t left, right;
		long size;
	} rows[] = {
	    {10, 11, 4095},	    {11, 10, 0},
	    {12, 12, 4096 * 3 - 1}, {10, 16, 4096 + (1 << 16) - 1},
	    {20, 11, 1 << 20},	    {30, 30, 1 << 20},
	};
	struct channel channel;
	size_t index;

	for (index = 0; index < sizeof(rows) / sizeof(rows[0]); index++) {
		test_context("row %zu", index);
		channel_make(&channel, 10, 11);
		close(channel.region);
		channel.region = memfd_create("kvmchan", MFD_CLOEXEC);
		equal(ftruncate(channel.region, rows[index].size), 0);
		channel.left = rows[index].left;
		channel.right = rows[index].right;
		attach_fails(&channel, true, EINVAL);
		attach_fails(&channel, false, EINVAL);
		channel_close(&channel);
	}
}

static void attach_refuses_memory_that_is_no_file(void)
{
	struct channel channel;
	struct kvmchan_grant grant;

	channel_make(&channel, 10, 11);
	grant = channel_grant(&channel, true);
	close(grant.region_fd);
	grant.region_fd = -1;
	check(!kvmchan_attach(&grant));
	equal(errno, EBADF);
	channel_close(&channel);
}

static void attach_refuses_indexes_that_cannot_be_true(void)
{
	struct channel channel;
	int row;

	for (row = 0; row < 4; row++) {
		struct ring_shared *left, *right;

		test_context("row %d", row);
		open_small(&channel);
		end_close(&channel.client);
		left = channel.server->read.shr;
		right = channel.server->write.shr;
		if (row == 0)
			left->prod = left->cons + LEFT + 1;
		else if (row == 1)
			left->prod = left->cons - 1;
		else if (row == 2)
			right->prod = right->cons + RIGHT + 1;
		else
			right->cons = right->prod + 1;
		attach_fails(&channel, false, EPROTO);
		/* It was never there. */
		equal(libxenvchan_is_open(channel.server), 0);
		channel_close(&channel);
	}
}

static void attach_goes_on_from_a_full_ring(void)
{
	struct channel channel;

	open_small(&channel);
	client_puts(&channel, 0, LEFT);
	end_close(&channel.client);
	channel_attach_client(&channel);
	equal(libxenvchan_buffer_space(channel.client), 0);
	server_gets(&channel, 0, LEFT);
	channel_close(&channel);
}

static void the_rings_lie_where_their_orders_say(void)
{
	static const struct {
		uint32_t left, right, left_at, right_at;
	} rows[] = {
	    {10, 11, 1024, 2048}, {11, 10, 2048, 1024}, {11, 12, 2048, 4096},  {12, 11, 4096, 2048},
	    {10, 14, 1024, 4096}, {12, 12, 4096, 8192}, {13, 16, 4096, 12288},
	};
	struct channel channel;
	size_t index;

	for (index = 0; index < sizeof(rows) / sizeof(rows[0]); index++) {
		uint8_t *server, *client;

		test_context("row %zu", index);
		channel_open(&channel, rows[index].left, rows[index].right);
		server = (uint8_t *)channel.server->ring;
		client = (uint8_t *)channel.client->ring;
		equal(channel.server->ring->left_order, rows[index].left);
		equal(channel.server->ring->right_order, rows[index].right);
		equal(channel.server->read.order, rows[index].left);
		equal(channel.server->write.order, rows[index].right);
		equal((uint8_t *)channel.server->read.buffer - server, rows[index].left_at);
		equal((uint8_t *)channel.server->write.buffer - server, rows[index].right_at);
		equal((uint8_t *)channel.client->read.buffer - client, rows[index].right_at);
		equal((uint8_t *)channel.client->write.buffer - client, rows[index].left_at);
		check(channel.server->is_server && !channel.client->is_server);
		equal(channel.server->event_port, 8);
		equal(channel.client->event_port, 9);
		/* And the bytes are there. */
		equal(libxenvchan_send(channel.client, "left", 4), 4);
		equal(libxenvchan_send(channel.server, "right", 5), 5);
		equal(memcmp(server + rows[index].left_at, "left", 4), 0);
		equal(memcmp(server + rows[index].right_at, "right", 5), 0);
		channel_close(&channel);
	}
}

static const struct test tests[] = {
    TEST(a_nonblocking_descriptor_still_waits),
    TEST(the_control_connection_is_given_back_once),
    TEST(the_control_connection_ends_with_the_end),
    TEST(an_end_without_control_has_none_to_give),
    TEST(a_reused_number_is_not_the_control_connection),
    TEST(a_channel_lives_by_its_one_descriptor),
    TEST(attach_refuses_orders_that_cannot_be),
    TEST(attach_refuses_memory_that_is_too_small),
    TEST(attach_refuses_memory_that_is_no_file),
    TEST(attach_refuses_indexes_that_cannot_be_true),
    TEST(attach_goes_on_from_a_full_ring),
    TEST(the_rings_lie_where_their_orders_say),
};
TEST_MAIN(tests)
