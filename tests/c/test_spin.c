/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Spinning before a sleep must never cost what it is to save: who waits for long uses no processor,
 * and who must not spin doesn't. How much faster it makes short waits is the benchmark's business,
 * not a test's.
 *
 * The processor time of a blocked child is measured over an interval, the one place where a test
 * lets time pass. A child that never slept would use all of it; the bound is far above what a child
 * that sleeps uses, and far below that.
 */
#include "rig/harness.h"

#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "ring/spin.h"

#define INTERVAL_MS 400
#define USED_MOST_NS 80000000ull
#define DEFAULT_LIMIT 50000u

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec time;

	equal(clock_gettime(clock, &time), 0);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static bool one_processor(void)
{
	cpu_set_t cpus;

	equal(sched_getaffinity(0, sizeof(cpus), &cpus), 0);
	if (CPU_COUNT(&cpus) > 1)
		return false;
	printf("  skipped: there is one processor only, so nothing spins\n");
	return true;
}

/* ---- an idle channel ---- */

struct idler {
	struct channel channel;
	enum call_kind kind;
	int trips; /* round trips before, which teach that waits are short */
};

static void idle(void *argument)
{
	static uint8_t data[4096];
	struct idler *idler = argument;
	struct libxenvchan *client = idler->channel.client;
	uint64_t used;
	int trip;

	set_blocking(client, true);
	for (trip = 0; trip < idler->trips; trip++) {
		equal(libxenvchan_recv(client, data, 8), 8);
		equal(libxenvchan_send(client, data, 8), 8);
	}
	if (idler->kind == SEND || idler->kind == WRITE)
		equal(libxenvchan_write(client, data, 1024), 1024);
	used = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
	if (idler->kind == WAIT)
		equal(libxenvchan_wait(client), 0);
	else
		fails(call_now(idler->kind, client, data, 8), EPIPE);
	used = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - used;
	if (used > USED_MOST_NS)
		test_fail(__FILE__, __LINE__, "a blocked %s used %llu us of processor time",
			  call_name(idler->kind), (unsigned long long)used / 1000);
}

static void idles(enum call_kind kind, int trips)
{
	struct idler idler = {.kind = kind, .trips = trips};
	struct channel *channel = &idler.channel;
	pid_t child;
	int trip;

	channel_open(channel, 10, 11);
	child = child_start(idle, &idler);
	set_blocking(channel->server, true);
	for (trip = 0; trip < trips; trip++) {
		uint64_t data = (uint64_t)trip;

		equal(libxenvchan_send(channel->server, &data, 8), 8);
		equal(libxenvchan_recv(channel->server, &data, 8), 8);
	}
	/* What is measured is an interval, not a state that would be reached by its end. */
	equal(poll(NULL, 0, INTERVAL_MS), 0);
	end_close(&channel->server);
	child_end(child);
	channel_close(channel);
}

static void a_blocked_call_uses_no_processor(void)
{
	int kind;

	for (kind = SEND; kind <= WAIT; kind++) {
		test_context("%s", call_name(kind));
		idles(kind, 0);
	}
}

static void an_idle_channel_that_was_busy_uses_none(void)
{
	idles(RECV, 2000);
	idles(READ, 2000);
}

static void a_spin_as_long_as_the_setting_ends(void)
{
	setenv("KVMCHAN_SPIN_US", "1000", 1);
	idles(RECV, 2000);
}

/* ---- the setting ---- */

static uint32_t limit_of(const char *setting)
{
	struct spin spin;

	if (setting)
		setenv("KVMCHAN_SPIN_US", setting, 1);
	else
		unsetenv("KVMCHAN_SPIN_US");
	spin_init(&spin);
	return spin.limit;
}

static void the_setting_is_microseconds(void)
{
	if (one_processor())
		return;
	equal(limit_of("-1"), limit_of(NULL));
	equal(limit_of("x"), limit_of(NULL));
	equal(limit_of(NULL), DEFAULT_LIMIT);
	equal(limit_of(""), DEFAULT_LIMIT);
	equal(limit_of("0"), 0);
	equal(limit_of("1"), 1000);
	equal(limit_of("200"), 200000);
	equal(limit_of("1000000"), 1000000000);
}

