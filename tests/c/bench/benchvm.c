/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One end of what tests/bench/vm.py measures between a host and a guest: a vchan, and a
 * virtio-serial port of the same guest.
 *
 *   benchvm server|client OWN-DOMAIN DOMAIN RING [PORT]
 *
 * It says "ready", and at the first line of its stdin offers, or connects to, a vchan, of
 * which the server says "offered", and both "open": the server with the nanoseconds from before
 * server_init to the first byte. PORT is a virtio-serial port's name in the guest, and the path of
 * the port's UNIX socket on the host. Each further line is an order, with a number that begins the
 * answer:
 *
 *   N send|receive vchan|port CALL COUNT   a stream of COUNT calls; the receiver: bytes a second
 *   N ping|echo vchan|port SIZE COUNT      round trips; who pings: the nanoseconds of one
 *   N copy SIZE COUNT                      plain memcpy into a ring's memory: bytes a second
 *   N offer|join COUNT                     more channels, kept to the last; who offers: nanoseconds
 * of each, from before server_init to the first byte
 *
 * Every call's first 8 bytes are its number, which the receiver checks. Each time is of one
 * machine's clock.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "kvmchan.h"
#include "libxenvchan.h"

#define CALL_MAX (1 << 20)
/* Of channels after the first: several have room in a link of the default size. */
#define MORE_RING 1
#define MORE_FDS 20000

static unsigned char buffer[CALL_MAX], ring[CALL_MAX];
static struct libxenvchan *vchan;
static int port = -1;
static int own, domain; /* domains: ours and the other end's */

static _Noreturn void die(const char *what)
{
	const char *why = kvmchan_last_error();

	printf("error: %s: %s %s\n", what, strerror(errno), why ? why : "");
	exit(EXIT_FAILURE);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* ---- vchans ---- */

static void set_blocking(struct libxenvchan *made)
{
	int yes = 1; /* in a signed 1-bit field, so not written as a constant */

	made->blocking = yes;
}

static struct libxenvchan *offer(uint64_t number, size_t size)
{
	struct libxenvchan *made;
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "data/bench/%d/%" PRIu64, domain, number);
	made = libxenvchan_server_init(NULL, domain, path, size, size);

	if (!made)
		die("libxenvchan_server_init");
	set_blocking(made);
	return made;
}

static struct libxenvchan *join(uint64_t number)
{
	struct libxenvchan *made;
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "/local/domain/%d/data/bench/%d/%" PRIu64, domain, own,
		 number);
	made = libxenvchan_client_init(NULL, domain, path);

	if (!made)
		die("libxenvchan_client_init");
	set_blocking(made);
	return made;
}

static size_t vchan_put(const unsigned char *from, size_t size)
{
	if (libxenvchan_send(vchan, from, size) != (int)size)
		die("libxenvchan_send");
	return size;
}

static size_t vchan_get(unsigned char *to, size_t size)
{
	int count = libxenvchan_read(vchan, to, size);

	if (count <= 0)
		die("libxenvchan_read");
	return (size_t)count;
}

/* ---- the virtio-serial port ---- */

static int open_socket(const char *where)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || strlen(where) >= sizeof(address.sun_path))
		die(where);
	strcpy(address.sun_path, where);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		die(where);
	return fd;
}

static bool is_named(const char *device, const char *name)
{
	char file[PATH_MAX], found[64] = "";
	FILE *stream;

	snprintf(file, sizeof(file), "/sys/class/virtio-ports/%s/name", device);
	stream = fopen(file, "r");
	if (!stream)
		return false;
	if (!fgets(found, sizeof(found), stream))
		*found = '\0';
	fclose(stream);
	found[strcspn(found, "\n")] = '\0';
	return strcmp(found, name) == 0;
}

static int open_port(const char *name)
{
	DIR *ports = opendir("/sys/class/virtio-ports");
	struct dirent *entry;
	char file[PATH_MAX];
	int fd = -1;

	while (ports && fd < 0 && (entry = readdir(ports))) {
		if (!is_named(entry->d_name, name))
			continue;
		snprintf(file, sizeof(file), "/dev/%s", entry->d_name);
		fd = open(file, O_RDWR | O_CLOEXEC);
	}
	if (fd < 0)
		die(name);
	closedir(ports);
	return fd;
}

static size_t port_put(const unsigned char *from, size_t size)
{
	ssize_t count = write(port, from, size);

	if (count <= 0)
		die("the port");
	return (size_t)count;
}

static size_t port_get(unsigned char *to, size_t size)
{
	ssize_t count = read(port, to, size);

	if (count <= 0)
		die("the port");
	return (size_t)count;
}

/* ---- streams and round trips ---- */

struct carrier {
	size_t (*put)(const unsigned char *from, size_t size);
	size_t (*get)(unsigned char *to, size_t size);
};

static void put_call(const struct carrier *carrier, size_t size, uint64_t number)
{
	memcpy(buffer, &number, sizeof(number));
	for (size_t done = 0; done < size;)
		done += carrier->put(buffer + done, size - done);
}

static void check_call(uint64_t number)
{
	if (memcmp(buffer, &number, sizeof(number)) == 0)
		return;
	errno = EBADMSG;
	die("not the call that was sent");
}

static void get_call(const struct carrier *carrier, size_t size, uint64_t number)
{
	for (size_t done = 0; done < size;)
		done += carrier->get(buffer + done, size - done);
	check_call(number);
}

static void stream_out(const struct carrier *carrier, size_t size, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		put_call(carrier, size, i);
}

