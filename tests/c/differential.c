/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Asks one libxenvchan a long series of questions and prints every answer, so that a test can run
 * the same series over the distribution's library (on tests/c/standins) and over ours, and compare
 * the two outputs byte by byte.
 *
 * Both ends live in this one thread. What may legally differ (addresses, fd numbers, errno) is not
 * printed, and what would block is not called. The reference's own defects are left out, too:
 *  - a blocking read of 0 bytes waits for data that it then does not take;
 *  - closing a server whose path was taken over removes the path of its successor;
 *  - init leaves flags of the control structure as malloc returned them (blocking, and a client's
 *    server_persist), so each is set before it matters and not printed.
 */
#define _GNU_SOURCE 1

#include <libxenvchan.h>

#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rig/watchdog.h"

#define MAX_RING (1U << 20)

/* What is known of one ring: how many bytes ever went in and came out. */
struct flow {
	uint64_t put, got;
	uint32_t size;
};

struct channel {
	struct libxenvchan *server, *client;
	struct flow left, right; /* as in the shared page: left is client to server */
	bool client_gone;	 /* there was one, and it closed */
	bool persist;
};

static const char *path;
static int domain;
static bool show_raw, try_second_client;
static size_t read_min, write_min;
static struct channel now, old; /* the path's holder, and the one it took the path from */
static bool path_lost;		/* closing old removed now's path: the reference's defect */
static unsigned char buf[2 * MAX_RING + 16];
static uint64_t rng_state;
static long step;
static struct watched *watched;

static uint64_t rng(uint64_t below)
{
	uint64_t z = rng_state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return (z ^ z >> 31) % below;
}

static bool chance(unsigned int percent) { return rng(100) < percent; }

/* The byte at a position of a flow never changes, so every byte that arrives can be judged. */
static unsigned char pattern(uint64_t pos, unsigned int salt)
{
	return (unsigned char)((pos * 0x9e3779b1 + salt) >> 13);
}

static unsigned int salt_of(const struct flow *f)
{
	return f == &now.left || f == &old.left ? 0x1234567 : 0x7654321;
}

/* Both ends are in this one thread, so a call that should not block but does is a hang, which the
 * watchdog sees. Only these calls ask the daemon, and may wait for it. */
static struct libxenvchan *server_init(size_t want_read, size_t want_write)
{
	struct libxenvchan *server;

	watchdog_awaits_others(true);
	server = libxenvchan_server_init(NULL, domain, path, want_read, want_write);
	watchdog_awaits_others(false);
	return server;
}

static struct libxenvchan *client_init(const char *server_path)
{
	struct libxenvchan *client;

	watchdog_awaits_others(true);
	client = libxenvchan_client_init(NULL, domain, server_path);
	watchdog_awaits_others(false);
	return client;
}

static void end_close(struct libxenvchan *end)
{
	watchdog_awaits_others(true);
	libxenvchan_close(end);
	watchdog_awaits_others(false);
}

static int readable(struct libxenvchan *end)
{
	struct pollfd p = {.fd = libxenvchan_fd_for_select(end), .events = POLLIN};

	return poll(&p, 1, 0);
}

/* data_ready and buffer_space also ask for events, so they are not part of every line. */
static void show_end(const char *name, struct libxenvchan *end, bool full)
{
	if (!end) {
		printf(" %s=none", name);
		return;
	}
	printf(" %s open=%d fd=%d", name, libxenvchan_is_open(end), readable(end));
	if (full) {
		int ready = libxenvchan_data_ready(end);

		printf(" ready=%d space=%d", ready, libxenvchan_buffer_space(end));
	}
}

static void show_raw_page(const struct channel *ch)
{
	struct libxenvchan *end = ch->server ? ch->server : ch->client;
	const volatile struct vchan_interface *page = end ? end->ring : NULL;

	if (!show_raw || !page)
		return;
	printf(" live=%u/%u notify=%u/%u", page->cli_live, page->srv_live, page->cli_notify,
	       page->srv_notify);
}

static void show_state(const struct channel *ch)
{
	bool full = chance(50);

	printf(" |");
	show_raw_page(ch);
	show_end("s", ch->server, full);
	show_end("c", ch->client, full);
	printf("\n");
}

static void begin(const struct channel *ch, const char *call)
{
	printf("%ld %s %s", step, ch == &now ? "now" : "old", call);
}

static void set_blocking(struct libxenvchan *end, int blocking) { end->blocking = blocking; }

static bool peer_open(const struct channel *ch, bool server)
{
	if (server)
		return ch->persist || !ch->client_gone;
	return ch->server;
}

static size_t pick_size(size_t close_to, size_t ring)
{
	switch (rng(12)) {
	case 0:
		return 0;
	case 1:
		return 1;
	case 2:
		return close_to;
	case 3:
		return close_to + 1;
	case 4:
		return close_to ? close_to - 1 : 0;
	case 5:
		return ring;
	case 6:
		return ring + 1;
	case 7:
		return ring - 1;
	case 8:
		return rng(2 * ring);
	case 9:
		return close_to / 2;
	case 10:
		return rng(ring + 1);
	default:
		return rng(64);
	}
}