static void a_senseless_setting_is_none(void)
{
	if (one_processor())
		return;
	equal(limit_of("much"), DEFAULT_LIMIT);
	equal(limit_of("5us"), DEFAULT_LIMIT);
	/* Too much is the most that there is. */
	equal(limit_of("1000001"), 1000000000);
	equal(limit_of("99999999999999999999999"), 1000000000);
}

static bool spins(struct spin *spin)
{
	struct spin_wait wait;

	spin_begin(spin, &wait);
	return spin_turn(&wait);
}

static void a_setting_of_0_turns_it_off(void)
{
	struct spin spin;
	int index;

	setenv("KVMCHAN_SPIN_US", "0", 1);
	spin_init(&spin);
	equal(spin.limit, 0);
	for (index = 0; index < 100; index++) {
		struct spin_wait wait;

		spin_begin(&spin, &wait);
		check(!spin_turn(&wait));
		spin_end(&spin, &wait, true);
	}
}

static void on_one_processor(void *argument)
{
	cpu_set_t cpus, one;
	int cpu = 0;

	(void)argument;
	equal(sched_getaffinity(0, sizeof(cpus), &cpus), 0);
	while (!CPU_ISSET(cpu, &cpus))
		cpu++;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	equal(sched_setaffinity(0, sizeof(one), &one), 0);
	equal(limit_of(NULL), 0);
	/* Also if it is asked for: the peer can't run meanwhile. */
	equal(limit_of("1000"), 0);
}

static void a_process_on_one_processor_never_spins(void)
{
	child_end(child_start(on_one_processor, NULL));
}

/* ---- what a wait teaches ---- */

static void a_spin_ends_when_its_time_is_over(void)
{
	struct spin_wait wait;
	struct spin spin = {.limit = 1000000, .is_set = true};
	uint64_t start = clock_ns(CLOCK_MONOTONIC);
	int turns = 1;

	spin_begin(&spin, &wait);
	while (spin_turn(&wait))
		;
	check(clock_ns(CLOCK_MONOTONIC) - start >= spin.limit);
	/* From then on it says so at every look at the clock. */
	while (spin_turn(&wait))
		turns++;
	check(turns <= 16);
}

/* A wait that began @ns ago. */
static void waited(struct spin *spin, uint64_t ns, bool slept)
{
	struct spin_wait wait;

	spin_begin(spin, &wait);
	wait.start -= ns;
	spin_end(spin, &wait, slept);
}

/* The limit is a second in what follows, so that a pause of the machine is nothing beside it. */
#define LIMIT 1000000000u

static void long_waits_end_the_spinning(void)
{
	struct spin spin = {.limit = LIMIT, .is_set = true};
	int round, spinning = 0;

	check(spins(&spin));
	for (round = 0; round < 20; round++)
		waited(&spin, 10ull * LIMIT, true);
	check(spin.typical > spin.limit);
	check(spin.typical <= 4 * spin.limit);
	/* But for one in a while, to see whether that has changed. */
	for (round = 0; round < 320; round++)
		spinning += spins(&spin);
	check(spinning >= 1 && spinning <= 32);
}

static void short_waits_bring_it_back(void)
{
	struct spin spin = {.limit = LIMIT, .is_set = true, .typical = 4 * LIMIT};
	int round;

	check(!spins(&spin));
	for (round = 0; round < 200; round++)
		waited(&spin, 10, false);
	check(spin.typical < LIMIT / 2);
	for (round = 0; round < 10; round++)
		check(spins(&spin));
}

static void a_sleep_counts_without_its_wake_up(void)
{
	struct spin spin = {
	    .limit = LIMIT, .is_set = true, .cost = 2 * LIMIT, .typical = 3 * LIMIT};
	int round;

	for (round = 0; round < 60; round++)
		waited(&spin, 2ull * LIMIT, true);
	check(spins(&spin));
	for (round = 0; round < 60; round++)
		waited(&spin, 6ull * LIMIT, true);
	check(!spins(&spin));
}

/* Waits for what comes after @think ns each, on a machine where a sleep costs @cost more. Returns
 * how many of the last hundred slept. */
