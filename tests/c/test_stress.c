/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Threads as the two ends of a channel, many small calls, and closes at any moment: what is looked
 * for is the wake-up that is lost once in a hundred thousand times, and under ThreadSanitizer the
 * access that nothing orders.
 *
 * A lost wake-up shows as a thread that never ends. No test here says how fast anything has to be.
 */
#include "rig/harness.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#define MESSAGES 100000u
#define ROUND_TRIPS 10000u
#define MESSAGE_MAX 64u
#define CLOSES 300u

/* NULL: as it comes. */
static const char *const spins[] = {NULL, "0", "1000"};
#define SPINS 3

static void spin_is(size_t index)
{
	if (spins[index])
		setenv("KVMCHAN_SPIN_US", spins[index], 1);
	else
		unsetenv("KVMCHAN_SPIN_US");
	test_context("KVMCHAN_SPIN_US=%s", spins[index] ? spins[index] : "(not set)");
}

/* ---- one way, as fast as it goes ---- */

/* One end's part: the same seed at both gives the same messages. */
struct part {
	struct libxenvchan *end;
	uint64_t seed, messages;
	bool whole;  /* send and recv, or write and read */
	bool polled; /* non-blocking calls, and wait */
	pthread_t thread;
};

static void part_pause(struct part *part)
{
	check(part->polled);
	equal(libxenvchan_wait(part->end), 0);
}

static void *send_messages(void *argument)
{
	struct part *part = argument;
	uint64_t seed = part->seed, position = 0, index;
	uint8_t message[MESSAGE_MAX];

	for (index = 0; index < part->messages; index++) {
		uint32_t size = 1 + (uint32_t)random_below(&seed, MESSAGE_MAX), done = 0;

		pattern_fill(part->seed, position, message, size);
		while (done < size) {
			int count = call_now(part->whole ? SEND : WRITE, part->end, message + done,
					     size - done);

			check(count >= 0 && (uint32_t)count <= size - done);
			done += (uint32_t)count;
			if (done < size)
				part_pause(part);
		}
		position += size;
	}
	return NULL;
}

static void *get_messages(void *argument)
{
	struct part *part = argument;
	uint64_t seed = part->seed, position = 0, index;
	uint8_t message[MESSAGE_MAX];

	for (index = 0; index < part->messages; index++) {
		uint32_t size = 1 + (uint32_t)random_below(&seed, MESSAGE_MAX), done = 0;

		while (done < size) {
			int count = call_now(part->whole ? RECV : READ, part->end, message + done,
					     size - done);

			if (count == 0)
				part_pause(part);
			check(count >= 0 && (uint32_t)count <= size - done);
			done += (uint32_t)count;
		}
		pattern_check(part->seed, position, message, size);
		position += size;
	}
	return NULL;
}

static void stream(bool whole, bool polled, bool from_server)
{
	struct part put = {.seed = 42, .messages = MESSAGES, .whole = whole, .polled = polled};
	struct part get = put;
	struct channel channel;

	channel_make(&channel, 10, 11);
	channel_preset(&channel, UINT32_MAX - 100000, UINT32_MAX - 100000);
	channel_attach_server(&channel);
	channel_attach_client(&channel);
	put.end = from_server ? channel.server : channel.client;
	get.end = from_server ? channel.client : channel.server;
	set_blocking(put.end, !polled);
	set_blocking(get.end, !polled);
	thread_start(&put.thread, send_messages, &put);
	thread_start(&get.thread, get_messages, &get);
	thread_end(put.thread);
	thread_end(get.thread);
	equal(libxenvchan_data_ready(get.end), 0);
	channel_close(&channel);
}

static void a_stream_of_small_messages(void)
{
	size_t spin;

	for (spin = 0; spin < SPINS; spin++) {
		spin_is(spin);
		stream(true, false, false);
		stream(false, false, true);
	}
}

static void a_stream_of_small_messages_by_wait(void)
{
	size_t spin;

	for (spin = 0; spin < SPINS; spin++) {
		spin_is(spin);
		stream(true, true, true);
		stream(false, true, false);
	}
}

/* ---- there and back ---- */

