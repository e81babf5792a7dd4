/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A server's end in a guest, which the daemon moves to other memory while no client has come.
 *
 * Each place is a memory of its own, whose last page is the doorbell. Clients are on eventfds, as
 * on the host.
 */
#include "rig/harness.h"

#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "kvmchan.h"

/* The client writes into a ring in the page, the server into one with pages of its own. */
#define LEFT_ORDER 10
#define RIGHT_ORDER 20
#define LEFT (1u << LEFT_ORDER)
#define RIGHT (1u << RIGHT_ORDER)
#define SIZE (PAGE + RIGHT)
#define DOORBELL_REGISTER (SIZE + 12)
#define CLIENT_LIVE 20

static uint8_t out[RIGHT], in[RIGHT];

struct offered {
	struct libxenvchan *server;
	int daemon; /* its side of the connection */
	int event;  /* what wakes the server, wherever it is */
	int place;  /* the memory where the daemon has it */
	uint32_t value;
};

static int make_place(void)
{
	int memory = memfd_create("kvmchan", MFD_CLOEXEC);

	check(memory >= 0);
	equal(ftruncate(memory, SIZE + PAGE), 0);
	page_initialize(memory, 0, LEFT_ORDER, RIGHT_ORDER);
	return memory;
}

static void offer(struct offered *offered)
{
	struct kvmchan_grant grant = {
	    .notify_fd = -1,
	    .is_server = 1,
	    .left_order = LEFT_ORDER,
	    .right_order = RIGHT_ORDER,
	    .events = KVMCHAN_EVENTS_SHARED_DOORBELL,
	    .doorbell = SIZE,
	    .path = "/x",
	};
	int sockets[2];

	*offered = (struct offered){.place = make_place()};
	offered->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	check(offered->event >= 0);
	equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
	offered->daemon = sockets[1];
	grant.control_fd = sockets[0];
	grant.region_fd = duplicate(offered->place);
	grant.event_fd = share_event(offered->event);
	offered->server = kvmchan_attach(&grant);
	if (!offered->server)
		test_fail(__FILE__, __LINE__, "no end: %s", kvmchan_last_error());
}

/* Let go of it all; its clients are gone. */
static void withdraw(struct offered *offered)
{
	end_close(&offered->server);
	close(offered->daemon);
	close(offered->event);
	close(offered->place);
}

static void send_packet(const struct offered *offered, const void *data, size_t size, int fd)
{
	union {
		char room[CMSG_SPACE(sizeof(int))];
		struct cmsghdr aligned;
	} beside = {.aligned = {.cmsg_len = CMSG_LEN(sizeof(int)),
				.cmsg_level = SOL_SOCKET,
				.cmsg_type = SCM_RIGHTS}};
	struct iovec vector = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
	struct msghdr packet = {
	    .msg_iov = &vector,
	    .msg_iovlen = 1,
	    .msg_control = fd < 0 ? NULL : beside.room,
	    .msg_controllen = fd < 0 ? 0 : sizeof(beside.room),
	};

	memcpy(CMSG_DATA(&beside.aligned), &fd, sizeof(fd));
	equal(sendmsg(offered->daemon, &packet, 0), size);
}

/* Move it to a new place. */
static void move(struct offered *offered)
{
	struct kvmchan_move move = {
	    .magic = KVMCHAN_MOVE_MAGIC,
	    .doorbell = SIZE,
	    .doorbell_value = ++offered->value,
	};

	close(offered->place);
	offered->place = make_place();
	send_packet(offered, &move, sizeof(move), offered->place);
}

static struct libxenvchan *connect_at(struct offered *offered, int place)
{
	struct libxenvchan *client;
	struct kvmchan_grant grant = {
	    .region_fd = duplicate(place),
	    .event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
	    .notify_fd = duplicate(offered->event),
	    .control_fd = -1,
	    .left_order = LEFT_ORDER,
	    .right_order = RIGHT_ORDER,
	    .events = KVMCHAN_EVENTS_EVENTFD,
	};

	client = kvmchan_attach(&grant);
	if (!client)
		test_fail(__FILE__, __LINE__, "no client: %s", kvmchan_last_error());
	return client;
}

static void server_sends(struct offered *offered, uint64_t position, uint32_t count)
{
	pattern_fill(2, position, out, count);
	equal(libxenvchan_send(offered->server, out, count), count);
}

static void client_receives(struct libxenvchan *client, uint32_t count)
{
	memset(in, 0, count);
	equal(libxenvchan_recv(client, in, count), count);
	pattern_check(2, 0, in, count);
}

