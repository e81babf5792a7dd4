/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libkvmchan's calls on channels without a daemon: what it adds to libxenvchan's, which is a write
 * that takes what there is room for, a server that waits for its client, and a descriptor that is
 * readable while there is something to read.
 *
 * A wake-up that its descriptor loses shows as a thread that never ends.
 */
#include "rig/harness.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libkvmchan.h"
#include "setup/peer.h"

#define ROUND_TRIPS 5000u
#define LEFT 1024u
#define RIGHT 2048u

/* ---- instead of the daemon ---- */

static struct channel channel;

struct libxenvchan *peer_offer(int64_t domain, int64_t port, size_t read_min, size_t write_min,
			       int once)
{
	(void)domain, (void)port, (void)read_min, (void)write_min, (void)once;
	channel_make(&channel, 10, 11);
	channel_attach_server(&channel);
	return channel.server;
}

int peer_find(struct peer_place *place, int64_t domain, int64_t port)
{
	(void)place, (void)domain, (void)port;
	return 0;
}

struct libxenvchan *peer_connect(const struct peer_place *place, bool waits)
{
	(void)place;
	check(!waits);
	channel_attach_client(&channel);
	return channel.client;
}

void libxenvchan_close(struct libxenvchan *ctrl)
{
	end_close(ctrl == channel.server ? &channel.server : &channel.client);
}

/* ---- both ends ---- */

static struct libkvmchan *server, *client;

static void open_both(void)
{
	server = libkvmchan_server_init(0, 0, 0, 0);
	equal(libkvmchan_get_state(server), VCHAN_WAITING);
	client = libkvmchan_client_init(0, 0);
	equal(libkvmchan_get_state(server), VCHAN_CONNECTED);
	equal(libkvmchan_get_state(client), VCHAN_CONNECTED);
}

static void close_both(void)
{
	check(libkvmchan_close(client));
	check(libkvmchan_close(server));
	channel_close(&channel);
}

static bool is_up(struct libkvmchan *chan)
{
	struct pollfd polled = {.fd = libkvmchan_get_eventfd(chan), .events = POLLIN};

	check(polled.fd >= 0);
	return poll(&polled, 1, 0) == 1;
}

static void until_up(struct libkvmchan *chan)
{
	struct pollfd polled = {.fd = libkvmchan_get_eventfd(chan), .events = POLLIN};

	equal(poll(&polled, 1, -1), 1);
}

/* ---- the calls ---- */

static void write_takes_what_there_is_room_for(void)
{
	uint8_t out[RIGHT + 1], in[RIGHT];

	open_both();
	pattern_fill(1, 0, out, sizeof(out));
	equal(libkvmchan_write(server, out, 100), 100);
	equal(libkvmchan_buffer_space(server), RIGHT - 100);
	equal(libkvmchan_write(server, out + 100, sizeof(out) - 100), RIGHT - 100);
	equal(libkvmchan_buffer_space(server), 0);
	equal(libkvmchan_data_ready(client), RIGHT);
	equal(libkvmchan_recv(client, in, RIGHT), RIGHT);
	pattern_check(1, 0, in, RIGHT);
	equal(libkvmchan_write(server, out, 0), 0);
	fails(libkvmchan_send(server, out, RIGHT + 1), EMSGSIZE);
	fails(libkvmchan_recv(server, out, LEFT + 1), EMSGSIZE);
	close_both();
}

static void *write_one(void *argument)
{
	uint8_t byte = 7;

	equal(libkvmchan_write(argument, &byte, 1), 1);
	return NULL;
}

static void write_waits_for_some_room(void)
{
	uint8_t data[RIGHT] = {0};
	pthread_t thread;

	open_both();
	equal(libkvmchan_write(server, data, RIGHT), RIGHT);
	thread_start(&thread, write_one, server);
	equal(libkvmchan_recv(client, data, RIGHT), RIGHT);
	thread_end(thread);
	equal(libkvmchan_recv(client, data, 1), 1);
	equal(data[0], 7);
	close_both();
}

static void servers_call_waits_for_its_client(void)
{
	pthread_t thread;
	uint8_t byte = 0;

	server = libkvmchan_server_init(0, 0, 0, 0);
	thread_start(&thread, write_one, server);
	client = libkvmchan_client_init(0, 0);
	thread_end(thread);
	equal(libkvmchan_recv(client, &byte, 1), 1);
	equal(byte, 7);
	close_both();
}

static void calls_fail_once_the_peer_is_gone(void)
{
	uint8_t byte = 1;

	open_both();
	check(!is_up(server));
	equal(libkvmchan_send(client, &byte, 1), 1);
	channel_client_dies(&channel);
	equal(libkvmchan_get_state(server), VCHAN_DISCONNECTED);
	fails(libkvmchan_send(server, &byte, 1), EPIPE);
	fails(libkvmchan_write(server, &byte, 1), EPIPE);
	equal(libkvmchan_recv(server, &byte, 1), 1);
	fails(libkvmchan_read(server, &byte, 1), EPIPE);
	libkvmchan_clear_eventfd(server);
	check(is_up(server));
	free(client);
	check(libkvmchan_close(server));
	check(libkvmchan_close(NULL));
	channel_close(&channel);
}

/* ---- the descriptor ---- */

