/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What becomes of a channel, and what its calls answer, when an end closes or dies and when another
 * client comes.
 *
 * A call that has to wait is made by a thread, and what it waits for is done only once that thread
 * sleeps.
 */
#include "rig/harness.h"

#include <string.h>

#include "rig/small.h"

static void what_was_written_before_a_close_stays_readable(void)
{
	struct channel channel;
	int server, dies, blocking;

	for (server = 0; server < 2; server++)
		for (dies = 0; dies < 2; dies++)
			for (blocking = 0; blocking < 2; blocking++) {
				struct libxenvchan *end;

				test_context("server %d, dies %d, blocking %d", server, dies,
					     blocking);
				open_small(&channel);
				pattern_fill(1, 0, out, 100);
				equal(libxenvchan_send(server ? channel.server : channel.client,
						       out, 100),
				      100);
				closes(&channel, server, dies);
				end = server ? channel.client : channel.server;
				set_blocking(end, blocking);
				equal(libxenvchan_is_open(end), 0);
				fails(libxenvchan_send(end, out, 1), EPIPE);
				fails(libxenvchan_write(end, out, 1), EPIPE);
				equal(libxenvchan_recv(end, in, 40), 40);
				/* Too little is left for this one, and it takes none of it. */
				fails(libxenvchan_recv(end, in, 61), EPIPE);
				fails(libxenvchan_recv(end, in, RIGHT + 1), EPIPE);
				equal(libxenvchan_data_ready(end), 60);
				equal(libxenvchan_read(end, in + 40, 100), 60);
				pattern_check(1, 0, in, 100);
				fails(libxenvchan_read(end, in, 1), EPIPE);
				fails(libxenvchan_recv(end, in, 1), EPIPE);
				equal(libxenvchan_data_ready(end), 0);
				channel_close(&channel);
			}
}

static void a_close_ends_each_blocked_call(void)
{
	struct channel channel;
	int kind, server, dies;

	for (kind = SEND; kind <= READ; kind++)
		for (server = 0; server < 2; server++)
			for (dies = 0; dies < 2; dies++) {
				struct call call = {.kind = kind, .data = out, .size = 2};

				test_context("%s, server %d, dies %d", call_name(kind), server,
					     dies);
				open_small(&channel);
				call.end = server ? channel.client : channel.server;
				if (kind == SEND || kind == WRITE)
					check(libxenvchan_write(call.end, out, BIG) > 0);
				set_blocking(call.end, true);
				call_start(&call);
				call_until_asleep(&call);
				closes(&channel, server, dies);
				call_fails(&call, EPIPE);
				channel_close(&channel);
			}
}

static void a_blocked_recv_whose_data_stops_short_takes_none(void)
{
	struct call call = {.kind = RECV, .data = in, .size = 10};
	struct channel channel;

	open_small(&channel);
	set_blocking(channel.server, true);
	call.end = channel.server;
	call_start(&call);
	call_until_asleep(&call);
	client_puts(&channel, 0, 9);
	end_close(&channel.client);
	call_fails(&call, EPIPE);
	server_gets(&channel, 0, 9);
	channel_close(&channel);
}

static void is_open_tells_who_is_there(void)
{
	struct channel channel;

	channel_make(&channel, 10, 11);
	channel_attach_server(&channel);
	equal(libxenvchan_is_open(channel.server), 2);
	channel_attach_client(&channel);
	equal(libxenvchan_is_open(channel.server), 1);
	equal(libxenvchan_is_open(channel.client), 1);
	end_close(&channel.client);
	equal(libxenvchan_is_open(channel.server), 0);
	channel_attach_client(&channel);
	equal(libxenvchan_is_open(channel.server), 1);
	end_close(&channel.server);
	equal(libxenvchan_is_open(channel.client), 0);
	channel_close(&channel);
}

static void a_server_writes_before_its_client_comes(void)
{
	struct channel channel;

	channel_make(&channel, 10, 11);
	channel_attach_server(&channel);
	pattern_fill(2, 0, out, RIGHT);
	equal(libxenvchan_send(channel.server, out, RIGHT), RIGHT);
	equal(libxenvchan_read(channel.server, in, 1), 0);
	channel_attach_client(&channel);
	equal(libxenvchan_data_ready(channel.client), RIGHT);
	equal(libxenvchan_recv(channel.client, in, RIGHT), RIGHT);
	pattern_check(2, 0, in, RIGHT);
	channel_close(&channel);
}