/* From the first byte, or those that came with it, to the last. */
static void stream_in(const struct carrier *carrier, size_t size, uint64_t count)
{
	size_t first = carrier->get(buffer, size);
	uint64_t start = now_ns();

	for (size_t done = first; done < size;)
		done += carrier->get(buffer + done, size - done);
	check_call(0);
	for (uint64_t i = 1; i < count; i++)
		get_call(carrier, size, i);
	printf(" %.0f", (double)(size * count - first) * 1e9 / (double)(now_ns() - start));
}

static void ping(const struct carrier *carrier, size_t size, uint64_t count)
{
	uint64_t warm_up = count / 10, start = now_ns();

	for (uint64_t i = 0; i < count + warm_up; i++) {
		if (i == warm_up)
			start = now_ns();
		put_call(carrier, size, i);
		get_call(carrier, size, i);
	}
	printf(" %.0f", (double)(now_ns() - start) / (double)count);
}

static void echo(const struct carrier *carrier, size_t size, uint64_t count)
{
	for (uint64_t i = 0; i < count + count / 10; i++) {
		get_call(carrier, size, i);
		put_call(carrier, size, i);
	}
}

/* What a stream's end does with its bytes at the least. */
static void copy(size_t size, uint64_t count)
{
	uint64_t start;

	memset(ring, 1, sizeof(ring));
	start = now_ns();
	for (uint64_t i = 0; i < count; i++) {
		memcpy(ring + i * size % sizeof(ring), buffer, size);
		__asm__ volatile("" : : "r"(ring) : "memory");
	}
	printf(" %.0f", (double)(size * count) * 1e9 / (double)(now_ns() - start));
}

/* ---- more channels ---- */

static const struct carrier vchans = {vchan_put, vchan_get}, ports = {port_put, port_get};

static struct libxenvchan **room_for(uint64_t count)
{
	struct rlimit most = {.rlim_cur = MORE_FDS, .rlim_max = MORE_FDS};
	struct libxenvchan **more = calloc(count + 1, sizeof(*more));

	if (!more || setrlimit(RLIMIT_NOFILE, &most) < 0)
		die("room for more channels");
	return more;
}

static void close_all(struct libxenvchan **more)
{
	for (uint64_t i = 0; more[i]; i++)
		libxenvchan_close(more[i]);
	free(more);
}

/* They all stay until the last is there. The vchan that is there before says when the client may
 * come, as a program's own would. */
static void offer_more(uint64_t count)
{
	struct libxenvchan **more = room_for(count);
	unsigned char byte = 0;

	for (uint64_t i = 0; i < count; i++) {
		uint64_t start = now_ns();

		more[i] = offer(i + 1, MORE_RING);
		vchan_put(&byte, 1);
		if (libxenvchan_recv(more[i], &byte, 1) != 1)
			die("the first byte");
		printf(" %" PRIu64, now_ns() - start);
	}
	vchan_put(&byte, 1);
	close_all(more);
}

static void join_more(uint64_t count)
{
	struct libxenvchan **more = room_for(count);
	unsigned char byte = 0;

	for (uint64_t i = 0; i < count; i++) {
		vchan_get(&byte, 1);
		more[i] = join(i + 1);
		if (libxenvchan_send(more[i], &byte, 1) != 1)
			die("the first byte");
	}
	vchan_get(&byte, 1);
	close_all(more);
}

/* ---- the orders ---- */

static void obey(const char *order)
{
	char what[16], by[16];
	int number;
	size_t size;
	uint64_t count;

	if (sscanf(order, "%d %15s %15s %zu %" SCNu64, &number, what, by, &size, &count) == 5) {
		const struct carrier *carrier = strcmp(by, "port") == 0 ? &ports : &vchans;

		if (size < sizeof(uint64_t) || size > CALL_MAX)
			die(order);
		printf("#%d", number);
		if (strcmp(what, "send") == 0)
			stream_out(carrier, size, count);
		else if (strcmp(what, "receive") == 0)
			stream_in(carrier, size, count);
		else if (strcmp(what, "ping") == 0)
			ping(carrier, size, count);
		else
			echo(carrier, size, count);
	} else if (sscanf(order, "%d %15s %zu %" SCNu64, &number, what, &size, &count) == 4) {
		if (size > CALL_MAX || strcmp(what, "copy") != 0)
			die(order);
		printf("#%d", number);
		copy(size, count);
	} else if (sscanf(order, "%d %15s %" SCNu64, &number, what, &count) == 3) {
		printf("#%d", number);
		if (strcmp(what, "offer") == 0)
			offer_more(count);
		else
			join_more(count);
	} else {
		die(order);
	}
	printf(" done\n");
}

int main(int argc, char **argv)
{
	char order[256];
	uint64_t start;

	if (argc < 5 || argc > 6) {
		fprintf(stderr, "usage: %s server|client OWN-DOMAIN DOMAIN RING [PORT]\n", argv[0]);
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	own = atoi(argv[2]);
	domain = atoi(argv[3]);
	if (argc > 5)
		port = *argv[5] == '/' ? open_socket(argv[5]) : open_port(argv[5]);
	printf("ready\n");
	if (!fgets(order, sizeof(order), stdin))
		return EXIT_SUCCESS;
	start = now_ns();
	if (strcmp(argv[1], "server") == 0) {
		vchan = offer(0, strtoul(argv[4], NULL, 10));
		printf("offered\n");
		if (libxenvchan_recv(vchan, buffer, 1) != 1)
			die("the first byte");
	} else {
		vchan = join(0);
		vchan_put(buffer, 1);
	}
	printf("open %" PRIu64 "\n", now_ns() - start);
	while (fgets(order, sizeof(order), stdin))
		obey(order);
	libxenvchan_close(vchan);
	return EXIT_SUCCESS;
}
