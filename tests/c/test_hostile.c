/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An honest end whose peer writes what it likes into all that is shared, at any moment, and does
 * what it likes to the socket.
 *
 * First one fault at a time, each with the answer it must get. Then a process that rewrites
 * everything while the honest end makes every call there is: no call may step outside of the rings
 * (guard pages and AddressSanitizer see it) or of the program's buffer (an allocation of exactly
 * the size), none may hang, and each answers something that its contract allows.
 */
#include "rig/harness.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define BIG (1u << 20)

static uint8_t big[BIG];

/* ---- one fault at a time ---- */

/* The honest end, and what its peer may write. */
struct honest {
	struct channel channel;
	struct libxenvchan *end, *peer;
	uint32_t *in_peer, *out_peer; /* the peer's indexes */
	uint32_t in_size, out_size;
	uint8_t *own_live, *peer_live;
};

static void honest_open(struct honest *honest, bool server)
{
	struct channel *channel = &honest->channel;
	struct vchan_interface *page;

	channel_make(channel, 10, 11);
	channel_preset(channel, UINT32_MAX - 100, 1000);
	channel_attach_server(channel);
	channel_attach_client(channel);
	take_events(channel->server);
	honest->end = server ? channel->server : channel->client;
	honest->peer = server ? channel->client : channel->server;
	page = honest->end->ring;
	honest->in_peer = &honest->end->read.shr->prod;
	honest->out_peer = &honest->end->write.shr->cons;
	honest->in_size = ring_size_in(honest->end);
	honest->out_size = ring_size_out(honest->end);
	honest->own_live = server ? &page->srv_live : &page->cli_live;
	honest->peer_live = server ? &page->cli_live : &page->srv_live;
}

static void honest_close(struct honest *honest) { channel_close(&honest->channel); }

/* From the first EPROTO on: all calls at once, whatever the page says by now. */
static void stays_broken(struct honest *honest)
{
	int kind, blocking;

	for (blocking = 0; blocking < 2; blocking++)
		for (kind = SEND; kind <= READ; kind++) {
			set_blocking(honest->end, blocking);
			fails(call_now(kind, honest->end, big, 1), EPROTO);
			fails(call_now(kind, honest->end, big, 0), EPROTO);
		}
	fails(libxenvchan_wait(honest->end), EPROTO);
	equal(libxenvchan_is_open(honest->end), 0);
}

/* By how much the peer's index is off, from what would be a ring just full or just empty. */
static const uint32_t faults[] = {1, 2, 1000, 1u << 30, 1u << 31};
#define FAULTS (sizeof(faults) / sizeof(faults[0]))

static void one_false_index(bool server, enum call_kind kind, bool blocking, uint32_t fault)
{
	bool puts = kind == SEND || kind == WRITE;
	struct honest honest;
	uint32_t truth;

	honest_open(&honest, server);
	if (puts) {
		equal(libxenvchan_send(honest.end, big, honest.out_size), honest.out_size);
		truth = *honest.out_peer;
		*honest.out_peer = truth - fault; /* more than a full ring */
	} else {
		truth = *honest.in_peer;
		*honest.in_peer = truth + honest.in_size + fault;
	}
	take_events(honest.peer);
	/* The two that only look are told nothing by it, and don't give the secret away. */
	equal(puts ? libxenvchan_buffer_space(honest.end) : libxenvchan_data_ready(honest.end), 0);
	equal(*honest.own_live, 1);

	set_blocking(honest.end, blocking);
	fails(call_now(kind, honest.end, big, 1), EPROTO);
	equal(*honest.own_live, 0);
	check(readable(honest.peer));
	equal(puts ? libxenvchan_buffer_space(honest.end) : libxenvchan_data_ready(honest.end), 0);
	stays_broken(&honest);
	*(puts ? honest.out_peer : honest.in_peer) = truth;
	stays_broken(&honest);
	honest_close(&honest);
}

