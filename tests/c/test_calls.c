/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What each call of libxenvchan answers, row by row of the table in the semantics: enough, too
 * little; non-blocking and blocking; and the sentence of a call that fails.
 *
 * A call that has to wait is made by a thread, and what it waits for is done only once that thread
 * sleeps.
 */
#include "rig/harness.h"

#include <limits.h>
#include <string.h>
#include <sys/socket.h>

#include "kvmchan.h"
#include "rig/small.h"

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
    TEST(the_last_sentence_is_a_threads_own),
    TEST(a_success_leaves_errno_alone),
};
TEST_MAIN(tests)
