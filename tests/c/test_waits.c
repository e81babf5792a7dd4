/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which calls ask for an event, when it comes, and what ends a wait.
 *
 * A call that has to wait is made by a thread, and what it waits for is done only once that thread
 * sleeps.
 */
#include "rig/harness.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

#include "kvmchan.h"
#include "rig/small.h"

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

static const struct test tests[] = {
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
};
TEST_MAIN(tests)
