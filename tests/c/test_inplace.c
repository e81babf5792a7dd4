/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What kvmchan.h offers: bytes in place, and waits with a timeout. */
#include "rig/harness.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "rig/small.h"

/* ---- looking and consuming ---- */

static size_t pieces_size(const struct iovec pieces[2])
{
	return pieces[0].iov_len + pieces[1].iov_len;
}

static void pieces_check(uint64_t position, const struct iovec pieces[2])
{
	pattern_check(1, position, pieces[0].iov_base, pieces[0].iov_len);
	pattern_check(1, position + pieces[0].iov_len, pieces[1].iov_base, pieces[1].iov_len);
}

static void bytes_are_seen_in_place_until_they_are_consumed(void)
{
	struct iovec pieces[2];
	struct channel channel;

	open_small(&channel);
	client_puts(&channel, 0, 100);
	equal(kvmchan_look(channel.server, 1, pieces), 100);
	equal(pieces_size(pieces), 100);
	pieces_check(0, pieces);
	equal(libxenvchan_buffer_space(channel.client), LEFT - 100);
	equal(kvmchan_consume(channel.server, 40), 0);
	equal(libxenvchan_buffer_space(channel.client), LEFT - 60);
	equal(kvmchan_look(channel.server, 1, pieces), 60);
	pieces_check(40, pieces);
	client_puts(&channel, 100, 5);
	equal(kvmchan_look(channel.server, 65, pieces), 65);
	server_gets(&channel, 40, 65);
	channel_close(&channel);
}

static void pieces_go_over_the_rings_end(void)
{
	struct iovec pieces[2];
	struct channel channel;
	uint32_t before;

	for (before = 0; before <= 3; before++) {
		test_context("%u bytes before the end", before);
		channel_make(&channel, 10, 11);
		channel_preset(&channel, UINT32_MAX - before + 1, UINT32_MAX - before + 1);
		channel_attach_server(&channel);
		channel_attach_client(&channel);
		client_puts(&channel, 0, 3);
		equal(kvmchan_look(channel.server, 3, pieces), 3);
		equal(pieces[0].iov_len, before ? before : 3);
		equal(pieces[1].iov_len, before ? 3 - before : 0);
		pieces_check(0, pieces);
		equal(kvmchan_consume(channel.server, 3), 0);

		equal(kvmchan_reserve(channel.server, 3, pieces), RIGHT);
		equal(pieces[0].iov_len, before ? before : RIGHT);
		equal(pieces_size(pieces), RIGHT);
		channel_close(&channel);
	}
}

static void looking_for_more_than_there_is_asks_for_an_event(void)
{
	struct iovec pieces[2];
	struct channel channel;

	open_small(&channel);
	client_puts(&channel, 0, 10);
	take_events(channel.server);
	equal(kvmchan_look(channel.server, 10, pieces), 10);
	client_puts(&channel, 10, 1);
	check(!readable(channel.server));
	equal(kvmchan_look(channel.server, 12, pieces), 0);
	client_puts(&channel, 11, 1);
	check(readable(channel.server));
	equal(kvmchan_look(channel.server, 12, pieces), 12);
	channel_close(&channel);
}

static void a_blocking_look_waits(void)
{
	struct iovec pieces[2];
	struct channel channel;

	open_small(&channel);
	set_blocking(channel.server, true);
	client_puts(&channel, 0, 10);
	equal(kvmchan_look(channel.server, 10, pieces), 10);
	fails(kvmchan_look(channel.server, LEFT + 1, pieces), EMSGSIZE);
	closes(&channel, false, false);
	equal(kvmchan_look(channel.server, 10, pieces), 10);
	fails(kvmchan_look(channel.server, 11, pieces), EPIPE);
	equal(kvmchan_consume(channel.server, 10), 0);
	fails(kvmchan_look(channel.server, 1, pieces), EPIPE);
	channel_close(&channel);
}

static void no_more_can_be_consumed_than_was_seen(void)
{
	struct iovec pieces[2];
	struct channel channel;

	open_small(&channel);
	fails(kvmchan_consume(channel.server, 1), EINVAL);
	client_puts(&channel, 0, 10);
	equal(kvmchan_look(channel.server, 1, pieces), 10);
	fails(kvmchan_consume(channel.server, 11), EINVAL);
	fails(kvmchan_consume(channel.server, SIZE_MAX), EINVAL);
	server_gets(&channel, 0, 10);
	equal(kvmchan_consume(channel.server, 0), 0);
	channel_close(&channel);
}

