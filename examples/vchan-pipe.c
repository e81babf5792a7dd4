/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A pipe between two domains, as one writes it for Xen: nothing in here knows of kvmchan.
 *
 *   vchan-pipe listen CLIENT-DOMAIN PATH  > file
 *   vchan-pipe send   SERVER-DOMAIN PATH  < file
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <libxenvchan.h>

#define RING (1 << 20)

static char buffer[256 * 1024];

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static int write_all(const char *data, int size)
{
	while (size > 0) {
		ssize_t count = write(STDOUT_FILENO, data, (size_t)size);

		if (count < 0)
			return -1;
		data += count;
		size -= (int)count;
	}
	return 0;
}

static int listen_and_copy(int domain, const char *path)
{
	struct libxenvchan *vchan = libxenvchan_server_init(NULL, domain, path, RING, RING);
	double start = 0, took;
	long long total = 0;
	int count;

	if (!vchan) {
		perror("libxenvchan_server_init");
		return EXIT_FAILURE;
	}
	fprintf(stderr, "listening at %s for domain %d\n", path, domain);
	/* A server's calls wait for its first client too. */
	vchan->blocking = 1;
	while ((count = libxenvchan_read(vchan, buffer, sizeof(buffer))) > 0) {
		if (total == 0)
			start = seconds();
		total += count;
		if (write_all(buffer, count) < 0) {
			perror("write");
			return EXIT_FAILURE;
		}
	}
	took = seconds() - start;
	libxenvchan_close(vchan);
	fprintf(stderr, "received %lld bytes, %.0f MB/s\n", total, (double)total / took / 1e6);
	return EXIT_SUCCESS;
}

static int send_all(int domain, const char *path)
{
	struct libxenvchan *vchan = libxenvchan_client_init(NULL, domain, path);
	ssize_t count;

	if (!vchan) {
		perror("libxenvchan_client_init");
		return EXIT_FAILURE;
	}
	vchan->blocking = 1;
	while ((count = read(STDIN_FILENO, buffer, sizeof(buffer))) > 0) {
		if (libxenvchan_write(vchan, buffer, (size_t)count) != count) {
			fprintf(stderr, "the other end has gone\n");
			libxenvchan_close(vchan);
			return EXIT_FAILURE;
		}
	}
	libxenvchan_close(vchan);
	return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
	if (argc == 4 && strcmp(argv[1], "listen") == 0)
		return listen_and_copy(atoi(argv[2]), argv[3]);
	if (argc == 4 && strcmp(argv[1], "send") == 0)
		return send_all(atoi(argv[2]), argv[3]);
	fprintf(stderr, "usage: %s listen|send DOMAIN PATH\n", argv[0]);
	return 2;
}
