/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Two processes send each other all they can, and each byte that arrives is judged: it must be the
 * one that belongs there.
 *
 * Sizes and kinds of calls are random, from a seed. The indexes start below 2^32 by half of what is
 * sent, so that each run crosses it. Once with blocking calls only, where both ends follow one
 * schedule that can't deadlock; once with non-blocking calls and poll, where each end does what it
 * can, in both directions at once.
 */
#include "rig/harness.h"

#include <stdlib.h>

#define RING_MAX (1u << 20)

struct bulk {
	struct channel channel;
	uint64_t total; /* bytes in each direction */
	uint64_t seed;
	void (*traffic)(struct libxenvchan *end, uint64_t total, uint64_t seed);
};

/* Streams are named for their direction. */
static uint64_t stream_in(const struct libxenvchan *end) { return end->is_server ? 1 : 2; }

static uint64_t stream_out(const struct libxenvchan *end) { return end->is_server ? 2 : 1; }

static uint8_t buffer[4 * RING_MAX];

/* Mostly small, sometimes as large as it may be. */
static uint32_t some_size(uint64_t *seed, uint64_t most)
{
	uint64_t limit = random_below(seed, 4) ? 1 + most / 8 : most;

	if (random_below(seed, 8) == 0)
		limit = most < 16 ? most : 16;
	return 1 + (uint32_t)random_below(seed, limit < most ? limit : most);
}

static uint32_t least(uint64_t a, uint64_t b) { return (uint32_t)(a < b ? a : b); }

/* ---- blocking ---- */

/*
 * How large the calls may be that take all or nothing. A send that waits for room and a recv that
 * waits for data wait for each other for ever if together they are larger than the ring, so only
 * one of them may be: with a write or read there is no such thing.
 */
struct limits {
	uint32_t send, recv; /* 0: none such */
};

static struct limits some_limits(uint64_t *seed, uint32_t ring)
{
	switch (random_below(seed, 3)) {
	case 0:
		return (struct limits){.send = ring};
	case 1:
		return (struct limits){.recv = ring};
	default:
		return (struct limits){.send = ring / 2, .recv = ring / 2};
	}
}

static void put_all(struct libxenvchan *end, uint64_t position, uint32_t count, uint32_t send,
		    uint64_t *seed)
{
	while (count) {
		bool whole = send && random_below(seed, 2);
		uint32_t size = some_size(seed, whole ? least(count, send) : count);

		pattern_fill(stream_out(end), position, buffer, size);
		equal(call_now(whole ? SEND : WRITE, end, buffer, size), size);
		position += size;
		count -= size;
	}
}

static void get_all(struct libxenvchan *end, uint64_t position, uint32_t count, uint32_t recv,
		    uint64_t *seed)
{
	while (count) {
		bool whole = recv && random_below(seed, 2);
		uint32_t size = some_size(seed, whole ? least(count, recv) : count);
		int taken = call_now(whole ? RECV : READ, end, buffer, size);

		check(whole ? taken == (int)size : taken > 0 && taken <= (int)size);
		pattern_check(stream_in(end), position, buffer, (size_t)taken);
		position += (uint64_t)taken;
		count -= (uint32_t)taken;
	}
}

/*
 * Both ends draw the same schedule from the seed, and each its own calls. An exchange puts no more
 * than a ring holds, so both may put first; where one end puts more than that, the other only gets.
 */
static void traffic_blocking(struct libxenvchan *end, uint64_t total, uint64_t seed)
{
	uint64_t own_seed = seed + (end->is_server ? 1000 : 2000), left = 0, right = 0;
	uint32_t left_ring = end->is_server ? ring_size_in(end) : ring_size_out(end);
	uint32_t right_ring = end->is_server ? ring_size_out(end) : ring_size_in(end);

	set_blocking(end, true);
	while (left < total || right < total) {
		uint32_t burst = 1 + (uint32_t)random_below(&seed, 3);
		uint32_t kind = (uint32_t)random_below(&seed, 4);
		uint32_t to_left = least(left_ring, total - left);
		uint32_t to_right = least(right_ring, total - right);
		struct limits left_limits = some_limits(&seed, left_ring);
		struct limits right_limits = some_limits(&seed, right_ring);

		if (kind == 0)
			to_left = 0, to_right = least(burst * right_ring, total - right);
		else if (kind == 1)
			to_right = 0, to_left = least(burst * left_ring, total - left);
		if (end->is_server) {
			put_all(end, right, to_right, right_limits.send, &own_seed);
			get_all(end, left, to_left, left_limits.recv, &own_seed);
		} else {
			put_all(end, left, to_left, left_limits.send, &own_seed);
			get_all(end, right, to_right, right_limits.recv, &own_seed);
		}
		left += to_left;
		right += to_right;
	}
}

/* ---- non-blocking, with poll ---- */