static int live(struct spin *spin, uint64_t think, uint64_t cost)
{
	int round, sleeps = 0;

	for (round = 0; round < 4000; round++) {
		struct spin_wait wait;
		bool slept;

		spin_begin(spin, &wait);
		slept = wait.until < wait.start + think;
		/* One that spun in vain before it slept. */
		wait.start -= slept ? think + cost : think;
		spin_end(spin, &wait, slept);
		sleeps += round >= 3900 && slept;
	}
	return sleeps;
}

static void near(uint64_t value, uint64_t wanted)
{
	if (value < wanted * 4 / 5 || value > wanted * 6 / 5)
		test_fail(__FILE__, __LINE__, "%llu is not near %llu", (unsigned long long)value,
			  (unsigned long long)wanted);
}

static void what_a_sleep_costs_is_learned(void)
{
	static const uint64_t thinks[] = {5000, 20000, 60000};
	static const uint64_t costs[] = {12000, 40000, 95000, 150000};
	size_t i, j;

	if (one_processor())
		return;
	unsetenv("KVMCHAN_SPIN_US");
	for (i = 0; i < sizeof(thinks) / sizeof(*thinks); i++) {
		for (j = 0; j < sizeof(costs) / sizeof(*costs); j++) {
			struct spin spin;
			int sleeps;

			test_context("thinks %llu, costs %llu", (unsigned long long)thinks[i],
				     (unsigned long long)costs[j]);
			spin_init(&spin);
			sleeps = live(&spin, thinks[i], costs[j]);
			/* What spinning can't tell is not asked: a wait five times the cost. */
			if (thinks[i] < 2 * costs[j])
				near(spin.cost, costs[j]);
			equal(spin.limit, spin.cost);
			/* And then each wait does what costs less. */
			if (thinks[i] * 5 / 4 < costs[j])
				check(sleeps < 10);
			if (thinks[i] > costs[j] * 5 / 4)
				check(sleeps > 90);
		}
	}
}

static void a_limit_that_is_set_stays(void)
{
	struct spin spin;

	if (one_processor())
		return;
	setenv("KVMCHAN_SPIN_US", "70", 1);
	spin_init(&spin);
	live(&spin, 20000, 150000);
	equal(spin.limit, 70000);
}

static void gathering_in_vain_is_tried_less_and_less(void)
{
	struct spin spin = {.limit = LIMIT, .is_set = true};
	struct spin_gather gather;
	int round, tries = 0;

	for (round = 0; round < 1000; round++)
		if (spin_gather_begin(&spin, &gather, 10)) {
			tries++;
			check(!spin_gather_turn(&spin, &gather, 10));
		}
	check(tries >= 1000 / 64 && tries < 40);
}

static void gathering_that_pays_goes_on(void)
{
	struct spin spin = {.limit = LIMIT, .is_set = true};
	struct spin_gather gather;
	int round;

	for (round = 0; round < 100; round++) {
		check(spin_gather_begin(&spin, &gather, 10));
		(void)spin_gather_turn(&spin, &gather, 20);
		check(!spin_gather_turn(&spin, &gather, 20));
	}
}

static void gathering_ends_though_the_peer_goes_on(void)
{
	struct spin spin = {.limit = LIMIT, .is_set = true};
	struct spin_gather gather;
	uint32_t seen = 0;

	check(spin_gather_begin(&spin, &gather, seen));
	while (spin_gather_turn(&spin, &gather, ++seen))
		;
	check(clock_ns(CLOCK_MONOTONIC) >= gather.until);
}

static const struct test tests[] = {
    TEST(a_blocked_call_uses_no_processor),
    TEST(an_idle_channel_that_was_busy_uses_none),
    TEST(a_spin_as_long_as_the_setting_ends),
    TEST(the_setting_is_microseconds),
    TEST(a_senseless_setting_is_none),
    TEST(a_setting_of_0_turns_it_off),
    TEST(a_process_on_one_processor_never_spins),
    TEST(a_spin_ends_when_its_time_is_over),
    TEST(long_waits_end_the_spinning),
    TEST(short_waits_bring_it_back),
    TEST(a_sleep_counts_without_its_wake_up),
    TEST(what_a_sleep_costs_is_learned),
    TEST(a_limit_that_is_set_stays),
    TEST(gathering_in_vain_is_tried_less_and_less),
    TEST(gathering_that_pays_goes_on),
    TEST(gathering_ends_though_the_peer_goes_on),
};
TEST_MAIN(tests)