static void *answer(void *argument)
{
	struct part *part = argument;
	uint8_t message[MESSAGE_MAX];
	uint64_t index, seed = part->seed;

	for (index = 0; index < part->messages; index++) {
		uint32_t size = 1 + (uint32_t)random_below(&seed, MESSAGE_MAX);

		equal(libxenvchan_recv(part->end, message, size), size);
		equal(libxenvchan_send(part->end, message, size), size);
	}
	return NULL;
}

static void *request(void *argument)
{
	struct part *part = argument;
	uint8_t asked[MESSAGE_MAX], answered[MESSAGE_MAX];
	uint64_t index, seed = part->seed;

	for (index = 0; index < part->messages; index++) {
		uint32_t size = 1 + (uint32_t)random_below(&seed, MESSAGE_MAX);

		pattern_fill(part->seed, index * MESSAGE_MAX, asked, size);
		equal(libxenvchan_write(part->end, asked, size), size);
		equal(libxenvchan_recv(part->end, answered, size), size);
		equal(memcmp(asked, answered, size), 0);
	}
	return NULL;
}

/* ---- a sleep that begins just as it ends ---- */

static void some_time(uint64_t *seed, uint64_t most)
{
	uint64_t turns = random_below(seed, most);
	volatile uint64_t turn;

	for (turn = 0; turn < turns; turn++)
		;
}

struct answerer {
	struct libxenvchan *end;
	bool reads; /* makes room; else writes */
	uint64_t seed;
};

/* Answers each byte after a time that wanders over the moment at which the other end goes to sleep.
 */
static void *answer_soon(void *argument)
{
	struct answerer *answerer = argument;
	uint8_t byte, full[1024];
	unsigned int trip, looks = 0;

	for (trip = 0; trip < 2 * ROUND_TRIPS; trip++) {
		while (libxenvchan_recv(answerer->end, &byte, 1) == 0)
			if (looked_enough(&looks))
				equal(libxenvchan_wait(answerer->end), 0);
		some_time(&answerer->seed, 600);
		if (answerer->reads)
			equal(libxenvchan_recv(answerer->end, full, 1023), 1023);
		else
			equal(libxenvchan_send(answerer->end, &byte, 1), 1);
	}
	return NULL;
}

/*
 * The one end never spins, the other seldom sleeps; so the answer comes right when the first looks
 * for the last time, asks for an event and sleeps. An answer in between that makes no event is lost
 * for good, as there is one at a time.
 */
static void an_answer_meets_the_beginning_of_a_sleep(void)
{
	static uint8_t data[1024];
	struct channel channel;
	int reads;

	for (reads = 0; reads < 2; reads++) {
		struct answerer answerer = {.reads = reads, .seed = 3};
		unsigned int trip;
		pthread_t thread;

		test_context("reads %d", reads);
		setenv("KVMCHAN_SPIN_US", "0", 1);
		channel_open(&channel, 10, 11);
		set_blocking(channel.client, true);
		answerer.end = channel.server;
		thread_start(&thread, answer_soon, &answerer);
		for (trip = 0; trip < 2 * ROUND_TRIPS; trip++) {
			if (reads) {
				/* The whole ring; the second is for its room. */
				equal(libxenvchan_send(channel.client, data, 1024), 1024);
			} else {
				equal(libxenvchan_send(channel.client, data, 1), 1);
				equal(libxenvchan_recv(channel.client, data, 1), 1);
			}
		}
		thread_end(thread);
		channel_close(&channel);
	}
}

struct leaver {
	uint32_t *prod;
	uint8_t *live;
	uint32_t round; /* which it may do */
	struct bell begun, left;
	uint64_t seed;
};

#define LEAVES 20000u

/* A client in two stores: writes 10 bytes and is gone. */
static void *write_and_leave(void *argument)
{
	struct leaver *leaver = argument;
	uint32_t round, prod = *leaver->prod;
	unsigned int looks = 0;

	for (round = 1; round <= LEAVES; round++) {
		while (__atomic_load_n(&leaver->round, __ATOMIC_SEQ_CST) != round)
			if (looked_enough(&looks))
				bell_await(&leaver->begun);
		some_time(&leaver->seed, 300);
		prod += 10;
		__atomic_store_n(leaver->prod, prod, __ATOMIC_RELEASE);
		__atomic_store_n(leaver->live, 0, __ATOMIC_RELEASE);
		bell_ring(&leaver->left);
	}
	return NULL;
}

