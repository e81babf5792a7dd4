/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One ring, both of its ends in one place: the arithmetic at its boundaries, which everything else
 * rests on.
 *
 * The bytes are an allocation of exactly the ring's size, so that AddressSanitizer sees a step
 * outside. The last test moves bytes between threads, so that ThreadSanitizer sees whether an index
 * is published after the bytes it stands for.
 */
#include "rig/harness.h"

#include <stdlib.h>
#include <string.h>

#include "ring/copy.h"
#include "ring/ring.h"

#define SIZE 64u

/* Indexes to start from: both ends of the numbers, and where the two's complement turns. */
static const uint32_t starts[] = {
    0, 1, SIZE - 1, SIZE, 0x7ffffff5, 0x80000000, UINT32_MAX - SIZE, UINT32_MAX - 5, UINT32_MAX};
#define STARTS (sizeof(starts) / sizeof(starts[0]))

struct pair {
	struct ring_shared shared;
	struct ring producer, consumer;
};

static void pair_make(struct pair *pair, uint32_t size, uint32_t start)
{
	uint8_t *buffer = malloc(size);

	check(buffer);
	memset(buffer, 0xee, size);
	pair->shared = (struct ring_shared){.cons = start, .prod = start};
	pair->producer = (struct ring){
	    .own_index = &pair->shared.prod,
	    .peer_index = &pair->shared.cons,
	    .buffer = buffer,
	    .size = size,
	    .own = start,
	    .peer = start,
	    .produces = true,
	};
	pair->consumer = pair->producer;
	pair->consumer.own_index = &pair->shared.cons;
	pair->consumer.peer_index = &pair->shared.prod;
	pair->consumer.produces = false;
}

static void pair_free(struct pair *pair) { free(pair->producer.buffer); }

static void put(struct pair *pair, uint64_t position, uint32_t count)
{
	uint8_t data[SIZE];

	pattern_fill(1, position, data, count);
	ring_put(&pair->producer, data, count);
}

static void get(struct pair *pair, uint64_t position, uint32_t count)
{
	uint8_t data[SIZE + 1];

	data[count] = 0x5a;
	ring_get(&pair->consumer, data, count);
	pattern_check(1, position, data, count);
	equal(data[count], 0x5a);
}

static void an_empty_ring_has_all_its_room_and_no_data(void)
{
	struct pair pair;
	size_t index;

	for (index = 0; index < STARTS; index++) {
		pair_make(&pair, SIZE, starts[index]);
		equal(ring_known(&pair.producer), SIZE);
		equal(ring_look(&pair.producer), SIZE);
		equal(ring_known(&pair.consumer), 0);
		equal(ring_look(&pair.consumer), 0);
		pair_free(&pair);
	}
}

static void a_peek_leaves_what_it_copies(void)
{
	uint8_t data[SIZE + 1];
	struct pair pair;
	size_t index;

	for (index = 0; index < STARTS; index++) {
		pair_make(&pair, SIZE, starts[index]);
		put(&pair, 0, SIZE);
		equal(ring_look(&pair.consumer), SIZE);
		data[SIZE] = 0x5a;
		ring_peek(&pair.consumer, data, SIZE);
		pattern_check(1, 0, data, SIZE);
		equal(data[SIZE], 0x5a);
		equal(ring_known(&pair.consumer), SIZE);
		equal(pair.shared.cons, starts[index]);
		get(&pair, 0, SIZE);
		pair_free(&pair);
	}
}

static void a_full_ring_uses_every_byte(void)
{
	struct pair pair;
	size_t index;

	for (index = 0; index < STARTS; index++) {
		test_context("start %u", starts[index]);
		pair_make(&pair, SIZE, starts[index]);
		put(&pair, 0, SIZE);
		equal(ring_known(&pair.producer), 0);
		equal(ring_look(&pair.producer), 0);
		equal(ring_look(&pair.consumer), SIZE);
		get(&pair, 0, SIZE);
		equal(ring_known(&pair.consumer), 0);
		equal(ring_look(&pair.producer), SIZE);
		pair_free(&pair);
	}
}

static void a_copy_of_any_length_goes_around_the_end(void)
{
	struct pair pair;
	uint32_t offset, count;
	size_t index;

	for (index = 0; index < STARTS; index++)
		for (offset = 0; offset < SIZE; offset++)
			for (count = 0; count <= SIZE; count++) {
				test_context("start %u + %u, %u bytes", starts[index], offset,
					     count);
				pair_make(&pair, SIZE, starts[index] + offset);
				put(&pair, 0, count);
				equal(ring_known(&pair.producer), SIZE - count);
				equal(pair.shared.prod, starts[index] + offset + count);
				equal(pair.shared.cons, starts[index] + offset);
				equal(ring_look(&pair.consumer), count);
				get(&pair, 0, count);
				equal(pair.shared.cons, starts[index] + offset + count);
				pair_free(&pair);
			}
}

static void bytes_keep_their_places_whatever_the_pieces(void)
{
	uint64_t seed = 7, in = 0, out = 0;
	struct pair pair;
	uint32_t count;

	pair_make(&pair, SIZE, UINT32_MAX - 4000);
	while (out < 10000) {
		count = (uint32_t)random_below(&seed, ring_look(&pair.producer) + 1);
		put(&pair, in, count);
		in += count;
		equal(ring_look(&pair.consumer), in - out);
		count = (uint32_t)random_below(&seed, ring_look(&pair.consumer) + 1);
		get(&pair, out, count);
		out += count;
		equal(ring_look(&pair.producer), SIZE - (in - out));
	}
	pair_free(&pair);
}

