/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What each call of libxenvchan answers, row by row of the table in the semantics: enough, too
 * little, closed; non-blocking and blocking. Then what happens to a channel: close, death, another
 * client, and what a program may do to its descriptors.
 *
 * A call that has to wait is made by a thread, and what it waits for is done only once that thread
 * sleeps.
 */
#include "rig/harness.h"

#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "kvmchan.h"

/* Most tests: the client writes into the smaller ring, the server into the larger. */
#define LEFT 1024u
#define RIGHT 2048u
#define BIG 8192u

static uint8_t out[BIG], in[BIG];

static void open_small(struct channel *channel)
{
	channel_open(channel, 10, 11);
	take_events(channel->server);
}

/* Puts @count bytes of stream 1 from @position into the client's ring, and fails if they don't fit.
 */
static void client_puts(struct channel *channel, uint64_t position, uint32_t count)
{
	pattern_fill(1, position, out, count);
	equal(libxenvchan_send(channel->client, out, count), count);
}

/* Takes them at the server's end. */
static void server_gets(struct channel *channel, uint64_t position, uint32_t count)
{
	memset(in, 0, sizeof(in));
	equal(libxenvchan_recv(channel->server, in, count), count);
	pattern_check(1, position, in, count);
}

/* ---- enough room, enough data ---- */

static void calls_with_enough_take_all(void)
{
	static const struct {
		enum call_kind put, get;
	} pairs[] = {{SEND, RECV}, {SEND, READ}, {WRITE, RECV}, {WRITE, READ}};
	static const uint32_t sizes[] = {1, 2, 100, LEFT - 1, LEFT};
	size_t pair, size;
	int blocking;

	for (blocking = 0; blocking < 2; blocking++)
		for (pair = 0; pair < 4; pair++)
			for (size = 0; size < 5; size++) {
				uint32_t count = sizes[size];
				struct channel channel;

				test_context("pair %zu, size %u, blocking %d", pair, count,
					     blocking);
				open_small(&channel);
				set_blocking(channel.client, blocking);
				set_blocking(channel.server, blocking);
				pattern_fill(1, 0, out, count);
				equal(call_now(pairs[pair].put, channel.client, out, count), count);
				memset(in, 0xcc, sizeof(in));
				equal(call_now(pairs[pair].get, channel.server, in, count), count);
				pattern_check(1, 0, in, count);
				equal(in[count], 0xcc);
				channel_close(&channel);
			}
}

static void both_directions_are_separate(void)
{
	struct channel channel;

	open_small(&channel);
	pattern_fill(1, 0, out, LEFT);
	equal(libxenvchan_send(channel.client, out, LEFT), LEFT);
	pattern_fill(2, 0, out, RIGHT);
	equal(libxenvchan_send(channel.server, out, RIGHT), RIGHT);
	equal(libxenvchan_recv(channel.client, in, RIGHT), RIGHT);
	pattern_check(2, 0, in, RIGHT);
	equal(libxenvchan_recv(channel.server, in, LEFT), LEFT);
	pattern_check(1, 0, in, LEFT);
	channel_close(&channel);
}

static void read_takes_what_there_is(void)
{
	struct channel channel;
	int blocking;

	for (blocking = 0; blocking < 2; blocking++) {
		open_small(&channel);
		set_blocking(channel.server, blocking);
		client_puts(&channel, 0, 10);
		equal(libxenvchan_read(channel.server, in, 4), 4);
		equal(libxenvchan_read(channel.server, in + 4, BIG - 4), 6);
		pattern_check(1, 0, in, 10);
		channel_close(&channel);
	}
}

/* ---- not enough, non-blocking ---- */

static void a_nonblocking_send_is_all_or_nothing(void)
{
	struct channel channel;

	open_small(&channel);
	client_puts(&channel, 0, LEFT - 10);
	equal(libxenvchan_send(channel.client, out, 11), 0);
	equal(libxenvchan_send(channel.client, out, LEFT), 0);
	equal(libxenvchan_send(channel.client, out, LEFT + 1), 0);
	client_puts(&channel, LEFT - 10, 10);
	equal(libxenvchan_send(channel.client, out, 1), 0);
	server_gets(&channel, 0, LEFT);
	channel_close(&channel);
}

