/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One thread that reads and one that writes, on one end: neither takes the other's event, and a
 * second of either kind is refused.
 *
 * A lost event shows as a thread that never ends.
 */
#include "rig/harness.h"

#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "rig/small.h"

#define STREAM 400000u
#define PIECE 777u

static void spin_is(const char *limit)
{
	setenv("KVMCHAN_SPIN_US", limit, 1);
	test_context("KVMCHAN_SPIN_US=%s", limit);
}

/* ---- both ways at once ---- */

struct worker {
	struct libxenvchan *end;
	uint64_t stream;
	bool whole; /* recv and send, or read and write */
	pthread_t thread;
};

static void *reads(void *argument)
{
	struct worker *worker = argument;
	uint8_t piece[PIECE];
	uint64_t done = 0;

	while (done < STREAM) {
		uint64_t left = STREAM - done;
		int count = call_now(worker->whole ? RECV : READ, worker->end, piece,
				     left < PIECE ? left : PIECE);

		check(count > 0);
		pattern_check(worker->stream, done, piece, (size_t)count);
		done += (uint64_t)count;
	}
	return NULL;
}

static void *writes(void *argument)
{
	struct worker *worker = argument;
	uint8_t piece[PIECE];
	uint64_t done = 0;

	while (done < STREAM) {
		uint64_t left = STREAM - done;
		size_t size = left < PIECE ? left : PIECE;

		pattern_fill(worker->stream, done, piece, size);
		equal(call_now(worker->whole ? SEND : WRITE, worker->end, piece, size), size);
		done += size;
	}
	return NULL;
}

static void both_ways(bool whole)
{
	struct worker workers[4];
	struct channel channel;
	size_t index;

	channel_open(&channel, 10, 11);
	set_blocking(channel.server, true);
	set_blocking(channel.client, true);
	for (index = 0; index < 4; index++) {
		bool server = index < 2, writer = index % 2;

		workers[index] = (struct worker){
		    .end = server ? channel.server : channel.client,
		    .stream = server == writer ? 1 : 2,
		    .whole = whole,
		};
		thread_start(&workers[index].thread, writer ? writes : reads, &workers[index]);
	}
	for (index = 0; index < 4; index++)
		thread_end(workers[index].thread);
	channel_close(&channel);
}

static void both_ways_at_once(void)
{
	both_ways(false);
	both_ways(true);
}

static void both_ways_at_once_without_spinning(void)
{
	spin_is("0");
	both_ways(false);
	both_ways(true);
}

static void both_ways_at_once_with_much_spinning(void)
{
	spin_is("1000");
	both_ways(false);
}

/* ---- two that sleep ---- */

static uint8_t sent[10];

/* A reader and a writer that sleep at the server's end: its ring is full, the client's is empty. */
struct sleepers {
	struct channel channel;
	struct call reader, writer;
};

/* Whether kvmchan_shut() can end the waits, which then wait by another system call. */
static bool wakeable;

static void sleep_both(struct sleepers *s, bool reader_first)
{
	test_context("%s first", reader_first ? "reader" : "writer");
	setenv("KVMCHAN_SPIN_US", "0", 1);
	open_small(&s->channel);
	if (wakeable)
		equal(kvmchan_make_wakeable(s->channel.server), 0);
	equal(libxenvchan_write(s->channel.server, out, BIG), RIGHT);
	set_blocking(s->channel.server, true);
	s->reader = (struct call){.kind = READ, .end = s->channel.server, .data = in, .size = 10};
	s->writer =
	    (struct call){.kind = WRITE, .end = s->channel.server, .data = sent, .size = 10};
	call_start(reader_first ? &s->reader : &s->writer);
	call_until_asleep(reader_first ? &s->reader : &s->writer);
	call_start(reader_first ? &s->writer : &s->reader);
	call_until_asleep(reader_first ? &s->writer : &s->reader);
}

static void client_makes_room(struct sleepers *s)
{
	uint8_t taken[10];

	equal(libxenvchan_read(s->channel.client, taken, 10), 10);
}

static void each_is_woken_by_its_own_event(void)
{
	struct sleepers s;
	int order;

	for (order = 0; order < 4; order++) {
		sleep_both(&s, order & 1);
		if (order & 2) {
			client_makes_room(&s);
			equal(call_end(&s.writer), 10);
			call_until_asleep(&s.reader);
			client_puts(&s.channel, 0, 10);
			equal(call_end(&s.reader), 10);
		} else {
			client_puts(&s.channel, 0, 10);
			equal(call_end(&s.reader), 10);
			call_until_asleep(&s.writer);
			client_makes_room(&s);
			equal(call_end(&s.writer), 10);
		}
		channel_close(&s.channel);
	}
}

static void a_peer_that_goes_ends_both(void)
{
	struct sleepers s;
	int how;

	for (how = 0; how < 4; how++) {
		sleep_both(&s, how & 1);
		closes(&s.channel, false, how & 2);
		call_fails(&s.reader, EPIPE);
		call_fails(&s.writer, EPIPE);
		channel_close(&s.channel);
	}
}

static void both_end_when_nobody_is_left(void)
{
	struct sleepers s;
	int first;

	for (first = 0; first < 2; first++) {
		sleep_both(&s, first);
		channel_orphan(&s.channel);
		kvmchan_detach(s.channel.client);
		s.channel.client = NULL;
		call_fails(&s.reader, EPIPE);
		call_fails(&s.writer, EPIPE);
		channel_close(&s.channel);
	}
}