static void check_count(int got, size_t asked)
{
	if (got < -1 || (got > 0 && (size_t)got > asked)) {
		printf(" impossible\n");
		exit(5);
	}
}

static void do_put(struct channel *ch, bool server)
{
	struct libxenvchan *end = server ? ch->server : ch->client;
	struct flow *f = server ? &ch->right : &ch->left;
	size_t space = f->size - (size_t)(f->put - f->got);
	size_t n = pick_size(space, f->size);
	bool whole = chance(50), blocking = chance(50);
	int got;

	if (blocking && peer_open(ch, server) && n > space && !(whole && n > f->size))
		blocking = false;
	for (size_t i = 0; i < n && i < f->size; i++)
		buf[i] = pattern(f->put + i, salt_of(f));
	set_blocking(end, blocking);
	got = whole ? libxenvchan_send(end, buf, n) : libxenvchan_write(end, buf, n);
	begin(ch, server ? "s." : "c.");
	printf("%s%s(%zu) = %d", whole ? "send" : "write", blocking ? ".b" : "", n, got);
	check_count(got, n);
	if (got > 0)
		f->put += (uint64_t)got;
	show_state(ch);
}

static void do_get(struct channel *ch, bool server)
{
	struct libxenvchan *end = server ? ch->server : ch->client;
	struct flow *f = server ? &ch->left : &ch->right;
	size_t ready = (size_t)(f->put - f->got);
	size_t n = pick_size(ready, f->size);
	bool whole = chance(50), blocking = chance(50), intact = true;
	uint64_t sum = 0xcbf29ce484222325;
	int got;

	if (blocking && peer_open(ch, server) && (whole ? n > ready && n <= f->size : ready == 0))
		blocking = false;
	set_blocking(end, blocking);
	got = whole ? libxenvchan_recv(end, buf, n) : libxenvchan_read(end, buf, n);
	begin(ch, server ? "s." : "c.");
	printf("%s%s(%zu) = %d", whole ? "recv" : "read", blocking ? ".b" : "", n, got);
	check_count(got, n);
	if (got > 0) {
		for (int i = 0; i < got; i++) {
			sum = (sum ^ buf[i]) * 0x100000001b3;
			intact &= buf[i] == pattern(f->got + (uint64_t)i, salt_of(f));
		}
		printf(" sum=%016" PRIx64 "%s", sum, intact ? "" : " DAMAGED");
		f->got += (uint64_t)got;
	}
	show_state(ch);
}

static void do_wait(struct channel *ch, bool server)
{
	struct libxenvchan *end = server ? ch->server : ch->client;
	int rc;

	if (!readable(end))
		return;
	rc = libxenvchan_wait(end);
	begin(ch, server ? "s.wait" : "c.wait");
	printf(" = %d", rc);
	show_state(ch);
}

static void do_close(struct channel *ch, bool server)
{
	struct libxenvchan **end = server ? &ch->server : &ch->client;

	if (!*end)
		return;
	end_close(*end);
	*end = NULL;
	if (!server)
		ch->client_gone = true;
	else if (ch == &old)
		path_lost = true;
	begin(ch, server ? "s.close" : "c.close");
	show_state(ch);
}

static void do_persist(struct channel *ch)
{
	int persist = chance(50);

	ch->persist = persist;
	ch->server->server_persist = persist;
	begin(ch, "s.persist");
	printf("(%d)", persist);
	show_state(ch);
}

static void do_server_init(void)
{
	if (now.server || now.client) {
		bool first = chance(50);

		do_close(&old, first);
		do_close(&old, !first);
		old = now;
	}
	memset(&now, 0, sizeof(now));
	now.server = server_init(read_min, write_min);
	path_lost = false;
	begin(&now, "server_init");
	printf(" = %s", now.server ? "ok" : "NULL");
	if (!now.server) {
		printf("\n");
		exit(0);
	}
	now.left.size = 1U << now.server->read.order;
	now.right.size = 1U << now.server->write.order;
	show_state(&now);
}

static void do_client_init(void)
{
	struct libxenvchan *client;

	if (path_lost && now.server)
		return;
	if (now.client && now.server && !try_second_client)
		return;
	client = client_init(path);
	begin(&now, "client_init");
	printf(" = %s", client ? "ok" : "NULL");
	if (client) {
		if (now.client || !now.server) {
			printf(" impossible\n");
			exit(5);
		}
		now.client = client;
		now.client_gone = false;
	}
	show_state(&now);
}

static void do_client_init_nobody(void)
{
	char other[256];

	snprintf(other, sizeof(other), "%s-nobody", path);
	begin(&now, "client_init(nobody)");
	printf(" = %s\n", client_init(other) ? "ok" : "NULL");
}