/* The move is an event. */
static void server_moves(struct offered *offered)
{
	until_readable(offered->server);
	equal(libxenvchan_wait(offered->server), 0);
	take_events(offered->server);
	equal(libxenvchan_is_open(offered->server), 2);
}

/* The server's end is over, and the daemon has been told. */
static void check_over(struct offered *offered)
{
	uint8_t byte;

	until_readable(offered->server);
	equal(libxenvchan_wait(offered->server), 0);
	equal(libxenvchan_is_open(offered->server), 0);
	fails(libxenvchan_send(offered->server, "x", 1), EPIPE);
	equal(recv(offered->daemon, &byte, 1, MSG_DONTWAIT), 0);
}

/* ---- moves ---- */

static void it_goes_on_where_it_has_moved_with_what_was_written(void)
{
	struct libxenvchan before, *client;
	struct offered offered;
	uint32_t rung;
	int turn, fd;

	offer(&offered);
	before = *offered.server;
	fd = libxenvchan_fd_for_select(offered.server);
	for (turn = 0; turn < 3; turn++) {
		server_sends(&offered, (uint64_t)turn * 1000, 1000);
		move(&offered);
		server_moves(&offered);
	}
	equal(memcmp(&before, offered.server, sizeof(before)), 0);
	equal(libxenvchan_fd_for_select(offered.server), fd);
	equal(pread(offered.place, &rung, sizeof(rung), DOORBELL_REGISTER), sizeof(rung));
	equal(rung, 3);
	client = connect_at(&offered, offered.place);
	client_receives(client, 3000);
	equal(libxenvchan_send(client, "back", 4), 4);
	equal(libxenvchan_wait(offered.server), 0);
	equal(libxenvchan_is_open(offered.server), 1);
	equal(libxenvchan_recv(offered.server, in, 4), 4);
	equal(memcmp(in, "back", 4), 0);
	server_sends(&offered, 0, RIGHT);
	client_receives(client, RIGHT);
	end_close(&client);
	withdraw(&offered);
}

static void moves_that_wait_are_taken_together(void)
{
	struct libxenvchan *client;
	struct offered offered;

	offer(&offered);
	server_sends(&offered, 0, RIGHT);
	move(&offered);
	move(&offered);
	move(&offered);
	client = connect_at(&offered, offered.place); /* before the server knows */
	equal(libxenvchan_data_ready(client), 0);
	equal(libxenvchan_wait(offered.server), 0);
	equal(libxenvchan_is_open(offered.server), 1);
	client_receives(client, RIGHT);
	end_close(&client);
	withdraw(&offered);
}

static void what_was_asked_for_before_a_move_is_told_after_it(void)
{
	struct libxenvchan *client;
	struct offered offered;

	offer(&offered);
	server_sends(&offered, 0, 10);
	equal(libxenvchan_buffer_space(offered.server), RIGHT - 10);
	move(&offered);
	server_moves(&offered);
	client = connect_at(&offered, offered.place);
	take_events(offered.server);
	client_receives(client, 10);
	check(readable(offered.server));
	end_close(&client);
	withdraw(&offered);
}

static void a_blocked_call_goes_on(void)
{
	enum call_kind kind;

	for (kind = SEND; kind <= READ; kind++) {
		bool sends = kind == SEND || kind == WRITE;
		static uint8_t scratch[2];
		struct libxenvchan *client;
		struct offered offered;
		struct call call;

		test_context("%s", call_name(kind));
		offer(&offered);
		if (sends)
			server_sends(&offered, 0, RIGHT);
		set_blocking(offered.server, true);
		call =
		    (struct call){.kind = kind, .end = offered.server, .data = scratch, .size = 2};
		call_start(&call);
		call_until_asleep(&call);
		move(&offered);
		call_until_asleep(&call);
		client = connect_at(&offered, offered.place);
		if (sends) {
			set_blocking(client, true);
			client_receives(client, RIGHT);
		} else {
			equal(libxenvchan_send(client, "ab", 2), 2);
		}
		equal(call_end(&call), 2);
		end_close(&client);
		withdraw(&offered);
	}
}

static void the_daemons_end_is_an_event_also_without_a_device(void)
{
	struct offered offered;

	offer(&offered);
	move(&offered);
	server_moves(&offered);
	close(offered.daemon);
	until_readable(offered.server);
	equal(libxenvchan_wait(offered.server), 0);
	equal(libxenvchan_is_open(offered.server), 0);
	offered.daemon = duplicate(offered.event);
	withdraw(&offered);
}