/* What a read that finds something finds. */
static int read_until_met(struct libxenvchan *server, const struct leaver *leaver)
{
	unsigned int looks = 0;
	uint8_t data[1024];
	int count;

	while ((count = libxenvchan_read(server, data, sizeof(data))) == 0)
		if (looked_enough(&looks))
			bell_await(&leaver->left);
	return count;
}

/* Between a look at the ring and a look at the live byte: who looks in this order misses what was
 * written. */
static void a_close_meets_the_look_for_data(void)
{
	struct leaver leaver = {.seed = 4};
	struct channel channel;
	pthread_t thread;
	uint32_t round;

	channel_open(&channel, 10, 11);
	bell_make(&leaver.begun);
	bell_make(&leaver.left);
	leaver.prod = &channel.server->read.shr->prod;
	leaver.live = &channel.server->ring->cli_live;
	thread_start(&thread, write_and_leave, &leaver);
	for (round = 1; round <= LEAVES; round++) {
		__atomic_store_n(leaver.live, 1, __ATOMIC_SEQ_CST);
		__atomic_store_n(&leaver.round, round, __ATOMIC_SEQ_CST);
		bell_ring(&leaver.begun);
		equal(read_until_met(channel.server, &leaver), 10);
		equal(read_until_met(channel.server, &leaver), -1);
	}
	thread_end(thread);
	bell_end(&leaver.begun);
	bell_end(&leaver.left);
	channel_close(&channel);
}

#define CHANNELS_MAX 4

/* Each channel by a pair of threads, all at once. */
static void requests(size_t count)
{
	struct part parts[2 * CHANNELS_MAX];
	struct channel channels[CHANNELS_MAX];
	size_t index;

	for (index = 0; index < count; index++) {
		channel_open(&channels[index], index % 2 ? 12 : 10, 11);
		set_blocking(channels[index].server, true);
		set_blocking(channels[index].client, true);
		parts[2 * index] = (struct part){
		    .end = channels[index].server,
		    .seed = index,
		    .messages = ROUND_TRIPS / count,
		};
		parts[2 * index + 1] = parts[2 * index];
		parts[2 * index + 1].end = channels[index].client;
	}
	for (index = 0; index < count; index++) {
		thread_start(&parts[2 * index].thread, answer, &parts[2 * index]);
		thread_start(&parts[2 * index + 1].thread, request, &parts[2 * index + 1]);
	}
	for (index = 0; index < count; index++) {
		thread_end(parts[2 * index].thread);
		thread_end(parts[2 * index + 1].thread);
		channel_close(&channels[index]);
	}
}

static void requests_and_answers(void)
{
	size_t spin;

	for (spin = 0; spin < SPINS; spin++) {
		spin_is(spin);
		requests(1);
	}
}

static void four_channels_at_once(void)
{
	size_t spin;

	for (spin = 0; spin < SPINS; spin++) {
		spin_is(spin);
		requests(CHANNELS_MAX);
	}
}

/* ---- closes at any moment ---- */

static void a_close_meets_a_call_anywhere(void)
{
	uint64_t seed = 1;
	uint8_t data[4096];
	struct channel channel;
	unsigned int round;

	for (round = 0; round < CLOSES; round++) {
		struct call call = {.kind = round % CALL_KINDS, .data = data, .size = 2000};
		bool server = random_below(&seed, 2), full = random_below(&seed, 2);
		int result;

		spin_is(random_below(&seed, SPINS));
		channel_open(&channel, 11, 12);
		call.end = server ? channel.client : channel.server;
		if (full)
			check(libxenvchan_write(call.end, data, sizeof(data)) > 0);
		if (call.kind == RECV || call.kind == READ)
			call.size = 1;
		take_events(channel.server);
		set_blocking(call.end, true);
		call_start(&call);
		some_time(&seed, 1 + random_below(&seed, 6000));
		end_close(server ? &channel.server : &channel.client);
		result = call_end(&call);
		if (call.kind == WAIT)
			equal(result, 0);
		else if (result < 0)
			equal(errno, EPIPE);
		else
			check(!full && (call.kind == SEND || call.kind == WRITE) && result == 2000);
		channel_close(&channel);
	}
}

static void *write_and_close(void *argument)
{
	struct part *part = argument;
	uint8_t data[MESSAGE_MAX];

	pattern_fill(part->seed, 0, data, sizeof(data));
	equal(libxenvchan_write(part->end, data, 40), 40);
	equal(libxenvchan_send(part->end, data + 40, 24), 24);
	kvmchan_hang_up(part->end);
	return NULL;
}