/* ---- reserving and committing ---- */

static void what_is_committed_is_sent(void)
{
	struct iovec pieces[2];
	struct channel channel;

	open_small(&channel);
	take_events(channel.server);
	equal(libxenvchan_data_ready(channel.server), 0);
	equal(kvmchan_reserve(channel.client, 1, pieces), LEFT);
	pattern_fill(1, 0, pieces[0].iov_base, 100);
	equal(libxenvchan_data_ready(channel.server), 0);
	check(!readable(channel.server));
	equal(kvmchan_commit(channel.client, 60), 0);
	check(readable(channel.server));
	server_gets(&channel, 0, 60);
	equal(libxenvchan_data_ready(channel.server), 0);
	channel_close(&channel);
}

static void no_more_can_be_committed_than_there_is_room(void)
{
	struct iovec pieces[2];
	struct channel channel;

	open_small(&channel);
	client_puts(&channel, 0, LEFT - 10);
	equal(kvmchan_reserve(channel.client, 11, pieces), 0);
	equal(kvmchan_reserve(channel.client, 10, pieces), 10);
	fails(kvmchan_commit(channel.client, 11), EINVAL);
	server_gets(&channel, 0, 1);
	equal(kvmchan_reserve(channel.client, 11, pieces), 11);
	set_blocking(channel.client, true);
	fails(kvmchan_reserve(channel.client, LEFT + 1, pieces), EMSGSIZE);
	closes(&channel, true, false);
	fails(kvmchan_reserve(channel.client, 1, pieces), EPIPE);
	fails(kvmchan_commit(channel.client, 1), EPIPE);
	channel_close(&channel);
}

static void a_peer_that_breaks_the_rules_is_seen(void)
{
	struct iovec pieces[2];
	struct channel channel;
	int writes;

	for (writes = 0; writes < 2; writes++) {
		test_context("writes %d", writes);
		open_small(&channel);
		if (writes)
			channel.client->write.shr->cons = 5000;
		else
			channel.server->read.shr->prod = 5000;
		if (writes)
			fails(kvmchan_reserve(channel.client, 1, pieces), EPROTO);
		else
			fails(kvmchan_look(channel.server, 1, pieces), EPROTO);
		fails(kvmchan_wait_data(writes ? channel.client : channel.server, 1, 0), EPROTO);
		channel_close(&channel);
	}
}

/* ---- waits with a timeout ---- */

static void a_wait_in_time(void)
{
	struct channel channel;

	open_small(&channel);
	client_puts(&channel, 0, 10);
	equal(kvmchan_wait_data(channel.server, 10, 0), 10);
	equal(kvmchan_wait_data(channel.server, 1, -1), 10);
	equal(kvmchan_wait_data(channel.server, 1, 1000000), 10);
	equal(kvmchan_wait_room(channel.client, 1, -1), LEFT - 10);
	channel_close(&channel);
}

static void a_wait_that_is_too_long(void)
{
	const int64_t timeouts[] = {1, 1000, 3000000};
	struct channel channel;
	size_t index;

	open_small(&channel);
	equal(libxenvchan_write(channel.client, out, BIG), LEFT);
	for (index = 0; index < 3; index++) {
		fails(kvmchan_wait_data(channel.client, 1, timeouts[index]), ETIMEDOUT);
		fails(kvmchan_wait_room(channel.client, 1, timeouts[index]), ETIMEDOUT);
		take_events(channel.client);
		equal(kvmchan_await(channel.client, KVMCHAN_EVENT, 0, 1 + (int)index), -ETIMEDOUT);
	}
	fails(kvmchan_wait_data(channel.client, RIGHT + 1, 1000), EMSGSIZE);
	closes(&channel, true, true);
	fails(kvmchan_wait_data(channel.client, 1, 1000), EPIPE);
	fails(kvmchan_wait_room(channel.client, 1, -1), EPIPE);
	channel_close(&channel);
}

