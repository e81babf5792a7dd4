/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Four threads open, use and close a channel each, all at the same time, in several rounds, and one
 * of them forks meanwhile: threads PATH ROUNDS. The first round also races for the start of the
 * interpreter. */
#include <kvmchan.h>
#include <libxenvchan.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "../rig/program.h"

#define THREADS 4
#define TOTAL 100000

static const char *path;
static int rounds;
static pthread_barrier_t together;

/* @position is of the whole stream, so that no byte stands twice at one place of the ring. */
static unsigned char byte_at(size_t position, size_t thread)
{
	return (unsigned char)(position * 31 / 7 + thread * 50);
}

static void transfer(struct libxenvchan *from, struct libxenvchan *to, size_t thread)
{
	unsigned char data[3000];
	size_t put = 0, got = 0;

	while (got < TOTAL) {
		size_t most = TOTAL - put < sizeof(data) ? TOTAL - put : sizeof(data);
		int count;

		for (size_t i = 0; i < most; i++)
			data[i] = byte_at(put + i, thread);
		count = libxenvchan_write(from, data, most);
		EXPECT(count >= 0);
		put += (size_t)count;
		count = libxenvchan_read(to, data, sizeof(data) / 2);
		EXPECT(count >= 0);
		for (size_t i = 0; i < (size_t)count; i++)
			EXPECT(data[i] == byte_at(got + i, thread));
		got += (size_t)count;
	}
}

/* A child of a process whose other threads are in the midst of something can use the library. */
static void fork_child(const char *own_path)
{
	pid_t child = fork();
	int status;

	EXPECT(child >= 0);
	if (child == 0) {
		struct libxenvchan *vchan = libxenvchan_server_init(NULL, 0, own_path, 0, 0);

		EXPECT(vchan);
		libxenvchan_close(vchan);
		_exit(0);
	}
	EXPECT(waitpid(child, &status, 0) == child && status == 0);
}

static void *run(void *argument)
{
	size_t thread = (size_t)(uintptr_t)argument;
	struct libxenvchan *server, *client;
	char own_path[200];

	snprintf(own_path, sizeof(own_path), "%s/%zu", path, thread);
	for (int round = 0; round < rounds; round++) {
		pthread_barrier_wait(&together);
		if (thread == 0 && round > 0)
			fork_child(own_path);
		server = libxenvchan_server_init(NULL, 0, own_path, 4096, 4096);
		EXPECT(server);
		client = libxenvchan_client_init(NULL, 0, own_path);
		EXPECT(client);
		server->blocking = client->blocking = 0;
		transfer(client, server, thread);
		transfer(server, client, thread + 1);
		libxenvchan_close(client);
		EXPECT(libxenvchan_is_open(server) == 0);
		libxenvchan_close(server);
		/* The sentence of a failure is the thread's own. */
		snprintf(own_path, sizeof(own_path), "%s/nobody/%zu", path, thread);
		EXPECT(!libxenvchan_client_init(NULL, 0, own_path) && errno == ENOENT);
		EXPECT(strstr(kvmchan_last_error(), own_path));
		snprintf(own_path, sizeof(own_path), "%s/%zu", path, thread);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[THREADS];

	EXPECT(argc == 3);
	path = argv[1];
	rounds = atoi(argv[2]);
	pthread_barrier_init(&together, NULL, THREADS);
	for (size_t i = 0; i < THREADS; i++)
		EXPECT(pthread_create(&threads[i], NULL, run, (void *)(uintptr_t)i) == 0);
	for (size_t i = 0; i < THREADS; i++)
		EXPECT(pthread_join(threads[i], NULL) == 0);
	say("ok");
	return 0;
}