static void an_index_ahead_by_more_than_the_ring_breaks_it(void)
{
	int server, kind, blocking;
	size_t fault;

	for (server = 0; server < 2; server++)
		for (kind = SEND; kind <= READ; kind++)
			for (blocking = 0; blocking < 2; blocking++)
				for (fault = 0; fault < FAULTS; fault++) {
					test_context("%s, server %d, blocking %d, by %u",
						     call_name(kind), server, blocking,
						     faults[fault]);
					one_false_index(server, kind, blocking, faults[fault]);
				}
}

static void an_index_behind_ours_breaks_it(void)
{
	struct honest honest;
	int kind, server;

	for (server = 0; server < 2; server++)
		for (kind = SEND; kind <= READ; kind++) {
			test_context("%s, server %d", call_name(kind), server);
			honest_open(&honest, server);
			if (kind == SEND || kind == WRITE) {
				equal(libxenvchan_send(honest.end, big, honest.out_size),
				      honest.out_size);
				*honest.out_peer += honest.out_size + 1; /* read what isn't */
			} else {
				*honest.in_peer -= 1; /* unwrote what was read */
			}
			fails(call_now(kind, honest.end, big, 1), EPROTO);
			stays_broken(&honest);
			honest_close(&honest);
		}
}

static void a_blocked_call_ends_at_a_false_index(void)
{
	int kind, server;

	for (server = 0; server < 2; server++)
		for (kind = SEND; kind <= READ; kind++) {
			struct call call = {.kind = kind, .data = big, .size = 2};
			bool puts = kind == SEND || kind == WRITE;
			struct honest honest;

			test_context("%s, server %d", call_name(kind), server);
			honest_open(&honest, server);
			if (puts)
				equal(libxenvchan_send(honest.end, big, honest.out_size),
				      honest.out_size);
			take_events(honest.peer);
			set_blocking(honest.end, true);
			call.end = honest.end;
			call_start(&call);
			call_until_asleep(&call);
			__atomic_fetch_add(puts ? honest.out_peer : honest.in_peer, 5000,
					   __ATOMIC_SEQ_CST);
			equal(send(server ? honest.channel.client_socket
					  : honest.channel.server_socket,
				   "", 1, MSG_NOSIGNAL),
			      1);
			call_fails(&call, EPROTO);
			equal(*honest.own_live, 0);
			check(readable(honest.peer));
			stays_broken(&honest);
			honest_close(&honest);
		}
}

/* What was seen before is no proof for what comes after: data that was announced and is then taken
 * back. */
static void data_that_is_taken_back_is_not_read(void)
{
	struct honest honest;
	int kind, server, blocking;

	for (server = 0; server < 2; server++)
		for (blocking = 0; blocking < 2; blocking++)
			for (kind = RECV; kind <= READ; kind++) {
				struct call call = {.kind = kind, .data = big, .size = 20};

				test_context("%s, server %d, blocking %d", call_name(kind), server,
					     blocking);
				honest_open(&honest, server);
				*honest.in_peer += 10;
				equal(libxenvchan_data_ready(honest.end), 10);
				*honest.in_peer -= 10;
				set_blocking(honest.end, blocking);
				call.end = honest.end;
				if (blocking) {
					call_start(&call);
					call_until_asleep(&call);
					equal(libxenvchan_send(honest.peer, big, 20), 20);
					equal(call_end(&call), 20);
				} else {
					equal(call_now(kind, honest.end, big, 20), 0);
				}
				equal(*(&honest.end->read.shr->cons), *honest.in_peer);
				/* And nothing after it is read from outside. */
				set_blocking(honest.end, false);
				equal(call_now(kind, honest.end, big, BIG), 0);
				honest_close(&honest);
			}
}