static void a_nonblocking_write_puts_what_fits(void)
{
	struct channel channel;

	open_small(&channel);
	pattern_fill(1, 0, out, BIG);
	equal(libxenvchan_write(channel.client, out, 1000), 1000);
	equal(libxenvchan_write(channel.client, out + 1000, BIG - 1000), LEFT - 1000);
	equal(libxenvchan_write(channel.client, out, 1), 0);
	server_gets(&channel, 0, LEFT);
	channel_close(&channel);
}

static void a_nonblocking_recv_is_all_or_nothing(void)
{
	struct channel channel;

	open_small(&channel);
	equal(libxenvchan_recv(channel.server, in, 1), 0);
	client_puts(&channel, 0, 10);
	equal(libxenvchan_recv(channel.server, in, 11), 0);
	equal(libxenvchan_recv(channel.server, in, LEFT + 1), 0);
	server_gets(&channel, 0, 10);
	equal(libxenvchan_recv(channel.server, in, 1), 0);
	channel_close(&channel);
}

static void a_nonblocking_read_of_nothing_is_0(void)
{
	struct channel channel;

	open_small(&channel);
	equal(libxenvchan_read(channel.server, in, 100), 0);
	equal(libxenvchan_read(channel.client, in, 100), 0);
	channel_close(&channel);
}

/* ---- not enough, blocking ---- */

static void a_blocking_send_waits_for_all_its_room(void)
{
	struct call call = {.kind = SEND, .data = out + BIG / 2, .size = 100};
	struct channel channel;

	open_small(&channel);
	set_blocking(channel.client, true);
	client_puts(&channel, 0, LEFT);
	pattern_fill(1, LEFT, out + BIG / 2, 100);
	call.end = channel.client;
	call_start(&call);
	call_until_asleep(&call);
	server_gets(&channel, 0, 99); /* one too few: it goes back to sleep, having put nothing */
	until_readable(channel.server);
	equal(libxenvchan_data_ready(channel.server), LEFT - 99);
	server_gets(&channel, 99, 1);
	equal(call_end(&call), 100);
	server_gets(&channel, 100, LEFT);
	channel_close(&channel);
}

static void a_blocking_write_goes_on_until_all_is_put(void)
{
	struct call call = {.kind = WRITE, .data = out, .size = BIG};
	struct channel channel;
	uint32_t done = 0;

	open_small(&channel);
	set_blocking(channel.client, true);
	set_blocking(channel.server, true);
	pattern_fill(1, 0, out, BIG);
	call.end = channel.client;
	call_start(&call);
	call_until_asleep(&call);
	equal(libxenvchan_data_ready(channel.server), LEFT);
	while (done < BIG) {
		int count = libxenvchan_read(channel.server, in + done, 1000);

		check(count > 0 && count <= 1000);
		done += (uint32_t)count;
	}
	equal(call_end(&call), BIG);
	pattern_check(1, 0, in, BIG);
	channel_close(&channel);
}

static void a_blocking_recv_waits_for_all_its_data(void)
{
	struct call call = {.kind = RECV, .data = in, .size = LEFT};
	struct channel channel;

	open_small(&channel);
	set_blocking(channel.server, true);
	client_puts(&channel, 0, 1);
	call.end = channel.server;
	call_start(&call);
	call_until_asleep(&call);
	client_puts(&channel, 1, LEFT - 2);
	call_until_asleep(&call);
	/* The last but one is there, and none of it is taken yet. */
	equal(libxenvchan_buffer_space(channel.client), 1);
	client_puts(&channel, LEFT - 1, 1);
	equal(call_end(&call), LEFT);
	pattern_check(1, 0, in, LEFT);
	channel_close(&channel);
}

static void a_blocking_read_waits_for_one_byte(void)
{
	struct call call = {.kind = READ, .data = in, .size = 100};
	struct channel channel;

	open_small(&channel);
	set_blocking(channel.server, true);
	call.end = channel.server;
	call_start(&call);
	call_until_asleep(&call);
	client_puts(&channel, 0, 1);
	equal(call_end(&call), 1);
	pattern_check(1, 0, in, 1);
	channel_close(&channel);
}