static void do_step(void)
{
	struct channel *ch = (old.server || old.client) && chance(20) ? &old : &now;
	unsigned int dice = (unsigned int)rng(1000);
	bool server;

	if (!now.server && (!now.client || chance(5))) {
		if (chance(20))
			do_client_init();
		do_server_init();
		return;
	}
	if (ch == &now && !now.client && chance(20)) {
		do_client_init();
		return;
	}
	server = ch->server && (!ch->client || chance(50));
	if (dice < 330)
		do_put(ch, server);
	else if (dice < 660)
		do_get(ch, server);
	else if (dice < 930)
		do_wait(ch, server);
	else if (dice < 945)
		do_client_init_nobody();
	else if (dice < 960 && ch->server)
		do_persist(ch);
	else if (dice < 980)
		do_close(ch, false);
	else if (dice < 986)
		do_close(ch, true);
	else if (dice < 992)
		do_server_init();
	else
		do_client_init();
}

/* Where ring->shr points to is not shown: ours keeps the indexes elsewhere in the page. */
static void show_side(const char *name, const struct libxenvchan *end,
		      const struct libxenvchan_ring *ring)
{
	printf(" %s:%d", name, ring->order);
	if (ring->order < 12)
		printf("@%td", (const char *)ring->buffer - (const char *)end->ring);
}

static void show_ends(struct libxenvchan *end)
{
	const volatile struct vchan_interface *page = end->ring;
	int ready;

	printf("  %s", end->is_server ? "server" : "client");
	show_side("read", end, &end->read);
	show_side("write", end, &end->write);
	printf(" orders %u,%u live %u,%u notify %u,%u index %u,%u,%u,%u", page->left_order,
	       page->right_order, page->cli_live, page->srv_live, page->cli_notify,
	       page->srv_notify, page->left.cons, page->left.prod, page->right.cons,
	       page->right.prod);
	printf(" server %d", !!end->is_server);
	printf(" open %d fd %d", libxenvchan_is_open(end), readable(end));
	ready = libxenvchan_data_ready(end);
	printf(" ready %d space %d", ready, libxenvchan_buffer_space(end));
	printf(" notify %u,%u\n", page->cli_notify, page->srv_notify);
}

static void table_row(size_t want_read, size_t want_write)
{
	struct libxenvchan *server, *client;

	watchdog_begin();
	server = server_init(want_read, want_write);
	printf("server_init(%zu, %zu) = %s\n", want_read, want_write, server ? "ok" : "NULL");
	if (!server)
		return;
	show_ends(server);
	client = client_init(path);
	printf(" client_init = %s\n", client ? "ok" : "NULL");
	if (client) {
		show_ends(server);
		show_ends(client);
		end_close(client);
		show_ends(server);
	}
	end_close(server);
	client = client_init(path);
	printf(" client_init after close = %s\n", client ? "ok" : "NULL");
	end_close(client);
}

static void table(void)
{
	static const size_t sizes[] = {0,
				       1,
				       1023,
				       1024,
				       1025,
				       2047,
				       2048,
				       2049,
				       4095,
				       4096,
				       4097,
				       8191,
				       8192,
				       8193,
				       65535,
				       65536,
				       65537,
				       MAX_RING / 2,
				       MAX_RING / 2 + 1,
				       MAX_RING - 1,
				       MAX_RING,
				       MAX_RING + 1,
				       SIZE_MAX};
	const size_t count = sizeof(sizes) / sizeof(sizes[0]);

	for (size_t i = 0; i < count; i++)
		for (size_t j = 0; j < count; j++)
			table_row(sizes[i], sizes[j]);
}

static void sequence(uint64_t seed, long steps)
{
	rng_state = seed;
	for (step = 0; step < steps; step++) {
		watchdog_begin();
		snprintf(watched->name, sizeof(watched->name), "step %ld", step);
		do_step();
	}
	do_close(&old, true);
	do_close(&old, false);
	do_close(&now, chance(50));
	do_close(&now, now.server);
	end_close(NULL);
	printf("end\n");
}

static int usage(void)
{
	fputs("usage: differential [--domain N] [--raw] [--second-client]"
	      " SEED STEPS READ_MIN WRITE_MIN PATH\n"
	      "       differential [--domain N] --table PATH\n"
	      "  --raw            also print the live and notify bytes of the shared page\n"
	      "  --second-client  also try client_init while a client is connected\n",
	      stderr);
	return 2;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {{"domain", required_argument, NULL, 'd'},
						{"raw", no_argument, NULL, 'r'},
						{"second-client", no_argument, NULL, '2'},
						{"table", no_argument, NULL, 't'},
						{NULL, 0, NULL, 0}};
	bool as_table = false;
	int opt;

	while ((opt = getopt_long(argc, argv, "", options, NULL)) >= 0) {
		if (opt == 'd')
			domain = atoi(optarg);
		else if (opt == 'r')
			show_raw = true;
		else if (opt == '2')
			try_second_client = true;
		else if (opt == 't')
			as_table = true;
		else
			return usage();
	}
	argv += optind;
	argc -= optind;
	watched = watchdog_fork();
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (as_table && argc == 1) {
		path = argv[0];
		table();
		return 0;
	}
	if (as_table || argc != 5)
		return usage();
	read_min = strtoul(argv[2], NULL, 0);
	write_min = strtoul(argv[3], NULL, 0);
	path = argv[4];
	sequence(strtoull(argv[0], NULL, 0), strtol(argv[1], NULL, 0));
	return 0;
}
