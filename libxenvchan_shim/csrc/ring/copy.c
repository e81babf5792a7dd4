/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ring/copy.h"

#include <pthread.h>
#include <stdint.h>
#include <string.h>

#include "ring/clock.h"
#include "ring/ring.h"

#define WORD sizeof(uint64_t)
#define WORDS 4
#define SAMPLE 2048
/* So that the clock, which may be emulated too, costs little beside them. */
#define COPIES 32
#define RUNS 5

static uint64_t load(const uint8_t *from)
{
	uint64_t word;

	memcpy(&word, from, WORD);
	/* Or the compiler makes vectors, or memcpy(), of the loop. */
	__asm__("" : "+r"(word));
	return word;
}

static void store(uint8_t *to, uint64_t word) { memcpy(to, &word, WORD); }

void *copy_by_words(void *destination, const void *source, size_t count)
{
	const uint8_t *from = source;
	uint8_t *to = destination;

	for (; count >= WORDS * WORD; count -= WORDS * WORD) {
		uint64_t a = load(from), b = load(from + WORD), c = load(from + 2 * WORD),
			 d = load(from + 3 * WORD);

		store(to, a);
		store(to + WORD, b);
		store(to + 2 * WORD, c);
		store(to + 3 * WORD, d);
		from += WORDS * WORD;
		to += WORDS * WORD;
	}
	for (; count >= WORD; count -= WORD) {
		store(to, load(from));
		from += WORD;
		to += WORD;
	}
	while (count--)
		*to++ = *from++;
	return destination;
}

/* Return the ns of the fastest of a few runs: others were interrupted. */
static uint64_t cost(ring_copier *copy)
{
	static uint8_t sample[2][SAMPLE];
	uint64_t best = UINT64_MAX;
	int run, each;

	for (run = 0; run < RUNS; run++) {
		uint64_t start = time_now(), taken;

		for (each = 0; each < COPIES; each++)
			copy(sample[0], sample[1], SAMPLE);
		taken = time_now() - start;
		if (taken < best)
			best = taken;
	}
	return best;
}

static void choose(void)
{
	/* Not for a difference that may be chance. */
	if (cost(memcpy) > cost(copy_by_words) * 5 / 4)
		ring_copy_by(copy_by_words);
}

void copy_choose(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, choose);
}