static void descriptor_is_up_while_there_is_data(void)
{
	uint8_t data[16] = {0};

	open_both();
	check(!is_up(server));
	equal(libkvmchan_get_eventfd(server), libkvmchan_get_eventfd(server));
	equal(libkvmchan_send(client, data, 10), 10);
	check(is_up(server));
	libkvmchan_clear_eventfd(server);
	check(is_up(server));
	equal(libkvmchan_recv(server, data, 4), 4);
	check(is_up(server));
	equal(libkvmchan_read(server, data, sizeof(data)), 6);
	check(!is_up(server));
	libkvmchan_clear_eventfd(server);
	check(!is_up(server));
	close_both();
}

/* The one eventfd there is. */
static int find_eventfd(void)
{
	char name[32], target[32] = "";
	int fd = -1;

	while (strncmp(target, "anon_inode:[eventfd]", sizeof(target)) != 0) {
		check(++fd < 100);
		snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
		memset(target, 0, sizeof(target));
		(void)!readlink(name, target, sizeof(target) - 1);
	}
	return fd;
}

static void what_the_program_opens_by_our_numbers_is_let_alone(void)
{
	uint8_t byte = 1;
	int poll_fd, ends[2], other;

	open_both();
	poll_fd = libkvmchan_get_eventfd(server);
	other = find_eventfd();
	equal(pipe(ends), 0);
	equal(dup2(ends[1], other), other);
	equal(libkvmchan_send(client, &byte, 1), 1);
	equal(libkvmchan_recv(server, &byte, 1), 1);
	equal(dup2(ends[1], poll_fd), poll_fd);
	close(ends[1]);
	close_both();
	equal(write(poll_fd, &byte, 1), 1);
	equal(write(other, &byte, 1), 1);
	equal(read(ends[0], &byte, 1), 1);
	equal(read(ends[0], &byte, 1), 1);
	close(ends[0]);
	close(poll_fd);
	close(other);
}

static void descriptor_tells_of_data_that_came_during_a_write(void)
{
	uint8_t data[RIGHT] = {0};
	pthread_t thread;

	open_both();
	check(!is_up(server));
	equal(libkvmchan_write(server, data, RIGHT), RIGHT);
	thread_start(&thread, write_one, server);
	equal(libkvmchan_send(client, data, 10), 10);
	equal(libkvmchan_recv(client, data, RIGHT), RIGHT);
	thread_end(thread);
	check(is_up(server));
	equal(libkvmchan_recv(server, data, 10), 10);
	check(!is_up(server));
	close_both();
}

/* How an end learns that a message is there, and takes it. */
enum way { CLEARS, READS_AT_ONCE, BLOCKS };
#define WAYS 3

struct player {
	struct libkvmchan *chan;
	enum way way;
	bool begins;
};

static void take_message(struct player *player, uint8_t *message, uint32_t size)
{
	uint32_t done = 0;

	switch (player->way) {
	case CLEARS:
		while (done < size) {
			int count;

			until_up(player->chan);
			libkvmchan_clear_eventfd(player->chan);
			if (libkvmchan_data_ready(player->chan) == 0)
				continue;
			count = libkvmchan_read(player->chan, message + done, size - done);
			check(count > 0);
			done += (uint32_t)count;
		}
		break;
	case READS_AT_ONCE:
		until_up(player->chan);
		equal(libkvmchan_recv(player->chan, message, size), size);
		libkvmchan_clear_eventfd(player->chan);
		break;
	case BLOCKS:
		equal(libkvmchan_recv(player->chan, message, size), size);
		break;
	}
}

static void *play(void *argument)
{
	struct player *player = argument;
	uint8_t message[LEFT];
	uint64_t seed = 1, round;

	for (round = 0; round < ROUND_TRIPS; round++) {
		uint32_t size = 1 + (uint32_t)random_below(&seed, LEFT / 8);
		bool sends = (round % 2 == 0) == player->begins;

		if (sends) {
			pattern_fill(1, round, message, size);
			equal(libkvmchan_send(player->chan, message, size), size);
		} else {
			take_message(player, message, size);
			pattern_check(1, round, message, size);
		}
	}
	return NULL;
}

static void no_wake_up_is_lost_in_a_conversation(void)
{
	enum way one, other;

	for (one = 0; one < WAYS; one++)
		for (other = 0; other < WAYS; other++) {
			struct player players[2];
			pthread_t threads[2];

			test_context("ways %d and %d", (int)one, (int)other);
			open_both();
			players[0] = (struct player){server, one, true};
			players[1] = (struct player){client, other, false};
			thread_start(&threads[0], play, &players[0]);
			thread_start(&threads[1], play, &players[1]);
			thread_end(threads[0]);
			thread_end(threads[1]);
			close_both();
		}
}

static const struct test tests[] = {
    TEST(write_takes_what_there_is_room_for),
    TEST(write_waits_for_some_room),
    TEST(servers_call_waits_for_its_client),
    TEST(calls_fail_once_the_peer_is_gone),
    TEST(descriptor_is_up_while_there_is_data),
    TEST(what_the_program_opens_by_our_numbers_is_let_alone),
    TEST(descriptor_tells_of_data_that_came_during_a_write),
    TEST(no_wake_up_is_lost_in_a_conversation),
};

TEST_MAIN(tests)