/* Such a call waits for nothing, and so says at once that it can't be met. */
static void a_blocking_call_larger_than_the_ring_is_refused(void)
{
	struct channel channel;

	open_small(&channel);
	set_blocking(channel.client, true);
	set_blocking(channel.server, true);
	fails(libxenvchan_send(channel.client, out, LEFT + 1), EMSGSIZE);
	fails(libxenvchan_send(channel.server, out, RIGHT + 1), EMSGSIZE);
	fails(libxenvchan_recv(channel.server, in, LEFT + 1), EMSGSIZE);
	fails(libxenvchan_recv(channel.client, in, RIGHT + 1), EMSGSIZE);
	/* It did no harm. */
	client_puts(&channel, 0, LEFT);
	server_gets(&channel, 0, LEFT);
	channel_close(&channel);
}

static void a_call_larger_than_an_answer_is_refused(void)
{
	struct channel channel;
	int kind, blocking;

	open_small(&channel);
	for (blocking = 0; blocking < 2; blocking++)
		for (kind = SEND; kind <= READ; kind++) {
			test_context("%s, blocking %d", call_name(kind), blocking);
			set_blocking(channel.client, blocking);
			fails(call_now(kind, channel.client, out, (size_t)INT_MAX + 1), EINVAL);
			fails(call_now(kind, channel.client, out, SIZE_MAX), EINVAL);
		}
	channel_close(&channel);
}

/* ---- calls of no bytes ---- */

static void calls_of_no_bytes_are_met_at_once(void)
{
	struct channel channel;
	int kind, blocking;

	open_small(&channel);
	for (blocking = 0; blocking < 2; blocking++)
		for (kind = SEND; kind <= READ; kind++) {
			test_context("%s, blocking %d", call_name(kind), blocking);
			set_blocking(channel.client, blocking);
			equal(call_now(kind, channel.client, NULL, 0), 0);
		}
	/* Also where there is no room, or some data. */
	set_blocking(channel.client, false);
	set_blocking(channel.server, false);
	client_puts(&channel, 0, LEFT);
	for (blocking = 0; blocking < 2; blocking++) {
		set_blocking(channel.client, blocking);
		set_blocking(channel.server, blocking);
		equal(libxenvchan_send(channel.client, NULL, 0), 0);
		equal(libxenvchan_write(channel.client, NULL, 0), 0);
		equal(libxenvchan_recv(channel.server, NULL, 0), 0);
		equal(libxenvchan_read(channel.server, NULL, 0), 0);
	}
	server_gets(&channel, 0, LEFT);
	channel_close(&channel);
}

static void calls_of_no_bytes_on_a_closed_channel(void)
{
	struct channel channel;

	open_small(&channel);
	client_puts(&channel, 0, 1);
	end_close(&channel.client);
	fails(libxenvchan_send(channel.server, NULL, 0), EPIPE);
	fails(libxenvchan_write(channel.server, NULL, 0), EPIPE);
	equal(libxenvchan_recv(channel.server, NULL, 0), 0);
	equal(libxenvchan_read(channel.server, NULL, 0), 0);
	server_gets(&channel, 0, 1);
	equal(libxenvchan_recv(channel.server, NULL, 0), 0);
	fails(libxenvchan_read(channel.server, NULL, 0), EPIPE);
	channel_close(&channel);
}

/* ---- closed ---- */

static void closes(struct channel *channel, bool server, bool dies)
{
	if (server && dies)
		channel_server_dies(channel);
	else if (server)
		end_close(&channel->server);
	else if (dies)
		channel_client_dies(channel);
	else
		end_close(&channel->client);
}

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

/* ---- events ---- */

static void the_ends_ask_to_hear_of_writes_from_the_start(void)
{
	struct channel channel;

	channel_make(&channel, 10, 11);
	channel_attach_server(&channel);
	equal(channel.server->ring->srv_live, 1);
	equal(channel.server->ring->cli_live, 2);
	equal(channel.server->ring->cli_notify, VCHAN_NOTIFY_WRITE);
	equal(channel.server->ring->srv_notify, 0);
	check(!readable(channel.server));
	channel_attach_client(&channel);
	equal(channel.server->ring->cli_live, 1);
	equal(channel.server->ring->srv_notify, VCHAN_NOTIFY_WRITE);
	check(readable(channel.server));
	take_events(channel.server);

	client_puts(&channel, 0, 1);
	check(readable(channel.server));
	equal(libxenvchan_send(channel.server, out, 1), 1);
	check(readable(channel.client));
	channel_close(&channel);
}