static void a_copy_changes_no_other_byte(void)
{
	struct pair pair;
	uint32_t offset;

	pair_make(&pair, SIZE, UINT32_MAX - 2);
	put(&pair, 0, 5); /* at 61, 62, 63, 0, 1 */
	for (offset = 2; offset < SIZE - 3; offset++)
		equal(pair.producer.buffer[offset], 0xee);
	pair_free(&pair);
}

static void what_is_known_changes_by_a_look_only(void)
{
	struct pair pair;

	pair_make(&pair, SIZE, 100);
	put(&pair, 0, 10);
	equal(ring_known(&pair.consumer), 0);
	equal(ring_look(&pair.consumer), 10);
	get(&pair, 0, 10);
	equal(ring_known(&pair.producer), SIZE - 10);
	equal(ring_look(&pair.producer), SIZE);
	pair_free(&pair);
}

static void the_own_index_is_never_read_back(void)
{
	struct pair pair;

	pair_make(&pair, SIZE, 5);
	put(&pair, 0, 3);
	pair.shared.prod = 0xdeadbeef;
	put(&pair, 3, 3);
	equal(pair.shared.prod, 11);
	equal(ring_look(&pair.consumer), 6);
	get(&pair, 0, 2);
	pair.shared.cons = 0xdeadbeef;
	get(&pair, 2, 4);
	equal(pair.shared.cons, 11);
	equal(ring_look(&pair.producer), SIZE);
	pair_free(&pair);
}

static void looks_at(struct ring *ring, uint32_t *index, uint32_t value, uint32_t expected)
{
	uint32_t known = ring_known(ring);

	*index = value;
	equal(ring_look(ring), expected);
	/* What can't be true is not kept. */
	equal(ring_known(ring), expected == RING_BROKEN ? known : expected);
}

static void an_index_that_cannot_be_true_breaks_the_ring(void)
{
	struct pair pair;
	size_t index;

	for (index = 0; index < STARTS; index++) {
		uint32_t start = starts[index];

		test_context("start %u", start);
		pair_make(&pair, SIZE, start);
		/* The producer is ahead of the consumer by 0 to SIZE. */
		looks_at(&pair.consumer, &pair.shared.prod, start + SIZE, SIZE);
		looks_at(&pair.consumer, &pair.shared.prod, start + SIZE + 1, RING_BROKEN);
		looks_at(&pair.consumer, &pair.shared.prod, start + 0x80000000, RING_BROKEN);
		looks_at(&pair.consumer, &pair.shared.prod, start - 1, RING_BROKEN);
		looks_at(&pair.consumer, &pair.shared.prod, start, 0);
		/* The consumer is behind it by as much. */
		looks_at(&pair.producer, &pair.shared.cons, start - SIZE, 0);
		looks_at(&pair.producer, &pair.shared.cons, start - SIZE - 1, RING_BROKEN);
		looks_at(&pair.producer, &pair.shared.cons, start + 0x80000000, RING_BROKEN);
		looks_at(&pair.producer, &pair.shared.cons, start + 1, RING_BROKEN);
		looks_at(&pair.producer, &pair.shared.cons, start, SIZE);
		pair_free(&pair);
	}
}

#define STREAMED 400000u

struct stream {
	struct pair pair;
	struct bell put, got;
};

static void *produce(void *argument)
{
	struct stream *stream = argument;
	unsigned int looks = 0;
	uint32_t done = 0, count;

	while (done < STREAMED) {
		while (!(count = ring_look(&stream->pair.producer)))
			if (looked_enough(&looks))
				bell_await(&stream->got);
		if (count > STREAMED - done)
			count = STREAMED - done;
		put(&stream->pair, done, count);
		bell_ring(&stream->put);
		done += count;
	}
	return NULL;
}

static void bytes_are_there_when_their_index_is(void)
{
	uint32_t done = 0, count;
	unsigned int looks = 0;
	struct stream stream;
	pthread_t thread;

	pair_make(&stream.pair, SIZE, UINT32_MAX - STREAMED / 2);
	bell_make(&stream.put);
	bell_make(&stream.got);
	thread_start(&thread, produce, &stream);
	while (done < STREAMED) {
		while (!(count = ring_look(&stream.pair.consumer)))
			if (looked_enough(&looks))
				bell_await(&stream.put);
		check(count <= SIZE);
		get(&stream.pair, done, count);
		bell_ring(&stream.got);
		done += count;
	}
	thread_end(thread);
	bell_end(&stream.put);
	bell_end(&stream.got);
	pair_free(&stream.pair);
}

/* As in a guest without KVM. */
static void a_ring_that_copies_by_words_does_the_same(void)
{
	ring_copy_by(copy_by_words);
	a_peek_leaves_what_it_copies();
	a_full_ring_uses_every_byte();
	a_copy_of_any_length_goes_around_the_end();
	bytes_keep_their_places_whatever_the_pieces();
	a_copy_changes_no_other_byte();
	bytes_are_there_when_their_index_is();
	ring_copy_by(memcpy);
}

static const struct test tests[] = {
    TEST(an_empty_ring_has_all_its_room_and_no_data),
    TEST(a_peek_leaves_what_it_copies),
    TEST(a_full_ring_uses_every_byte),
    TEST(a_copy_of_any_length_goes_around_the_end),
    TEST(bytes_keep_their_places_whatever_the_pieces),
    TEST(a_copy_changes_no_other_byte),
    TEST(what_is_known_changes_by_a_look_only),
    TEST(the_own_index_is_never_read_back),
    TEST(an_index_that_cannot_be_true_breaks_the_ring),
    TEST(bytes_are_there_when_their_index_is),
    TEST(a_ring_that_copies_by_words_does_the_same),
};
TEST_MAIN(tests)