/* ---- what does not move ---- */

enum seeing { IS_OPEN, DATA_READY, RECV_ALL, PEEK, LOOK, GLANCE, SEEINGS };

/* See something of the client. */
static void see(struct libxenvchan *server, enum seeing how)
{
	struct iovec pieces[2];

	switch (how) {
	case IS_OPEN:
		equal(libxenvchan_is_open(server), 1);
		break;
	case DATA_READY:
		equal(libxenvchan_data_ready(server), 4);
		break;
	case RECV_ALL:
		equal(libxenvchan_recv(server, in, 4), 4);
		break;
	case PEEK:
		equal(kvmchan_peek(server, in, 4), 4);
		break;
	case LOOK:
		equal(kvmchan_look(server, 4, pieces), 4);
		break;
	case GLANCE:
		equal(kvmchan_glance(server, KVMCHAN_DATA), 4);
		break;
	case SEEINGS:
		break;
	}
}

/* The client may have lied about being there. */
static void an_end_that_has_seen_a_client_stays(void)
{
	enum seeing how;
	int hides;

	for (how = 0; how < SEEINGS; how++) {
		for (hides = 0; hides < 2; hides++) {
			struct libxenvchan *client;
			struct offered offered;
			int before;

			if (how == IS_OPEN && hides)
				continue;
			test_context("by %d%s", how, hides ? ", hidden" : "");
			offer(&offered);
			before = duplicate(offered.place);
			client = connect_at(&offered, before);
			equal(libxenvchan_send(client, "last", 4), 4);
			if (hides)
				equal(pwrite(before, "\2", 1, CLIENT_LIVE), 1);
			see(offered.server, how);
			move(&offered);
			check_over(&offered);
			if (how != RECV_ALL)
				equal(libxenvchan_recv(offered.server, in, 4), 4);
			equal(memcmp(in, "last", 4), 0);
			end_close(&client);
			close(before);
			withdraw(&offered);
		}
	}
}

static void an_end_with_a_client_that_it_has_not_seen_stays(void)
{
	struct libxenvchan *client;
	struct offered offered;
	int before;

	offer(&offered);
	before = duplicate(offered.place);
	move(&offered);
	client = connect_at(&offered, before);
	check_over(&offered);
	end_close(&client);
	close(before);
	withdraw(&offered);
}

static void an_end_whose_memory_was_freed_stays(void)
{
	struct offered offered;

	offer(&offered);
	server_sends(&offered, 0, 10);
	equal(ftruncate(offered.place, 0), 0);
	equal(ftruncate(offered.place, SIZE + PAGE), 0);
	page_initialize(offered.place, 0, LEFT_ORDER, RIGHT_ORDER); /* for another channel */
	move(&offered);
	check_over(&offered);
	withdraw(&offered);
}

static void an_end_that_may_be_written_in_place_stays(void)
{
	struct iovec pieces[2];
	struct offered offered;

	offer(&offered);
	equal(kvmchan_reserve(offered.server, 1, pieces), RIGHT);
	move(&offered);
	check_over(&offered);
	withdraw(&offered);
}

static void an_end_whose_new_memory_can_not_be_mapped_is_over(void)
{
	struct kvmchan_move bad = {.magic = KVMCHAN_MOVE_MAGIC, .offset = 1, .doorbell = SIZE};
	struct offered offered;

	offer(&offered);
	server_sends(&offered, 0, 10);
	send_packet(&offered, &bad, sizeof(bad), offered.place);
	check_over(&offered);
	withdraw(&offered);

	offer(&offered);
	bad = (struct kvmchan_move){.magic = KVMCHAN_MOVE_MAGIC, .doorbell = 1};
	send_packet(&offered, &bad, sizeof(bad), offered.place);
	check_over(&offered);
	equal(libxenvchan_buffer_space(offered.server), RIGHT);
	withdraw(&offered);
}

static void packets_that_are_no_moves_are_dropped(void)
{
	struct kvmchan_move other = {.magic = "kvmroam", .doorbell = SIZE};
	struct kvmchan_move whole = {.magic = KVMCHAN_MOVE_MAGIC, .doorbell = SIZE};
	struct offered offered;

	offer(&offered);
	send_packet(&offered, &other, sizeof(other), offered.place);
	send_packet(&offered, &whole, sizeof(whole), -1);
	send_packet(&offered, &whole, sizeof(whole) - 1, offered.place);
	take_events(offered.server);
	equal(libxenvchan_is_open(offered.server), 2);
	send_packet(&offered, &other, sizeof(other), offered.place);
	move(&offered);
	server_moves(&offered);
	withdraw(&offered);
}