static void one_request_makes_one_event(void)
{
	struct channel channel;

	open_small(&channel);
	client_puts(&channel, 0, 1);
	check(readable(channel.server));
	/* Readable until wait, however often it is looked at. */
	equal(libxenvchan_data_ready(channel.client), 0);
	check(readable(channel.server));
	equal(libxenvchan_wait(channel.server), 0);
	check(!readable(channel.server));
	/* Nobody asked again. */
	client_puts(&channel, 1, 1);
	check(!readable(channel.server));
	channel_close(&channel);
}

/* Each of these asks for an event at the next change; it comes then, and not before. */
static void data_asks(struct channel *channel, int how)
{
	switch (how) {
	case 0:
		libxenvchan_data_ready(channel->server);
		break;
	case 1:
		equal(libxenvchan_recv(channel->server, in, LEFT), 0);
		break;
	default:
		libxenvchan_read(channel->server, in, LEFT);
	}
}

static void falling_short_of_data_asks_for_an_event(void)
{
	struct channel channel;
	int how;

	for (how = 0; how < 3; how++) {
		test_context("way %d", how);
		open_small(&channel);
		client_puts(&channel, 0, 10); /* uses up the request of the start */
		take_events(channel.server);
		data_asks(&channel, how);
		check(!readable(channel.server));
		client_puts(&channel, 10, 1);
		check(readable(channel.server));
		take_events(channel.server);
		/* Reading is not writing. */
		data_asks(&channel, how);
		equal(libxenvchan_send(channel.server, out, 1), 1);
		equal(libxenvchan_recv(channel.client, in, 1), 1);
		check(!readable(channel.server));
		channel_close(&channel);
	}
}

static void room_asks(struct channel *channel, int how)
{
	switch (how) {
	case 0:
		libxenvchan_buffer_space(channel->client);
		break;
	case 1:
		equal(libxenvchan_send(channel->client, out, 1), 0);
		break;
	default:
		equal(libxenvchan_write(channel->client, out, 1), 0);
	}
}

static void falling_short_of_room_asks_for_an_event(void)
{
	struct channel channel;
	int how;

	for (how = 0; how < 3; how++) {
		test_context("way %d", how);
		open_small(&channel);
		client_puts(&channel, 0, LEFT);
		server_gets(&channel, 0, 1); /* nobody asked to hear of this */
		check(!readable(channel.client));
		client_puts(&channel, LEFT, 1);
		room_asks(&channel, how);
		check(!readable(channel.client));
		server_gets(&channel, 1, 1);
		check(readable(channel.client));
		channel_close(&channel);
	}
}

static void an_event_for_data_is_none_for_room(void)
{
	struct channel channel;
	int data_first;

	for (data_first = 0; data_first < 2; data_first++) {
		test_context("data first %d", data_first);
		open_small(&channel);
		client_puts(&channel, 0, 1);
		equal(libxenvchan_send(channel.server, out, 1), 1);
		take_events(channel.server);
		equal(libxenvchan_data_ready(channel.server), 1);
		equal(libxenvchan_buffer_space(channel.server), RIGHT - 1);
		if (data_first)
			client_puts(&channel, 1, 1);
		else
			equal(libxenvchan_recv(channel.client, in, 1), 1);
		check(readable(channel.server));
		take_events(channel.server);
		/* The other request still stands. */
		if (data_first)
			equal(libxenvchan_recv(channel.client, in, 1), 1);
		else
			client_puts(&channel, 1, 1);
		check(readable(channel.server));
		channel_close(&channel);
	}
}

static void a_call_that_is_met_asks_for_nothing(void)
{
	struct channel channel;
	uint8_t *asked;

	open_small(&channel);
	asked = &channel.server->ring->cli_notify;
	client_puts(&channel, 0, 20);
	equal(peek(asked) & VCHAN_NOTIFY_WRITE, 0);
	server_gets(&channel, 0, 10);
	equal(libxenvchan_read(channel.server, in, 10), 10);
	equal(peek(asked), 0);
	channel_close(&channel);
}