static void room_that_is_taken_back_is_not_written(void)
{
	struct honest honest;
	int kind, server;

	for (server = 0; server < 2; server++)
		for (kind = SEND; kind <= WRITE; kind++) {
			test_context("%s, server %d", call_name(kind), server);
			honest_open(&honest, server);
			equal(libxenvchan_send(honest.end, big, honest.out_size), honest.out_size);
			*honest.out_peer += 10;
			equal(libxenvchan_buffer_space(honest.end), 10);
			*honest.out_peer -= 10;
			equal(call_now(kind, honest.end, big, 20), 0);
			equal(call_now(kind, honest.end, big, BIG), 0);
			equal(libxenvchan_buffer_space(honest.end), 0);
			honest_close(&honest);
		}
}

/* The page's copies of what we keep ourselves: nothing of ours may depend on them. */
static void nothing_depends_on_what_only_the_page_says(void)
{
	struct honest honest;
	int server;

	for (server = 0; server < 2; server++) {
		struct vchan_interface *page;

		honest_open(&honest, server);
		page = honest.end->ring;
		page->left_order = 31;
		page->right_order = 0xffff;
		memset(&page->left, 0xff, sizeof(page->left));
		memset(&page->right, 0xff, sizeof(page->right));
		/* Our own indexes in the shared page, too. */
		honest.end->read.shr->cons += 12345;
		honest.end->write.shr->prod += 54321;
		pattern_fill(1, 0, big, 100);
		equal(libxenvchan_send(honest.end, big, 100), 100);
		equal(libxenvchan_buffer_space(honest.end), honest.out_size - 100);
		memset(big, 0, 100);
		equal(libxenvchan_recv(honest.peer, big, 100), 100);
		pattern_check(1, 0, big, 100);
		equal(libxenvchan_recv(honest.end, big, 1), 0);
		honest_close(&honest);
	}
}

static void a_live_byte_of_7_is_alive(void)
{
	struct honest honest;
	int server;

	for (server = 0; server < 2; server++) {
		honest_open(&honest, server);
		*honest.peer_live = 7;
		equal(libxenvchan_is_open(honest.end), 1);
		equal(libxenvchan_send(honest.end, big, 10), 10);
		*honest.peer_live = 255;
		equal(libxenvchan_is_open(honest.end), 1);
		equal(libxenvchan_read(honest.end, big, 10), 0);
		honest_close(&honest);
	}
}

static void a_live_byte_of_0_is_believed(void)
{
	struct honest honest;
	int server;

	for (server = 0; server < 2; server++) {
		honest_open(&honest, server);
		*honest.peer_live = 0;
		equal(libxenvchan_is_open(honest.end), 0);
		fails(libxenvchan_send(honest.end, big, 10), EPIPE);
		fails(libxenvchan_read(honest.end, big, 10), EPIPE);
		/* And 1 again, as when another client comes. */
		*honest.peer_live = 1;
		equal(libxenvchan_send(honest.end, big, 10), 10);
		honest_close(&honest);
	}
}

static int peer_socket(struct honest *honest, bool server)
{
	return server ? honest->channel.client_socket : honest->channel.server_socket;
}