/* Then poll(2) on the descriptor tells when to look again, without libxenvchan_wait(). */
static void not_waiting_takes_old_events_and_asks_for_a_new_one(void)
{
	struct channel channel;

	open_small(&channel);
	client_puts(&channel, 0, 1);
	check(readable(channel.server));
	equal(kvmchan_wait_data(channel.server, 1, 0), 1);
	check(readable(channel.server));
	server_gets(&channel, 0, 1);
	fails(kvmchan_wait_data(channel.server, 1, 0), EAGAIN);
	check(!readable(channel.server));
	client_puts(&channel, 1, 1);
	check(readable(channel.server));
	equal(kvmchan_wait_data(channel.server, 1, 0), 1);

	equal(libxenvchan_write(channel.server, out, BIG), RIGHT);
	fails(kvmchan_wait_room(channel.server, 1, 0), EAGAIN);
	check(!readable(channel.server));
	equal(libxenvchan_read(channel.client, in, 1), 1);
	check(readable(channel.server));
	equal(kvmchan_wait_room(channel.server, 1, 0), 1);
	channel_close(&channel);
}

/* Else poll(2) would find the descriptor readable for ever, and each call nothing. */
static void not_waiting_sees_that_nobody_is_left(void)
{
	struct channel channel;
	int room;

	for (room = 0; room < 2; room++) {
		test_context("room %d", room);
		open_small(&channel);
		equal(libxenvchan_write(channel.server, out, BIG), RIGHT);
		client_puts(&channel, 0, 1);
		take_events(channel.server);
		channel_orphan(&channel);
		kvmchan_detach(channel.client);
		channel.client = NULL;
		equal(kvmchan_wait_data(channel.server, 1, 0), 1);
		if (room)
			fails(kvmchan_wait_room(channel.server, 1, 0), EPIPE);
		else
			fails(kvmchan_wait_data(channel.server, 2, 0), EPIPE);
		equal(libxenvchan_is_open(channel.server), 0);
		channel_close(&channel);
	}
}

struct flood {
	int socket;
	bool ends;
};

static void *floods(void *argument)
{
	struct flood *flood = argument;

	while (!__atomic_load_n(&flood->ends, __ATOMIC_RELAXED))
		(void)send(flood->socket, "", 1, MSG_NOSIGNAL);
	return NULL;
}

/* So that the caller can look at what signals have left for it. */
static void a_flood_of_events_ends_a_wait(void)
{
	struct flood flood = {0};
	struct channel channel;
	pthread_t thread;

	setenv("KVMCHAN_SPIN_US", "0", 1);
	open_small(&channel);
	flood.socket = channel.client_socket;
	thread_start(&thread, floods, &flood);
	fails(kvmchan_wait_data(channel.server, 1, -1), EINTR);
	__atomic_store_n(&flood.ends, true, __ATOMIC_RELAXED);
	while (readable(channel.server)) /* it may have no room for the last one */
		take_events(channel.server);
	thread_end(thread);
	channel_close(&channel);
}

static void trying_asks_for_nothing(void)
{
	struct channel channel;

	open_small(&channel);
	client_puts(&channel, 0, 10); /* uses up the request of the start */
	take_events(channel.server);
	server_gets(&channel, 0, 10);
	equal(kvmchan_try_recv(channel.server, in, 10), 0);
	equal(kvmchan_try_read(channel.server, in, 10), 0);
	equal(peek(&channel.server->ring->cli_notify) & VCHAN_NOTIFY_WRITE, 0);
	client_puts(&channel, 10, 10);
	equal(kvmchan_try_recv(channel.server, in, 11), 0);
	equal(kvmchan_try_recv(channel.server, in, 3), 3);
	equal(kvmchan_try_read(channel.server, in, 10), 7);
	equal(kvmchan_try_send(channel.client, out, LEFT), LEFT);
	equal(kvmchan_try_send(channel.client, out, 1), 0);
	equal(kvmchan_try_write(channel.client, out, 1), 0);
	equal(peek(&channel.server->ring->srv_notify) & VCHAN_NOTIFY_READ, 0);
	equal(kvmchan_try_read(NULL, in, 1), -EBADF);
	equal(kvmchan_try_read(channel.server, in, -1), -EINVAL);
	equal(kvmchan_await(NULL, KVMCHAN_DATA, 1, 0), -EBADF);
	take_events(channel.client);
	equal(kvmchan_await(channel.client, KVMCHAN_EVENT, 0, 0), -EAGAIN);
	equal(kvmchan_await(channel.client, KVMCHAN_ROOM, 1, 0), -EAGAIN);
	equal(libxenvchan_read(channel.server, in, 1), 1);
	equal(kvmchan_await(channel.client, KVMCHAN_EVENT, 0, 0), 0);
	equal(kvmchan_await(channel.client, KVMCHAN_ROOM, 1, 0), 1);
	equal(kvmchan_await(channel.client, KVMCHAN_DATA, 1, 0), -EAGAIN);
	channel_close(&channel);
}