static void data_ready_and_buffer_space_count_bytes(void)
{
	struct channel channel;

	open_small(&channel);
	equal(libxenvchan_data_ready(channel.server), 0);
	equal(libxenvchan_buffer_space(channel.client), LEFT);
	equal(libxenvchan_buffer_space(channel.server), RIGHT);
	client_puts(&channel, 0, 100);
	equal(libxenvchan_data_ready(channel.server), 100);
	equal(libxenvchan_buffer_space(channel.client), LEFT - 100);
	client_puts(&channel, 100, LEFT - 100);
	equal(libxenvchan_data_ready(channel.server), LEFT);
	equal(libxenvchan_buffer_space(channel.client), 0);
	server_gets(&channel, 0, LEFT);
	equal(libxenvchan_buffer_space(channel.client), LEFT);
	channel_close(&channel);
}

/* An onlooker finds the indexes where Xen has them, as of the last request or the end. */
static void the_page_shows_the_indexes_in_xens_place(void)
{
	struct channel channel;
	struct vchan_interface *page;

	channel_make(&channel, 10, 11);
	channel_preset(&channel, 5000, 6000);
	channel_attach_server(&channel);
	channel_attach_client(&channel);
	page = channel.server->ring;
	client_puts(&channel, 0, 100);
	server_gets(&channel, 0, 60);
	libxenvchan_buffer_space(channel.client);
	libxenvchan_data_ready(channel.server);
	equal(page->left.prod, 5100);
	equal(page->left.cons, 5060);
	equal(libxenvchan_send(channel.server, out, 7), 7);
	equal(libxenvchan_recv(channel.client, in, 3), 3);
	end_close(&channel.client);
	equal(page->right.cons, 6003);
	equal(libxenvchan_buffer_space(channel.server), RIGHT - 4);
	equal(page->right.prod, 6007);
	channel_close(&channel);
}

/* ---- wait ---- */

static void wait_takes_a_pending_event(void)
{
	struct channel channel;

	channel_open(&channel, 10, 11);
	check(readable(channel.server));
	equal(libxenvchan_wait(channel.server), 0);
	check(!readable(channel.server));
	channel_close(&channel);
}

static void wait_blocks_until_an_event(void)
{
	struct call call = {.kind = WAIT};
	struct channel channel;
	int blocking;

	/* Also where the channel is not blocking. */
	for (blocking = 0; blocking < 2; blocking++) {
		open_small(&channel);
		set_blocking(channel.server, blocking);
		call.end = channel.server;
		call_start(&call);
		call_until_asleep(&call);
		client_puts(&channel, 0, 1);
		equal(call_end(&call), 0);
		equal(libxenvchan_data_ready(channel.server), 1);
		channel_close(&channel);
	}
}

static void wait_ends_when_the_peer_hangs_up(void)
{
	struct channel channel;
	int server, dies;

	for (server = 0; server < 2; server++)
		for (dies = 0; dies < 2; dies++) {
			struct call call = {.kind = WAIT};

			test_context("server %d, dies %d", server, dies);
			open_small(&channel);
			call.end = server ? channel.client : channel.server;
			call_start(&call);
			call_until_asleep(&call);
			closes(&channel, server, dies);
			equal(call_end(&call), 0);
			equal(libxenvchan_is_open(call.end), 0);
			channel_close(&channel);
		}
}

/* The peer dies and so does the daemon that would tell: no holder of the peer's socket is left. */
static void orphaned(struct channel *channel)
{
	channel_orphan(channel);
	kvmchan_detach(channel->client);
	channel->client = NULL;
}

static void a_blocked_call_ends_when_nobody_is_left(void)
{
	struct channel channel;
	int kind;

	for (kind = SEND; kind <= WAIT; kind++) {
		struct call call = {.kind = kind, .data = out, .size = 2};

		test_context("%s", call_name(kind));
		open_small(&channel);
		client_puts(&channel, 0, 1);
		if (kind == SEND || kind == WRITE)
			equal(libxenvchan_write(channel.server, out, BIG), RIGHT);
		if (kind == READ)
			server_gets(&channel, 0, 1);
		take_events(channel.server);
		set_blocking(channel.server, true);
		call.end = channel.server;
		call_start(&call);
		call_until_asleep(&call);
		orphaned(&channel);
		call_fails(&call, EPIPE);
		equal(libxenvchan_is_open(channel.server), 0);
		fails(libxenvchan_send(channel.server, out, 1), EPIPE);
		fails(libxenvchan_write(channel.server, out, 1), EPIPE);
		fails(libxenvchan_wait(channel.server), EPIPE);
		if (kind != READ)
			server_gets(&channel, 0, 1);
		fails(libxenvchan_read(channel.server, in, 1), EPIPE);
		channel_close(&channel);
	}
}