static void flood(int socket)
{
	static const char events[4096];

	while (send(socket, events, sizeof(events), MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
		;
	equal(errno, EAGAIN);
	while (send(socket, events, 1, MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
		;
}

static void a_flooded_socket_blocks_nobody(void)
{
	struct honest honest;
	int server, waits;

	for (server = 0; server < 2; server++) {
		honest_open(&honest, server);
		/* Towards us, and the way by which our own events would go. */
		flood(peer_socket(&honest, server));
		flood(server ? honest.channel.server_socket : honest.channel.client_socket);
		check(readable(honest.end));
		set_blocking(honest.end, true);
		for (waits = 0; waits < 10; waits++) {
			*(server ? &honest.end->ring->srv_notify : &honest.end->ring->cli_notify) =
			    0xff;
			equal(libxenvchan_send(honest.end, big, 50), 50);
			equal(libxenvchan_send(honest.peer, big, 60), 60);
			equal(libxenvchan_recv(honest.end, big, 60), 60);
			equal(libxenvchan_wait(honest.end), 0);
		}
		/* What is pending ends, and then a wait does wait. */
		for (waits = 0; readable(honest.end); waits++) {
			check(waits < 100000);
			equal(libxenvchan_wait(honest.end), 0);
		}
		honest_close(&honest);
	}
}

/* Each byte of a flood wakes a blocked call for nothing; it must still get what it waits for. */
static void a_flood_does_not_end_a_blocked_call(void)
{
	int server, kind, event;

	for (server = 0; server < 2; server++)
		for (kind = RECV; kind <= READ; kind++) {
			struct call call = {.kind = kind, .data = big, .size = 5};
			struct honest honest;

			honest_open(&honest, server);
			set_blocking(honest.end, true);
			call.end = honest.end;
			call_start(&call);
			for (event = 0; event < 50; event++) {
				call_until_asleep(&call);
				equal(send(peer_socket(&honest, server), "", 1, MSG_NOSIGNAL), 1);
			}
			call_until_asleep(&call);
			equal(libxenvchan_send(honest.peer, big, 5), 5);
			equal(call_end(&call), 5);
			honest_close(&honest);
		}
}

static void a_shut_socket_ends_what_waits(void)
{
	int server, kind, asleep;

	for (server = 0; server < 2; server++)
		for (kind = SEND; kind <= WAIT; kind++)
			for (asleep = 0; asleep < 2; asleep++) {
				struct call call = {.kind = kind, .data = big, .size = 5};
				struct honest honest;

				test_context("%s, server %d, asleep %d", call_name(kind), server,
					     asleep);
				honest_open(&honest, server);
				if (kind == SEND || kind == WRITE)
					equal(libxenvchan_send(honest.end, big, honest.out_size),
					      honest.out_size);
				set_blocking(honest.end, true);
				call.end = honest.end;
				if (asleep) {
					call_start(&call);
					call_until_asleep(&call);
				}
				equal(shutdown(peer_socket(&honest, server), SHUT_RDWR), 0);
				if (!asleep)
					call_start(&call);
				call_fails(&call, EPIPE);
				equal(libxenvchan_is_open(honest.end), 0);
				honest_close(&honest);
			}
}

static void a_shut_socket_harms_no_call_that_does_not_wait(void)
{
	struct honest honest;
	int server;

	for (server = 0; server < 2; server++) {
		honest_open(&honest, server);
		equal(shutdown(peer_socket(&honest, server), SHUT_RDWR), 0);
		/* Nor does it raise SIGPIPE, which would end this program. */
		equal(libxenvchan_send(honest.end, big, 10), 10);
		equal(libxenvchan_send(honest.peer, big, 10), 10);
		equal(libxenvchan_recv(honest.end, big, 10), 10);
		equal(libxenvchan_read(honest.end, big, 10), 0);
		equal(libxenvchan_is_open(honest.end), 1);
		check(readable(honest.end));
		honest_close(&honest);
	}
}

/* What broke the rules first is what the program is told, however the peer ends. */
static void broken_stays_broken_though_the_peer_goes(void)
{
	struct honest honest;
	int server;

	for (server = 0; server < 2; server++) {
		test_context("server %d", server);
		honest_open(&honest, server);
		*honest.in_peer += 5000;
		fails(libxenvchan_recv(honest.end, big, 1), EPROTO);
		equal(shutdown(peer_socket(&honest, server), SHUT_RDWR), 0);
		*honest.in_peer -= 5000;
		stays_broken(&honest);
		honest_close(&honest);
	}
}

/* ---- all of it, all the time ---- */

/* What the hostile process knows; told over its leash: begin a round quietly (q) or loudly (g),
 * stop (s), end (e). */
struct hostile {
	struct channel channel;
	bool server; /* it is the server */
	size_t size; /* of the region */
	int leash[2];
	size_t offsets[4]; /* of left cons, left prod, right cons, right prod */
};

static bool told(int leash, char *word)
{
	ssize_t count = recv(leash, word, 1, MSG_DONTWAIT);

	if (count == 0)
		_exit(1);
	return count == 1;
}

static void *at(uint8_t *base, size_t offset) { return base + offset; }

static void scribble(uint8_t *base, size_t from, size_t to, uint64_t *seed)
{
	for (; from < to; from++)
		__atomic_store_n(base + from, (uint8_t)random_next(seed), __ATOMIC_RELAXED);
}

/* Noise: all of it, the page's head, one index, one byte. */
static void do_harm_loudly(const struct hostile *hostile, uint8_t *base, uint64_t *seed)
{
	uint64_t what = random_below(seed, 100);
	size_t offset;

	if (what == 0) {
		scribble(base, 0, hostile->size, seed);
	} else if (what < 5) {
		scribble(base, 0, 1024, seed);
	} else if (what < 10) {
		offset = hostile->offsets[random_below(seed, 4)];
		scribble(base, offset, offset + sizeof(uint32_t), seed);
	} else {
		offset = random_below(seed, hostile->size);
		scribble(base, offset, offset + 1, seed);
	}
}

/*
 * What might pass for true, and so gets further: the own indexes, as far from the honest end's as
 * can just be, forwards and back; notify bytes, orders, and a live byte that is not 0.
 */
static void do_harm_quietly(const struct hostile *hostile, uint8_t *base, uint64_t *seed)
{
	size_t offset;

	if (random_below(seed, 4)) {
		size_t pair = 2 * random_below(seed, 2);
		size_t own = hostile->server == (pair == 2); /* prod of the ring it writes into */
		uint32_t size = 1u << (pair ? hostile->channel.right : hostile->channel.left);
		uint32_t *index = at(base, hostile->offsets[pair + own]);
		uint32_t other = __atomic_load_n(
		    (uint32_t *)at(base, hostile->offsets[pair + !own]), __ATOMIC_RELAXED);
		uint32_t far = (uint32_t)random_below(seed, size + 1);

		if (random_below(seed, 2))
			far = random_below(seed, 2) ? 0 : size;
		if (random_below(seed, 5000) == 0)
			far = size + 1;
		__atomic_store_n(index, own ? other + far : other - far, __ATOMIC_RELAXED);
	} else {
		offset = 16 + random_below(seed, 8);
		scribble(base, offset, offset + 1, seed);
		offset = hostile->server ? 21 : 20;
		__atomic_store_n(base + offset, 1 + (uint8_t)random_below(seed, 255),
				 __ATOMIC_RELAXED);
		offset = 1024 + random_below(seed, hostile->size - 1024);
		scribble(base, offset, offset + 1, seed);
	}
}

static void hostile_runs(void *argument)
{
	struct hostile *hostile = argument;
	int socket =
	    hostile->server ? hostile->channel.server_socket : hostile->channel.client_socket;
	int leash = hostile->leash[1];
	uint64_t seed = 77;
	char word, events[64];
	bool quietly;
	uint8_t *base = mmap(NULL, hostile->size, PROT_READ | PROT_WRITE, MAP_SHARED,
			     hostile->channel.region, 0);

	check(base != MAP_FAILED);
	close(hostile->leash[0]);
	/* Only its own end's socket, so that its exit is the end of that. */
	close(hostile->server ? hostile->channel.client_socket : hostile->channel.server_socket);
	for (;;) {
		equal(recv(leash, &word, 1, 0), 1);
		if (word == 'e')
			return;
		quietly = word == 'q';
		do {
			volatile uint64_t pause = random_below(&seed, 300);

			if (quietly)
				do_harm_quietly(hostile, base, &seed);
			else
				do_harm_loudly(hostile, base, &seed);
			while (quietly && pause)
				pause--;
			(void)send(socket, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
			(void)recv(socket, events, sizeof(events), MSG_DONTWAIT);
		} while (!told(leash, &word));
		equal(word, 's');
		equal(send(leash, "k", 1, MSG_NOSIGNAL), 1);
	}
}

static void tell(const struct hostile *hostile, char word)
{
	equal(send(hostile->leash[0], &word, 1, MSG_NOSIGNAL), 1);
}

/* A call, its contract, and whether the channel can still be used. */
static bool call_in_hostility(struct libxenvchan *end, uint64_t *seed, bool blocking)
{
	uint32_t what = (uint32_t)random_below(seed, blocking ? 9 : 8);
	bool puts = what < 4;
	uint32_t ring = puts ? ring_size_out(end) : ring_size_in(end);
	uint64_t most = random_below(seed, 3) ? ring / 4 : random_below(seed, 8) ? ring : 3 * ring;
	size_t size = random_below(seed, most + 2);
	enum call_kind kind = what / 2; /* send, write, recv, read */
	uint8_t *data;
	int result, error;

	set_blocking(end, blocking);
	if (what == 8) {
		equal(libxenvchan_wait(end), 0);
		return true;
	}
	result = libxenvchan_data_ready(end);
	check(result >= 0 && (uint32_t)result <= ring_size_in(end));
	result = libxenvchan_buffer_space(end);
	check(result >= 0 && (uint32_t)result <= ring_size_out(end));
	result = libxenvchan_is_open(end);
	check(result >= 0 && result <= (end->is_server ? 2 : 1));

	data = malloc(size);
	check(data || !size);
	if (size)
		memset(data, 0x5a, size);
	errno = 0;
	result = call_now(kind, end, data, size);
	error = errno;
	free(data);
	if (result < 0) {
		equal(result, -1);
		check(error == EPIPE || error == EPROTO ||
		      (error == EMSGSIZE && blocking && size > ring));
		return error == EMSGSIZE;
	}
	check((size_t)result <= size);
	if (kind == SEND || kind == RECV)
		check((size_t)result == size || (result == 0 && !blocking));
	if (blocking && kind == WRITE)
		equal(result, size);
	if (blocking && kind == READ && size)
		check(result > 0);
	return true;
}

static void hostile_start(struct hostile *hostile, uint32_t left, uint32_t right, bool server)
{
	struct channel *channel = &hostile->channel;
	struct libxenvchan *end;

	hostile->server = server;
	channel_make(channel, left, right);
	hostile->size = PAGE;
	hostile->size += left < 12 ? 0 : 1u << left;
	hostile->size += right < 12 ? 0 : 1u << right;
	channel_attach_server(channel);
	end = channel->server;
	hostile->offsets[0] = (size_t)((uint8_t *)&end->read.shr->cons - (uint8_t *)end->ring);
	hostile->offsets[1] = hostile->offsets[0] + 4;
	hostile->offsets[2] = (size_t)((uint8_t *)&end->write.shr->cons - (uint8_t *)end->ring);
	hostile->offsets[3] = hostile->offsets[2] + 4;
	kvmchan_detach(end);
	channel->server = NULL;
	equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, hostile->leash), 0);
}

#define ROUNDS 160
#define CALLS 400

static void live_through(uint32_t left, uint32_t right, bool server)
{
	struct hostile hostile;
	struct channel *channel = &hostile.channel;
	uint64_t seed = left * 100 + right, calls = 0;
	struct call call = {.kind = READ, .data = big, .size = 10};
	struct libxenvchan **end = server ? &channel->client : &channel->server;
	uint8_t *page;
	pid_t child;
	int round;
	char word;

	hostile_start(&hostile, left, right, server);
	child = child_start(hostile_runs, &hostile);
	close(hostile.leash[1]);
	/* Its socket is its alone, so that its exit can be noticed. */
	close(server ? channel->server_socket : channel->client_socket);
	*(server ? &channel->server_socket : &channel->client_socket) = -1;
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, channel->region, 0);
	check(page != MAP_FAILED);
	for (round = 0; round < ROUNDS; round++) {
		bool blocking = round & 1, quietly = round % 8 < 6;
		int count;

		test_context("orders %u, %u, server %d, round %d", left, right, server, round);
		/* A page as it would be, for the attach; harm comes after it. */
		memset(page, 0, 1024);
		page[20] = page[21] = 1;
		if (server)
			channel_attach_client(channel);
		else
			channel_attach_server(channel);
		tell(&hostile, quietly ? 'q' : 'g');
		for (count = 0; count < CALLS; count++, calls++)
			if (!call_in_hostility(*end, &seed, blocking))
				break;
		tell(&hostile, 's');
		equal(recv(hostile.leash[0], &word, 1, 0), 1);
		if (round == ROUNDS - 1)
			break;
		end_close(end);
	}
	/* It goes, and that is the end of a wait for it. */
	kvmchan_detach(*end);
	memset(page, 0, 1024);
	page[20] = page[21] = 1;
	if (server)
		channel_attach_client(channel);
	else
		channel_attach_server(channel);
	page[20] = page[21] = 1;
	take_events(*end);
	set_blocking(*end, true);
	call.end = *end;
	call_start(&call);
	call_until_asleep(&call);
	tell(&hostile, 'e');
	child_end(child);
	call_fails(&call, EPIPE);
	/* Many rounds got further than their first call. */
	check(calls > ROUNDS);
	equal(munmap(page, PAGE), 0);
	close(hostile.leash[0]);
	channel_close(channel);
}

static void an_honest_server_lives_through_anything(void)
{
	live_through(10, 11, false);
	live_through(12, 12, false);
	live_through(11, 14, false);
}

static void an_honest_client_lives_through_anything(void)
{
	live_through(10, 11, true);
	live_through(12, 12, true);
	live_through(14, 10, true);
}

/* A client that comes while the page is being rewritten is refused, or is a client; and nothing is
 * left of it either way. */
static void attach_lives_through_anything(void)
{
	struct hostile hostile;
	struct channel *channel = &hostile.channel;
	int batch, attempt, came = 0;
	uint8_t *page;
	pid_t child;
	char word;

	hostile_start(&hostile, 10, 11, true);
	child = child_start(hostile_runs, &hostile);
	close(hostile.leash[1]);
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, channel->region, 0);
	check(page != MAP_FAILED);
	for (batch = 0; batch < 20; batch++) {
		memset(page, 0, 1024);
		tell(&hostile, batch & 1 ? 'g' : 'q');
		for (attempt = 0; attempt < 100; attempt++) {
			struct kvmchan_grant grant = channel_grant(channel, false);

			errno = 0;
			channel->client = kvmchan_attach(&grant);
			if (channel->client) {
				end_close(&channel->client);
				came++;
			} else {
				equal(errno, EPROTO);
			}
		}
		tell(&hostile, 's');
		equal(recv(hostile.leash[0], &word, 1, 0), 1);
	}
	check(came);
	equal(munmap(page, PAGE), 0);
	tell(&hostile, 'e');
	child_end(child);
	close(hostile.leash[0]);
	channel_close(channel);
}

static const struct test tests[] = {
    TEST(an_index_ahead_by_more_than_the_ring_breaks_it),
    TEST(an_index_behind_ours_breaks_it),
    TEST(a_blocked_call_ends_at_a_false_index),
    TEST(data_that_is_taken_back_is_not_read),
    TEST(room_that_is_taken_back_is_not_written),
    TEST(nothing_depends_on_what_only_the_page_says),
    TEST(a_live_byte_of_7_is_alive),
    TEST(a_live_byte_of_0_is_believed),
    TEST(a_flooded_socket_blocks_nobody),
    TEST(a_flood_does_not_end_a_blocked_call),
    TEST(a_shut_socket_ends_what_waits),
    TEST(a_shut_socket_harms_no_call_that_does_not_wait),
    TEST(broken_stays_broken_though_the_peer_goes),
    TEST(an_honest_server_lives_through_anything),
    TEST(an_honest_client_lives_through_anything),
    TEST(attach_lives_through_anything),
};
TEST_MAIN(tests)