static void a_place_is_where_the_bytes_begin_and_how_many_they_are(void)
{
	struct channel channel;

	open_small(&channel);
	equal(kvmchan_try_look(channel.server), 0);
	equal(peek(&channel.server->ring->cli_notify), VCHAN_NOTIFY_WRITE); /* of the start */
	client_puts(&channel, 0, 100);
	server_gets(&channel, 0, 40);
	equal(kvmchan_try_look(channel.server), (40ll << 32) + 60);
	equal(kvmchan_try_reserve(channel.client), (100ll << 32) + LEFT - 60);
	equal(peek(&channel.server->ring->cli_notify), 0);
	equal(kvmchan_try_ask(channel.server, KVMCHAN_DATA), 60);
	equal(kvmchan_try_ask(channel.server, KVMCHAN_ROOM), RIGHT);
	equal(peek(&channel.server->ring->cli_notify), VCHAN_NOTIFY_WRITE | VCHAN_NOTIFY_READ);
	equal(kvmchan_glance(channel.server, KVMCHAN_DATA), 60);
	equal(kvmchan_glance(channel.server, KVMCHAN_ROOM), RIGHT);
	equal(kvmchan_try_ask(NULL, KVMCHAN_DATA), -EBADF);
	equal(kvmchan_try_look(NULL), -EBADF);
	equal(kvmchan_try_reserve(NULL), -EBADF);
	closes(&channel, false, false);
	equal(kvmchan_try_look(channel.server), (40ll << 32) + 60);
	server_gets(&channel, 40, 60);
	equal(kvmchan_try_look(channel.server), -EPIPE);
	equal(kvmchan_try_ask(channel.server, KVMCHAN_DATA), -EPIPE);
	equal(kvmchan_try_ask(channel.server, KVMCHAN_ROOM), -EPIPE);
	equal(kvmchan_try_reserve(channel.server), -EPIPE);
	channel_close(&channel);
}

static void forget(void *argument)
{
	struct channel *channel = argument;
	struct iovec pieces[2];

	equal(kvmchan_reserve(channel->client, 1, pieces), LEFT);
	kvmchan_forget(channel->client);
	memset(pieces[0].iov_base, 1, LEFT);
	fails(libxenvchan_send(channel->client, out, 1), EPIPE);
	equal(libxenvchan_is_open(channel->client), 0);
}

static void an_end_that_a_child_forgets_goes_on_in_the_parent(void)
{
	struct channel channel;

	open_small(&channel);
	child_end(child_start(forget, &channel));
	client_puts(&channel, 0, 10);
	server_gets(&channel, 0, 10);
	channel_close(&channel);
}

static void a_shut_end_without_descriptors_is_closed(void)
{
	struct channel channel;

	open_small(&channel);
	kvmchan_hang_up(channel.server);
	kvmchan_shut(channel.server);
	kvmchan_close_descriptors(channel.server);
	fails(libxenvchan_send(channel.server, out, 1), EPIPE);
	fails(libxenvchan_read(channel.server, in, 1), EPIPE);
	fails(libxenvchan_wait(channel.server), EPIPE);
	equal(libxenvchan_is_open(channel.client), 0);
	channel_close(&channel);
}

static const struct test tests[] = {
    TEST(bytes_are_seen_in_place_until_they_are_consumed),
    TEST(pieces_go_over_the_rings_end),
    TEST(looking_for_more_than_there_is_asks_for_an_event),
    TEST(a_blocking_look_waits),
    TEST(no_more_can_be_consumed_than_was_seen),
    TEST(what_is_committed_is_sent),
    TEST(no_more_can_be_committed_than_there_is_room),
    TEST(a_peer_that_breaks_the_rules_is_seen),
    TEST(a_wait_in_time),
    TEST(a_wait_that_is_too_long),
    TEST(not_waiting_takes_old_events_and_asks_for_a_new_one),
    TEST(not_waiting_sees_that_nobody_is_left),
    TEST(a_flood_of_events_ends_a_wait),
    TEST(trying_asks_for_nothing),
    TEST(a_place_is_where_the_bytes_begin_and_how_many_they_are),
    TEST(an_end_that_a_child_forgets_goes_on_in_the_parent),
    TEST(a_shut_end_without_descriptors_is_closed),
};
TEST_MAIN(tests)
