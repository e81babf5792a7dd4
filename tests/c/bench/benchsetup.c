/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What setting up costs: "first" is one init in a fresh process, "many N" opens N channels and
 * keeps them until stdin ends. These print one JSON line. A process that lives for one call: "call
 * N" opens both ends of a channel, "socket PATH" a connection to a UNIX socket, and each sends a
 * byte through.
 */
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

#define SAMPLE 200
#define FEW 10

static double microseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static long resident_kib(void)
{
	FILE *status = fopen("/proc/self/status", "r");
	char line[256];
	long kib = 0;

	while (status && fgets(line, sizeof(line), status))
		if (sscanf(line, "VmRSS: %ld", &kib) == 1)
			break;
	if (status)
		fclose(status);
	return kib;
}

static void require(const void *vchan)
{
	if (!vchan) {
		fprintf(stderr, "%s\n", kvmchan_last_error());
		exit(EXIT_FAILURE);
	}
}

static void open_both(int number, struct libxenvchan **server, struct libxenvchan **client)
{
	char path[64];

	snprintf(path, sizeof(path), "data/vchan/0/%d", number);
	*server = libxenvchan_server_init(NULL, 0, path, 1024, 1024);
	require(*server);
	*client = libxenvchan_client_init(NULL, 0, path);
	require(*client);
}

static int compare(const void *left, const void *right)
{
	double a = *(const double *)left, b = *(const double *)right;

	return (a > b) - (a < b);
}

/* Opens and closes one more channel SAMPLE times. */
static double median_set_up(int number)
{
	struct libxenvchan *server, *client;
	double took[SAMPLE];
	int i;

	for (i = 0; i < SAMPLE; i++) {
		double start = microseconds();

		open_both(number, &server, &client);
		took[i] = microseconds() - start;
		libxenvchan_close(client);
		libxenvchan_close(server);
	}
	qsort(took, SAMPLE, sizeof(*took), compare);
	return took[SAMPLE / 2];
}

static int first(void)
{
	long before = resident_kib();
	double start = microseconds(), took;
	struct libxenvchan *server =
	    libxenvchan_server_init(NULL, 0, "data/vchan/0/first", 1024, 1024);

	took = microseconds() - start;
	require(server);
	printf("{\"ms\": %.3f, \"kib\": %ld}\n", took / 1e3, resident_kib() - before);
	libxenvchan_close(server);
	return EXIT_SUCCESS;
}

static int many(int count)
{
	struct libxenvchan **ends = calloc(2 * (size_t)count, sizeof(*ends));
	double few, all;
	char byte;
	int i;

	require(ends);
	for (i = 0; i < FEW; i++)
		open_both(i, &ends[2 * i], &ends[2 * i + 1]);
	few = median_set_up(count);
	for (; i < count; i++)
		open_both(i, &ends[2 * i], &ends[2 * i + 1]);
	all = median_set_up(count);
	printf("{\"first_us\": %.1f, \"last_us\": %.1f}\n", few, all);
	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) > 0)
		;
	for (i = 0; i < 2 * count; i++)
		libxenvchan_close(ends[i]);
	free(ends);
	return EXIT_SUCCESS;
}

static int call(int number)
{
	struct libxenvchan *server, *client;
	char byte = 'x';

	open_both(number, &server, &client);
	if (libxenvchan_send(client, &byte, 1) != 1 || libxenvchan_recv(server, &byte, 1) != 1)
		return EXIT_FAILURE;
	libxenvchan_close(client);
	libxenvchan_close(server);
	return EXIT_SUCCESS;
}

static int call_socket(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char byte = 'x';

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
		return EXIT_FAILURE;
	close(fd);
	return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	if (argc == 2 && strcmp(argv[1], "first") == 0)
		return first();
	if (argc == 3 && strcmp(argv[1], "many") == 0 && atoi(argv[2]) > FEW)
		return many(atoi(argv[2]));
	if (argc == 3 && strcmp(argv[1], "call") == 0)
		return call(atoi(argv[2]));
	if (argc == 3 && strcmp(argv[1], "socket") == 0)
		return call_socket(argv[2]);
	fprintf(stderr, "usage: %s first | many COUNT | call NUMBER | socket PATH\n", argv[0]);
	return 2;
}