static uint32_t try_put(struct libxenvchan *end, uint64_t position, uint64_t left, bool whole,
			uint32_t size)
{
	int count;

	if (!left) /* the peer may be done, too, and have closed */
		return 0;
	size = least(size, left);
	pattern_fill(stream_out(end), position, buffer, size);
	count = call_now(whole ? SEND : WRITE, end, buffer, size);
	check(whole ? count == 0 || count == (int)size : count >= 0 && count <= (int)size);
	return (uint32_t)count;
}

static uint32_t try_get(struct libxenvchan *end, uint64_t position, uint64_t left, bool whole,
			uint32_t size)
{
	int count;

	if (!left) /* the peer may be done, too, and have closed */
		return 0;
	size = least(size, left);
	count = call_now(whole ? RECV : READ, end, buffer, size);
	check(whole ? count == 0 || count == (int)size : count >= 0 && count <= (int)size);
	pattern_check(stream_in(end), position, buffer, (size_t)count);
	return (uint32_t)count;
}

static void traffic_polled(struct libxenvchan *end, uint64_t total, uint64_t seed)
{
	uint64_t put = 0, got = 0;

	seed += end->is_server ? 1000 : 2000;
	while (put < total || got < total) {
		uint32_t moved = 0, count;

		/* Larger than the ring also, which a non-blocking call may ask for. */
		count = try_put(end, put, total - put, random_below(&seed, 2),
				some_size(&seed, ring_size_out(end) + 10));
		put += count;
		moved += count;
		count = try_get(end, got, total - got, random_below(&seed, 2),
				some_size(&seed, ring_size_in(end) + 10));
		got += count;
		moved += count;
		if (moved)
			continue;
		/* Before it sleeps, an end does all that it could, or two of them wait for each
		 * other. */
		count = try_put(end, put, total - put, false, 64);
		put += count;
		moved += count;
		count = try_get(end, got, total - got, false, ring_size_in(end));
		got += count;
		moved += count;
		if (!moved && (put < total || got < total)) {
			until_readable(end);
			equal(libxenvchan_wait(end), 0);
		}
	}
}

/* ---- the two processes ---- */

static void client_runs(void *argument)
{
	struct bulk *bulk = argument;
	struct channel *channel = &bulk->channel;

	channel_attach_client(channel);
	/* Only the parent is the server. */
	kvmchan_detach(channel->server);
	channel->server = NULL;
	channel_orphan(channel);
	bulk->traffic(channel->client, bulk->total, bulk->seed);
	channel_close(channel);
}

static void bulk_run(struct bulk *bulk, uint32_t left, uint32_t right)
{
	struct channel *channel = &bulk->channel;
	uint32_t start;
	pid_t child;

	/* As much as fills the larger ring several times, and the smaller ones a thousand times. */
	bulk->total = (6ull << (left > right ? left : right)) + (4u << 20);
	start = (uint32_t)(0 - bulk->total / 2 - bulk->seed);
	channel_make(channel, left, right);
	channel_preset(channel, start, start + 777);
	channel_attach_server(channel);
	child = child_start(client_runs, bulk);
	bulk->traffic(channel->server, bulk->total, bulk->seed);
	child_end(child);
	equal(libxenvchan_is_open(channel->server), 0);
	fails(libxenvchan_read(channel->server, buffer, 1), EPIPE);
	equal(channel->server->read.shr->cons, (uint32_t)(start + bulk->total));
	equal(channel->server->read.shr->prod, (uint32_t)(start + bulk->total));
	equal(channel->server->write.shr->cons, (uint32_t)(start + 777 + bulk->total));
	channel_close(channel);
}

static void run_classes(void (*traffic)(struct libxenvchan *, uint64_t, uint64_t), const char *spin)
{
	static const uint32_t classes[][2] = {{10, 11}, {11, 10}, {11, 12},
					      {12, 12}, {16, 16}, {20, 20}};
	size_t index;

	if (spin)
		setenv("KVMCHAN_SPIN_US", spin, 1);
	for (index = 0; index < sizeof(classes) / sizeof(classes[0]); index++) {
		struct bulk bulk = {.traffic = traffic, .seed = 100 + index};

		test_context("orders %u, %u", classes[index][0], classes[index][1]);
		bulk_run(&bulk, classes[index][0], classes[index][1]);
	}
}

static void blocking_both_ways(void) { run_classes(traffic_blocking, NULL); }

static void blocking_both_ways_without_spinning(void) { run_classes(traffic_blocking, "0"); }

static void polled_both_ways(void) { run_classes(traffic_polled, NULL); }

static void polled_both_ways_without_spinning(void) { run_classes(traffic_polled, "0"); }

static const struct test tests[] = {
    TEST(blocking_both_ways),
    TEST(blocking_both_ways_without_spinning),
    TEST(polled_both_ways),
    TEST(polled_both_ways_without_spinning),
};
TEST_MAIN(tests)