static void the_last_words_before_a_close_are_heard(void)
{
	uint8_t data[2 * MESSAGE_MAX];
	struct channel channel;
	unsigned int round;

	for (round = 0; round < CLOSES; round++) {
		struct part part = {.seed = round};
		uint32_t done = 0;

		spin_is(round % SPINS);
		channel_open(&channel, 10, 11);
		set_blocking(channel.server, true);
		set_blocking(channel.client, true);
		part.end = channel.client;
		thread_start(&part.thread, write_and_close, &part);
		if (round & 1) {
			equal(libxenvchan_recv(channel.server, data, MESSAGE_MAX), MESSAGE_MAX);
			done = MESSAGE_MAX;
		}
		for (;;) {
			int count = libxenvchan_read(channel.server, data + done, MESSAGE_MAX);

			if (count < 0)
				break;
			done += (uint32_t)count;
		}
		equal(errno, EPIPE);
		equal(done, MESSAGE_MAX);
		pattern_check(round, 0, data, MESSAGE_MAX);
		thread_end(part.thread);
		channel_close(&channel);
	}
}

static void one_client_after_another(void)
{
	struct part get = {.seed = 9, .messages = 60 * 100, .whole = true};
	uint64_t seed = get.seed, position = 0;
	uint8_t message[MESSAGE_MAX];
	struct channel channel;
	int client, index;

	channel_make(&channel, 10, 11);
	channel_attach_server(&channel);
	channel.server->server_persist = -1;
	set_blocking(channel.server, true);
	get.end = channel.server;
	thread_start(&get.thread, get_messages, &get);
	for (client = 0; client < 60; client++) {
		spin_is((size_t)client % SPINS);
		channel_attach_client(&channel);
		set_blocking(channel.client, true);
		for (index = 0; index < 100; index++) {
			uint32_t size = 1 + (uint32_t)random_below(&seed, MESSAGE_MAX);

			pattern_fill(get.seed, position, message, size);
			equal(libxenvchan_send(channel.client, message, size), size);
			position += size;
		}
		if (client & 1)
			channel_client_dies(&channel);
		else
			end_close(&channel.client);
	}
	thread_end(get.thread);
	channel_close(&channel);
}

/* ---- signals ---- */

static void *get_through_signals(void *argument)
{
	struct part *part = argument;
	uint64_t seed = part->seed, position = 0, index;
	uint8_t message[MESSAGE_MAX];

	for (index = 0; index < part->messages; index++) {
		uint32_t size = 1 + (uint32_t)random_below(&seed, MESSAGE_MAX);
		int count;

		while ((count = libxenvchan_recv(part->end, message, size)) < 0)
			equal(errno, EINTR);
		equal(count, size);
		pattern_check(part->seed, position, message, size);
		position += size;
	}
	__atomic_store_n(&part->polled, true, __ATOMIC_SEQ_CST); /* used as: done */
	return NULL;
}

static void signals_lose_nothing(void)
{
	struct part put = {.seed = 5, .messages = MESSAGES / 5, .whole = true}, get = put;
	struct channel channel;

	signals_go(0);
	channel_open(&channel, 10, 11);
	set_blocking(channel.server, true);
	set_blocking(channel.client, true);
	put.end = channel.client;
	get.end = channel.server;
	thread_start(&get.thread, get_through_signals, &get);
	thread_start(&put.thread, send_messages, &put);
	while (!__atomic_load_n(&get.polled, __ATOMIC_SEQ_CST)) {
		pthread_kill(get.thread, SIGUSR1);
		sched_yield();
	}
	thread_end(put.thread);
	thread_end(get.thread);
	channel_close(&channel);
}

static const struct test tests[] = {
    TEST(a_stream_of_small_messages),
    TEST(a_stream_of_small_messages_by_wait),
    TEST(requests_and_answers),
    TEST(four_channels_at_once),
    TEST(an_answer_meets_the_beginning_of_a_sleep),
    TEST(a_close_meets_the_look_for_data),
    TEST(a_close_meets_a_call_anywhere),
    TEST(the_last_words_before_a_close_are_heard),
    TEST(one_client_after_another),
    TEST(signals_lose_nothing),
};
TEST_MAIN(tests)
