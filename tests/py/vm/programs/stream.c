/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An ordinary Xen program that moves bytes and checks every one of them.
 *
 *   stream server|client DOMAIN PATH CHANNELS OUT IN CALL [RING]
 *
 * On each of CHANNELS vchans, at PATH/0, PATH/1 and so on, it sends OUT bytes and receives IN
 * bytes, both at once, in calls of at most CALL bytes. It says "offered" (the server), "open", and
 * "done" with the MB/s; it closes when its stdin does.
 */
#include <errno.h>
#include <libxenvchan.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define EXPECT(condition)                                                                          \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			printf("line %d: not so: %s (%s)\n", __LINE__, #condition,                 \
			       strerror(errno));                                                   \
			fflush(stdout);                                                            \
			_exit(1);                                                                  \
		}                                                                                  \
	} while (0)

/* A prime, so that no ring's size hides a byte in the wrong place. */
#define PERIOD 65521
#define CALL_MAX (1 << 20)

static unsigned char pattern[PERIOD + CALL_MAX];
static unsigned char buffer[CALL_MAX];

struct channel {
	struct libxenvchan *vchan;
	size_t sent, received;
	size_t start; /* of this channel's stream in the pattern */
};

static size_t at_most(size_t most, size_t left) { return left < most ? left : most; }

/* Moves what can be moved; whether that was anything. */
static int turn(struct channel *channel, size_t out, size_t in, size_t call)
{
	int moved = 0, count;

	if (channel->sent < out) {
		count = libxenvchan_write(channel->vchan,
					  pattern + (channel->start + channel->sent) % PERIOD,
					  at_most(call, out - channel->sent));
		EXPECT(count >= 0);
		channel->sent += (size_t)count;
		moved |= count;
	}
	if (channel->received < in) {
		count =
		    libxenvchan_read(channel->vchan, buffer, at_most(call, in - channel->received));
		EXPECT(count >= 0);
		EXPECT(memcmp(buffer, pattern + (channel->start + channel->received) % PERIOD,
			      (size_t)count) == 0);
		channel->received += (size_t)count;
		moved |= count;
	}
	return moved;
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void say(const char *line)
{
	EXPECT(puts(line) >= 0);
	EXPECT(fflush(stdout) == 0);
}

int main(int argc, char **argv)
{
	int is_server, domain, count, open;
	size_t out, in, call, ring = 65536;
	struct channel *channels;
	struct pollfd *polled;
	char path[256];
	double start;

	EXPECT(argc >= 8);
	is_server = strcmp(argv[1], "server") == 0;
	domain = atoi(argv[2]);
	count = atoi(argv[4]);
	out = strtoul(argv[5], NULL, 10);
	in = strtoul(argv[6], NULL, 10);
	call = at_most(CALL_MAX, strtoul(argv[7], NULL, 10));
	if (argc > 8)
		ring = strtoul(argv[8], NULL, 10);
	for (size_t i = 0; i < sizeof(pattern); i++)
		pattern[i] = (unsigned char)((i % PERIOD) * 2654435761u >> 13);

	channels = calloc((size_t)count, sizeof(*channels));
	polled = calloc((size_t)count, sizeof(*polled));
	EXPECT(channels && polled);
	for (int i = 0; i < count; i++) {
		struct channel *channel = &channels[i];

		snprintf(path, sizeof(path), "%s/%d", argv[3], i);
		channel->vchan = is_server ? libxenvchan_server_init(NULL, domain, path, ring, ring)
					   : libxenvchan_client_init(NULL, domain, path);
		EXPECT(channel->vchan);
		channel->start = (size_t)i * 997;
		polled[i] = (struct pollfd){.fd = libxenvchan_fd_for_select(channel->vchan),
					    .events = POLLIN};
	}
	if (is_server)
		say("offered");
	for (int i = 0; i < count; i++)
		while (libxenvchan_is_open(channels[i].vchan) == 2)
			EXPECT(libxenvchan_wait(channels[i].vchan) == 0);
	say("open");
	start = seconds();
	do {
		int moved = 0;

		open = 0;
		for (int i = 0; i < count; i++) {
			moved |= turn(&channels[i], out, in, call);
			open += channels[i].sent < out || channels[i].received < in;
		}
		if (open && !moved) {
			EXPECT(poll(polled, (nfds_t)count, -1) > 0);
			for (int i = 0; i < count; i++)
				if (polled[i].revents)
					EXPECT(libxenvchan_wait(channels[i].vchan) == 0);
		}
	} while (open);
	printf("done %.1f MB/s\n", (double)(out + in) * count / (seconds() - start) / 1e6);
	fflush(stdout);
	while (getchar() != EOF)
		;
	for (int i = 0; i < count; i++)
		libxenvchan_close(channels[i].vchan);
	say("closed");
	return 0;
}