/* ---- at once ---- */

/* So large that a piece often is only half written when the end moves. */
#define PIECE 65521u
#define STREAM (16 * PIECE)
#define ROUNDS 10
#define MEETINGS 100

struct writer {
	struct libxenvchan *end;
	_Atomic bool is_done;
};

static void *writes(void *argument)
{
	static uint8_t piece[PIECE];
	struct writer *writer = argument;
	uint32_t done;

	for (done = 0; done < STREAM; done += PIECE) {
		pattern_fill(2, done, piece, PIECE);
		equal(libxenvchan_write(writer->end, piece, PIECE), PIECE);
	}
	writer->is_done = true;
	return NULL;
}

static void write_while_it_moves(void)
{
	static uint8_t scratch[1];
	struct libxenvchan *client;
	struct offered offered;
	struct writer writer;
	pthread_t thread;
	struct call call;

	offer(&offered);
	set_blocking(offered.server, true);
	call = (struct call){.kind = READ, .end = offered.server, .data = scratch, .size = 1};
	call_start(&call);
	writer = (struct writer){.end = offered.server};
	thread_start(&thread, writes, &writer);
	while (!writer.is_done) {
		move(&offered);
		equal(kvmchan_glance(offered.server, KVMCHAN_DATA), 0);
	}
	thread_end(thread);
	client = connect_at(&offered, offered.place);
	equal(libxenvchan_send(client, "x", 1), 1);
	equal(call_end(&call), 1);
	client_receives(client, STREAM);
	end_close(&client);
	withdraw(&offered);
}

/* One thread writes, one reads and so takes the moves, and we look on. */
static void nothing_that_is_written_meanwhile_is_lost(void)
{
	int turn;

	for (turn = 0; turn < ROUNDS; turn++)
		write_while_it_moves();
}

struct meeting {
	struct offered *offered;
	struct libxenvchan *client;
	int place;
};

static void *connects(void *argument)
{
	struct meeting *meeting = argument;
	uint8_t data[LEFT];

	meeting->client = connect_at(meeting->offered, meeting->place);
	pattern_fill(1, 0, data, LEFT);
	equal(libxenvchan_send(meeting->client, data, LEFT), LEFT);
	return NULL;
}

/* The server either has what its client sent, or learns that it has none; or it has moved, and
 * hears the next one. */
static void a_client_that_comes_while_it_moves_is_heard_or_cut_off(void)
{
	static uint8_t got[LEFT];
	int turn;

	for (turn = 0; turn < MEETINGS; turn++) {
		struct meeting old, new;
		struct offered offered;
		pthread_t thread;
		struct call call;

		offer(&offered);
		move(&offered);
		server_moves(&offered);
		set_blocking(offered.server, true);
		memset(got, 0, LEFT);
		call =
		    (struct call){.kind = RECV, .end = offered.server, .data = got, .size = LEFT};
		call_start(&call);
		old = (struct meeting){.offered = &offered, .place = duplicate(offered.place)};
		thread_start(&thread, connects, &old);
		move(&offered);
		thread_end(thread);
		new = (struct meeting){.offered = &offered, .place = offered.place};
		connects(&new);
		if (call_end(&call) < 0)
			equal(errno, EPIPE);
		else
			pattern_check(1, 0, got, LEFT);
		end_close(&old.client);
		end_close(&new.client);
		close(old.place);
		withdraw(&offered);
	}
}

static const struct test tests[] = {
    TEST(it_goes_on_where_it_has_moved_with_what_was_written),
    TEST(moves_that_wait_are_taken_together),
    TEST(what_was_asked_for_before_a_move_is_told_after_it),
    TEST(a_blocked_call_goes_on),
    TEST(the_daemons_end_is_an_event_also_without_a_device),
    TEST(an_end_that_has_seen_a_client_stays),
    TEST(an_end_with_a_client_that_it_has_not_seen_stays),
    TEST(an_end_whose_memory_was_freed_stays),
    TEST(an_end_that_may_be_written_in_place_stays),
    TEST(an_end_whose_new_memory_can_not_be_mapped_is_over),
    TEST(packets_that_are_no_moves_are_dropped),
    TEST(nothing_that_is_written_meanwhile_is_lost),
    TEST(a_client_that_comes_while_it_moves_is_heard_or_cut_off),
};

TEST_MAIN(tests)