/* A peer that is killed just before it would have sent the event. */
static void data_that_comes_with_the_last_breath_is_taken(void)
{
	struct call call = {.kind = RECV, .data = in, .size = 10};
	struct channel channel;
	int round;

	for (round = 0; round < 20; round++) {
		setenv("KVMCHAN_SPIN_US", "0", 1);
		open_small(&channel);
		set_blocking(channel.server, true);
		call.end = channel.server;
		call_start(&call);
		call_until_asleep(&call);
		/* It sleeps, so its request stands. Without it no event will be sent. */
		equal(__atomic_exchange_n(&channel.client->ring->cli_notify, 0, __ATOMIC_SEQ_CST),
		      VCHAN_NOTIFY_WRITE);
		client_puts(&channel, 0, 10);
		orphaned(&channel);
		equal(call_end(&call), 10);
		pattern_check(1, 0, in, 10);
		fails(libxenvchan_recv(channel.server, in, 1), EPIPE);
		channel_close(&channel);
	}
}

static void on_signal(int number) { (void)number; }

static void signals_go(int flags)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = flags};

	equal(sigaction(SIGUSR1, &action, NULL), 0);
}

static void a_signal_ends_each_blocked_call(void)
{
	struct channel channel;
	int kind, nonblock;

	signals_go(0);
	for (kind = SEND; kind <= WAIT; kind++)
		for (nonblock = 0; nonblock < 2; nonblock++) {
			struct call call = {.kind = kind, .data = out, .size = 2};

			test_context("%s, O_NONBLOCK %d", call_name(kind), nonblock);
			open_small(&channel);
			if (nonblock)
				equal(fcntl(libxenvchan_fd_for_select(channel.server), F_SETFL,
					    O_NONBLOCK),
				      0);
			if (kind == SEND || kind == WRITE)
				equal(libxenvchan_write(channel.server, out, BIG), RIGHT);
			set_blocking(channel.server, true);
			call.end = channel.server;
			call_start(&call);
			call_until_asleep(&call);
			/* One that comes before the sleep is missed, so there are many. */
			while (!call_is_done(&call)) {
				pthread_kill(call.thread, SIGUSR1);
				sched_yield();
			}
			call_fails(&call, EINTR);
			/* The channel is none the worse. */
			equal(libxenvchan_is_open(channel.server), 1);
			client_puts(&channel, 0, 10);
			server_gets(&channel, 0, 10);
			channel_close(&channel);
		}
	signal(SIGUSR1, SIG_DFL);
}

static void a_signal_with_sa_restart_ends_nothing(void)
{
	struct channel channel;
	int kind;

	signals_go(SA_RESTART);
	for (kind = RECV; kind <= WAIT; kind++) {
		struct call call = {.kind = kind, .data = in, .size = 2};
		int round;

		test_context("%s", call_name(kind));
		open_small(&channel);
		set_blocking(channel.server, true);
		call.end = channel.server;
		call_start(&call);
		for (round = 0; round < 20; round++) {
			call_until_asleep(&call);
			pthread_kill(call.thread, SIGUSR1);
		}
		call_until_asleep(&call);
		client_puts(&channel, 0, 2);
		equal(call_end(&call), kind == WAIT ? 0 : 2);
		channel_close(&channel);
	}
	signal(SIGUSR1, SIG_DFL);
}

static void a_spinning_wait_takes_an_event_too(void)
{
	struct channel channel;

	setenv("KVMCHAN_SPIN_US", "1000000", 1);
	channel_open(&channel, 10, 11);
	equal(libxenvchan_wait(channel.server), 0);
	check(!readable(channel.server));
	channel_close(&channel);
}

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
		equal(channel.server->event_port, 7);
		equal(channel.client->event_port, 8);
		/* And the bytes are there. */
		equal(libxenvchan_send(channel.client, "left", 4), 4);
		equal(libxenvchan_send(channel.server, "right", 5), 5);
		equal(memcmp(server + rows[index].left_at, "left", 4), 0);
		equal(memcmp(server + rows[index].right_at, "right", 5), 0);
		channel_close(&channel);
	}
}