static void a_shut_end_ends_both(void)
{
	struct sleepers s;
	int first;

	wakeable = true;
	for (first = 0; first < 2; first++) {
		sleep_both(&s, first);
		kvmchan_shut(s.channel.server);
		call_fails(&s.reader, EPIPE);
		call_fails(&s.writer, EPIPE);
		equal(libxenvchan_is_open(s.channel.server), 0);
		/* Nor is it so for the peer, and for who comes after us. */
		equal(libxenvchan_is_open(s.channel.client), 1);
		client_puts(&s.channel, 0, 10);
		equal(recv(s.channel.server_socket, in, 1, MSG_DONTWAIT), 1);
		channel_close(&s.channel);
	}
	wakeable = false;
}

static void a_signal_ends_the_one_it_comes_to(void)
{
	struct sleepers s;
	int how;

	signals_go(0);
	for (how = 0; how < 4; how++) {
		struct call *one = how & 2 ? &s.reader : &s.writer;

		sleep_both(&s, how & 1);
		while (!call_is_done(one)) {
			pthread_kill(one->thread, SIGUSR1);
			sched_yield();
		}
		call_fails(one, EINTR);
		client_puts(&s.channel, 0, 10);
		client_makes_room(&s);
		equal(call_end(one == &s.reader ? &s.writer : &s.reader), 10);
		channel_close(&s.channel);
	}
}

static void each_is_woken_by_its_own_event_if_it_can_be_shut(void)
{
	wakeable = true;
	each_is_woken_by_its_own_event();
	a_signal_ends_the_one_it_comes_to();
	a_peer_that_goes_ends_both();
	wakeable = false;
}

/* The other goes on, and another thread may take the cancelled one's place. */
static void a_cancelled_one_is_in_nobodys_way(void)
{
	struct sleepers s;
	int how;

	for (how = 0; how < 4; how++) {
		struct call *one = how & 2 ? &s.reader : &s.writer;

		sleep_both(&s, how & 1);
		equal(pthread_cancel(one->thread), 0);
		thread_end(one->thread);
		client_puts(&s.channel, 0, 20);
		client_makes_room(&s);
		equal(call_end(one == &s.reader ? &s.writer : &s.reader), 10);
		client_makes_room(&s);
		equal(libxenvchan_read(s.channel.server, in, 5), 5);
		equal(libxenvchan_write(s.channel.server, out, 5), 5);
		channel_close(&s.channel);
	}
}

/* ---- a second one ---- */

static void a_second_reader_or_writer_is_refused(void)
{
	struct iovec pieces[2];
	struct sleepers s;

	sleep_both(&s, true);
	fails(libxenvchan_read(s.channel.server, in, 1), EBUSY);
	fails(libxenvchan_recv(s.channel.server, in, 1), EBUSY);
	fails(kvmchan_wait_data(s.channel.server, 1, 0), EBUSY);
	fails(kvmchan_look(s.channel.server, 1, pieces), EBUSY);
	fails(kvmchan_consume(s.channel.server, 0), EBUSY);
	fails(libxenvchan_write(s.channel.server, out, 1), EBUSY);
	fails(libxenvchan_send(s.channel.server, out, 1), EBUSY);
	fails(kvmchan_wait_room(s.channel.server, 1, 0), EBUSY);
	fails(kvmchan_reserve(s.channel.server, 1, pieces), EBUSY);
	fails(kvmchan_commit(s.channel.server, 0), EBUSY);
	/* Whoever was first is none the worse. */
	client_puts(&s.channel, 0, 10);
	client_makes_room(&s);
	equal(call_end(&s.reader), 10);
	equal(call_end(&s.writer), 10);
	pattern_check(1, 0, in, 10);
	channel_close(&s.channel);
}

/* ---- a third one, that waits for any event ---- */

static void a_wait_and_a_blocked_write_both_get_the_event(void)
{
	struct call wait = {.kind = WAIT}, writer = {.kind = WRITE, .data = sent, .size = 10};
	struct channel channel;
	int first;

	setenv("KVMCHAN_SPIN_US", "0", 1);
	for (first = 0; first < 2; first++) {
		struct call *calls[] = {first ? &wait : &writer, first ? &writer : &wait};

		test_context("%s first", first ? "wait" : "write");
		open_small(&channel);
		equal(libxenvchan_write(channel.server, out, BIG), RIGHT);
		set_blocking(channel.server, true);
		wait.end = writer.end = channel.server;
		equal(libxenvchan_data_ready(channel.server), 0);
		call_start(calls[0]);
		call_until_asleep(calls[0]);
		call_start(calls[1]);
		call_until_asleep(calls[1]);
		client_puts(&channel, 0, 1);
		equal(call_end(&wait), 0);
		call_until_asleep(&writer);
		equal(libxenvchan_read(channel.client, in, 10), 10);
		equal(call_end(&writer), 10);
		channel_close(&channel);
	}
}

static const struct test tests[] = {
    TEST(both_ways_at_once),
    TEST(both_ways_at_once_without_spinning),
    TEST(both_ways_at_once_with_much_spinning),
    TEST(each_is_woken_by_its_own_event),
    TEST(a_peer_that_goes_ends_both),
    TEST(both_end_when_nobody_is_left),
    TEST(a_shut_end_ends_both),
    TEST(a_signal_ends_the_one_it_comes_to),
    TEST(each_is_woken_by_its_own_event_if_it_can_be_shut),
    TEST(a_cancelled_one_is_in_nobodys_way),
    TEST(a_second_reader_or_writer_is_refused),
    TEST(a_wait_and_a_blocked_write_both_get_the_event),
};
TEST_MAIN(tests)
