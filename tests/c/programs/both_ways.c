/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An ordinary Xen program, as a Xen user would write it: server and client send each other a long
 * stream, in calls of odd sizes, and check every byte. It knows nothing of us, and is compiled with
 * Xen's headers.
 *
 * It says "offered" (the server) and "open", goes on at a line on stdin, says "done" and closes at
 * another.
 */
#include <libxenvchan.h>
#include <stdlib.h>

#include "../rig/program.h"

static unsigned char byte_at(size_t position, int from_server)
{
	return (unsigned char)((position * 2654435761u >> 11) + (from_server ? 1 : 0));
}

/* A stream: as much as goes at once. */
static void put_stream(struct libxenvchan *vchan, size_t total, int from_server)
{
	unsigned char piece[7001];

	for (size_t done = 0; done < total;) {
		size_t count = total - done < sizeof(piece) ? total - done : sizeof(piece);

		for (size_t i = 0; i < count; i++)
			piece[i] = byte_at(done + i, from_server);
		EXPECT(libxenvchan_write(vchan, piece, count) == (int)count);
		done += count;
	}
}

static void get_stream(struct libxenvchan *vchan, size_t total, int from_server)
{
	unsigned char piece[5003];

	for (size_t done = 0; done < total;) {
		int count = libxenvchan_read(vchan, piece, sizeof(piece));

		EXPECT(count > 0 && (size_t)count <= total - done);
		for (int i = 0; i < count; i++)
			EXPECT(piece[i] == byte_at(done + (size_t)i, from_server));
		done += (size_t)count;
	}
}

/* Packets: all or nothing. */
static void put_packets(struct libxenvchan *vchan, size_t count, int from_server)
{
	unsigned char packet[333];

	for (size_t i = 0; i < count; i++) {
		memset(packet, byte_at(i, from_server), sizeof(packet));
		EXPECT(libxenvchan_send(vchan, packet, sizeof(packet)) == sizeof(packet));
	}
}

static void get_packets(struct libxenvchan *vchan, size_t count, int from_server)
{
	unsigned char packet[333];

	for (size_t i = 0; i < count; i++) {
		EXPECT(libxenvchan_recv(vchan, packet, sizeof(packet)) == sizeof(packet));
		EXPECT(packet[0] == byte_at(i, from_server) && packet[332] == packet[0]);
	}
}

int main(int argc, char **argv)
{
	int is_server, domain;
	struct libxenvchan *vchan;
	size_t total;

	EXPECT(argc == 5);
	is_server = strcmp(argv[1], "server") == 0;
	domain = atoi(argv[2]);
	total = strtoul(argv[4], NULL, 10);

	vchan = is_server ? libxenvchan_server_init(NULL, domain, argv[3], 4000, 9000)
			  : libxenvchan_client_init(NULL, domain, argv[3]);
	EXPECT(vchan);
	vchan->blocking = 1;
	EXPECT(!vchan->is_server == !is_server);
	if (is_server) {
		say("offered");
		while (libxenvchan_is_open(vchan) == 2)
			EXPECT(libxenvchan_wait(vchan) == 0);
	}
	EXPECT(libxenvchan_is_open(vchan) == 1);
	say("open");
	await_gate();

	if (is_server) {
		put_stream(vchan, total, 1);
		get_stream(vchan, total, 0);
		put_packets(vchan, total / 1000, 1);
		get_packets(vchan, total / 1000, 0);
	} else {
		get_stream(vchan, total, 1);
		put_stream(vchan, total, 0);
		get_packets(vchan, total / 1000, 1);
		put_packets(vchan, total / 1000, 0);
	}
	say("done");
	await_gate();
	libxenvchan_close(vchan);
	return 0;
}