/* ---- the sentence ---- */

static void *no_sentence(void *argument)
{
	equal(strlen(kvmchan_last_error()), 0);
	return argument;
}

static void the_last_sentence_is_a_threads_own(void)
{
	struct call call = {.kind = SEND, .data = out, .size = 1};
	struct channel channel;
	pthread_t thread;
	char first[256];

	open_small(&channel);
	set_blocking(channel.server, true);
	fails(libxenvchan_send(channel.server, out, RIGHT + 1), EMSGSIZE);
	strncpy(first, kvmchan_last_error(), sizeof(first) - 1);
	first[sizeof(first) - 1] = '\0';
	check(strstr(first, "2049") && strstr(first, "2048"));
	thread_start(&thread, no_sentence, NULL);
	thread_end(thread);
	end_close(&channel.client);
	call.end = channel.server;
	call_start(&call);
	call_fails(&call, EPIPE);
	check(*call.sentence && strcmp(call.sentence, first) != 0);
	equal(strcmp(kvmchan_last_error(), first), 0);
	channel_close(&channel);
}

static void a_success_leaves_errno_alone(void)
{
	struct channel channel;

	open_small(&channel);
	/* The event can't be sent, a failure that only the library sees; nor does it raise SIGPIPE.
	 */
	equal(shutdown(channel.server_socket, SHUT_RDWR), 0);
	errno = ENOTTY;
	client_puts(&channel, 0, 10);
	equal(errno, ENOTTY);
	channel_close(&channel);
}

static const struct test tests[] = {
    TEST(calls_with_enough_take_all),
    TEST(both_directions_are_separate),
    TEST(read_takes_what_there_is),
    TEST(a_nonblocking_send_is_all_or_nothing),
    TEST(a_nonblocking_write_puts_what_fits),
    TEST(a_nonblocking_recv_is_all_or_nothing),
    TEST(a_nonblocking_read_of_nothing_is_0),
    TEST(a_blocking_send_waits_for_all_its_room),
    TEST(a_blocking_write_goes_on_until_all_is_put),
    TEST(a_blocking_recv_waits_for_all_its_data),
    TEST(a_blocking_read_waits_for_one_byte),
    TEST(a_blocking_call_larger_than_the_ring_is_refused),
    TEST(a_call_larger_than_an_answer_is_refused),
    TEST(calls_of_no_bytes_are_met_at_once),
    TEST(calls_of_no_bytes_on_a_closed_channel),
    TEST(what_was_written_before_a_close_stays_readable),
    TEST(a_close_ends_each_blocked_call),
    TEST(a_blocked_recv_whose_data_stops_short_takes_none),
    TEST(is_open_tells_who_is_there),
    TEST(a_server_writes_before_its_client_comes),
    TEST(a_server_may_wait_for_its_first_client),
    TEST(another_client_goes_on_where_the_last_one_stopped),
    TEST(a_second_client_hears_of_writes),
    TEST(a_persistent_server_stays_open),
    TEST(the_ends_ask_to_hear_of_writes_from_the_start),
    TEST(one_request_makes_one_event),
    TEST(falling_short_of_data_asks_for_an_event),
    TEST(falling_short_of_room_asks_for_an_event),
    TEST(an_event_for_data_is_none_for_room),
    TEST(a_call_that_is_met_asks_for_nothing),
    TEST(data_ready_and_buffer_space_count_bytes),
    TEST(the_page_shows_the_indexes_in_xens_place),
    TEST(wait_takes_a_pending_event),
    TEST(wait_blocks_until_an_event),
    TEST(wait_ends_when_the_peer_hangs_up),
    TEST(a_blocked_call_ends_when_nobody_is_left),
    TEST(data_that_comes_with_the_last_breath_is_taken),
    TEST(a_signal_ends_each_blocked_call),
    TEST(a_signal_with_sa_restart_ends_nothing),
    TEST(a_spinning_wait_takes_an_event_too),
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
    TEST(the_last_sentence_is_a_threads_own),
    TEST(a_success_leaves_errno_alone),
};
TEST_MAIN(tests)
