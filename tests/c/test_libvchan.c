/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libvchan's states on channels without a daemon, whose answer to a client is the test's: what is
 * there before it, after it, and when it never comes.
 */
#include "rig/harness.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dataplane/error.h"
#include "setup/daemon.h"
#include "setup/open.h"
#include "setup/peer.h"
#include "vchan-kvm/libvchan.h"

/* ---- instead of the daemon ---- */

static struct channel channel;
/* The daemon's end of a connection, and what it answers. */
static int answers = -1;
static int refusal;

struct libxenvchan *peer_offer(int64_t domain, int64_t port, size_t read_min, size_t write_min,
			       int once)
{
	(void)domain, (void)port, (void)read_min, (void)write_min;
	check(once);
	channel_make(&channel, 10, 11);
	channel_attach_server(&channel);
	return channel.server;
}

int peer_find(struct peer_place *place, int64_t domain, int64_t port)
{
	(void)place, (void)domain, (void)port;
	return 0;
}

struct libxenvchan *peer_connect(const struct peer_place *place, bool waits)
{
	(void)place;
	check(waits);
	channel_attach_client(&channel);
	return channel.client;
}

/* How often the client has asked on one connection. */
static int asked;

int peer_await(const struct peer_place *place, int *control_fd)
{
	int ends[2];

	(void)place;
	if (*control_fd >= 0) {
		asked++;
		return 0;
	}
	asked = 1;
	equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
	*control_fd = ends[0];
	answers = ends[1];
	return 0;
}

static void answer(int error)
{
	refusal = error;
	equal(write(answers, "", 1), 1);
}

struct libxenvchan *answer_vchan(int *control_fd)
{
	char byte;

	equal(read(*control_fd, &byte, 1), 1);
	if (refusal == EAGAIN)
		return NULL;
	close(*control_fd);
	*control_fd = -1;
	if (refusal) {
		fail(refusal, "the test refuses");
		return NULL;
	}
	channel_attach_client(&channel);
	return channel.client;
}

void daemon_close(struct connection *connection) { connection_close(connection); }

void libxenvchan_close(struct libxenvchan *ctrl)
{
	if (ctrl)
		end_close(ctrl == channel.server ? &channel.server : &channel.client);
}

/* ---- a client that waits ---- */

static libvchan_t *ask(void)
{
	EVTCHN watch_fd = -1;
	libvchan_t *client = libvchan_client_init_async(0, 0, &watch_fd);

	check(client);
	check(watch_fd >= 0);
	return client;
}

static void stop_daemon(void)
{
	close(answers);
	answers = -1;
}

static void waiting_client_is_waiting_and_does_nothing(void)
{
	libvchan_t *client = ask();
	char byte = 0;

	equal(libvchan_is_open(client), VCHAN_WAITING);
	equal(libvchan_client_init_async_finish(client, true), 1);
	fails(libvchan_send(client, &byte, 1), EAGAIN);
	fails(libvchan_write(client, &byte, 1), EAGAIN);
	fails(libvchan_recv(client, &byte, 1), EAGAIN);
	fails(libvchan_read(client, &byte, 1), EAGAIN);
	fails(libvchan_fd_for_select(client), EAGAIN);
	equal(libvchan_wait(client), 0);
	equal(libvchan_data_ready(client), 0);
	equal(libvchan_buffer_space(client), 0);
	libvchan_set_blocking(client, false);
	libvchan_close(client);
	stop_daemon();
}

static void refused_client_stays_refused(void)
{
	libvchan_t *client = ask();

	answer(ENOENT);
	fails(libvchan_client_init_async_finish(client, true), ENOENT);
	fails(libvchan_client_init_async_finish(client, true), EINVAL);
	equal(libvchan_is_open(client), VCHAN_WAITING);
	libvchan_close(client);
	stop_daemon();
	libvchan_close(NULL);
}

static void client_that_is_told_to_asks_again_on_the_same_descriptor(void)
{
	libvchan_t *server = libvchan_server_init(0, 0, 0, 0), *client;
	EVTCHN watch_fd = -1;

	client = libvchan_client_init_async(0, 0, &watch_fd);
	check(client);
	for (int i = 1; i <= 3; i++) {
		struct pollfd watched = {.fd = watch_fd, .events = POLLIN};

		equal(asked, i);
		answer(EAGAIN);
		equal(libvchan_client_init_async_finish(client, true), 1);
		equal(poll(&watched, 1, 0), 0);
	}
	answer(0);
	equal(libvchan_client_init_async_finish(client, true), 0);
	equal(libvchan_is_open(client), VCHAN_CONNECTED);
	libvchan_close(client);
	libvchan_close(server);
	channel_close(&channel);
	stop_daemon();
}

static void answered_client_is_connected(void)
{
	libvchan_t *server = libvchan_server_init(0, 0, 0, 0), *client;
	char byte = 1;

	equal(libvchan_is_open(server), VCHAN_WAITING);
	client = ask();
	answer(0);
	equal(libvchan_client_init_async_finish(client, false), 0);
	equal(libvchan_client_init_async_finish(client, false), 0);
	equal(libvchan_is_open(client), VCHAN_CONNECTED);
	equal(libvchan_wait(server), 0);
	equal(libvchan_is_open(server), VCHAN_CONNECTED);
	equal(libvchan_recv(client, &byte, 1), 0);
	equal(libvchan_send(client, &byte, 1), 1);
	equal(libvchan_recv(server, &byte, 1), 1);
	libvchan_set_blocking(server, false);
	equal(libvchan_read(server, &byte, 1), 0);
	libvchan_close(client);
	equal(libvchan_is_open(server), VCHAN_DISCONNECTED);
	fails(libvchan_read(server, &byte, 1), EPIPE);
	libvchan_close(server);
	stop_daemon();
	channel_close(&channel);
}

static const struct test tests[] = {
    TEST(waiting_client_is_waiting_and_does_nothing),
    TEST(refused_client_stays_refused),
    TEST(client_that_is_told_to_asks_again_on_the_same_descriptor),
    TEST(answered_client_is_connected),
};

TEST_MAIN(tests)