static void a_server_may_wait_for_its_first_client(void)
{
	struct call call = {.kind = RECV, .data = in, .size = 5};
	struct channel channel;

	channel_make(&channel, 10, 11);
	channel_attach_server(&channel);
	set_blocking(channel.server, true);
	call.end = channel.server;
	call_start(&call);
	call_until_asleep(&call);
	channel_attach_client(&channel);
	client_puts(&channel, 0, 5);
	equal(call_end(&call), 5);
	pattern_check(1, 0, in, 5);
	channel_close(&channel);
}

static void another_client_goes_on_where_the_last_one_stopped(void)
{
	struct channel channel;
	int dies;

	for (dies = 0; dies < 2; dies++) {
		test_context("dies %d", dies);
		open_small(&channel);
		/* Odd places, and unread data both ways. */
		client_puts(&channel, 0, 1000);
		server_gets(&channel, 0, 900);
		pattern_fill(2, 0, out, 50);
		equal(libxenvchan_send(channel.server, out, 50), 50);
		equal(libxenvchan_recv(channel.client, in, 20), 20);
		closes(&channel, false, dies);
		take_events(channel.server);
		equal(libxenvchan_is_open(channel.server), 0);

		channel_attach_client(&channel);
		check(readable(channel.server));
		take_events(channel.server);
		equal(libxenvchan_is_open(channel.server), 1);
		equal(libxenvchan_buffer_space(channel.client), LEFT - 100);
		client_puts(&channel, 1000, LEFT - 100);
		server_gets(&channel, 900, LEFT);
		equal(libxenvchan_recv(channel.client, in, 30), 30);
		pattern_check(2, 20, in, 30);
		equal(libxenvchan_recv(channel.client, in, 1), 0);
		channel_close(&channel);
	}
}

static void a_second_client_hears_of_writes(void)
{
	struct channel channel;

	open_small(&channel);
	end_close(&channel.client);
	channel_attach_client(&channel);
	check(!readable(channel.client));
	equal(libxenvchan_send(channel.server, out, 1), 1);
	check(readable(channel.client));
	channel_close(&channel);
}

static void a_persistent_server_stays_open(void)
{
	struct call call = {.kind = RECV, .data = in, .size = 3};
	struct channel channel;

	open_small(&channel);
	channel.server->server_persist = -1;
	equal(libxenvchan_is_open(channel.server), 1);
	end_close(&channel.client);
	equal(libxenvchan_is_open(channel.server), 1);
	equal(libxenvchan_read(channel.server, in, 1), 0);
	equal(libxenvchan_recv(channel.server, in, 1), 0);
	equal(libxenvchan_send(channel.server, "abc", 3), 3);
	take_events(channel.server);

	set_blocking(channel.server, true);
	call.end = channel.server;
	call_start(&call);
	call_until_asleep(&call);
	channel_attach_client(&channel);
	equal(libxenvchan_recv(channel.client, in + 100, 3), 3);
	equal(memcmp(in + 100, "abc", 3), 0);
	client_puts(&channel, 0, 3);
	equal(call_end(&call), 3);
	pattern_check(1, 0, in, 3);
	end_close(&channel.client);
	channel.server->server_persist = 0;
	equal(libxenvchan_is_open(channel.server), 0);
	channel_close(&channel);
}

static const struct test tests[] = {
    TEST(what_was_written_before_a_close_stays_readable),
    TEST(a_close_ends_each_blocked_call),
    TEST(a_blocked_recv_whose_data_stops_short_takes_none),
    TEST(is_open_tells_who_is_there),
    TEST(a_server_writes_before_its_client_comes),
    TEST(a_server_may_wait_for_its_first_client),
    TEST(another_client_goes_on_where_the_last_one_stopped),
    TEST(a_second_client_hears_of_writes),
    TEST(a_persistent_server_stays_open),
};
TEST_MAIN(tests)
