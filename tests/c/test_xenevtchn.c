/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* libxenevtchn's handles and ports, without a daemon: masks, threads, and what is left at the end.
 */
#include "rig/harness.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rig/fakedaemon.h"
#include "xen/libxenevtchn.h"

#define SELF 0x7ff0

static const enum kvmchan_events kinds[] = {KVMCHAN_EVENTS_SOCKET, KVMCHAN_EVENTS_EVENTFD};

static xenevtchn_handle *handle_open(void)
{
	xenevtchn_handle *handle = xenevtchn_open(NULL, 0);

	check(handle);
	return handle;
}

/* Joins the two, and takes the event that comes of it. */
static void bound(xenevtchn_handle *offering, xenevtchn_handle *joining, int *port, int *joined)
{
	*port = xenevtchn_bind_unbound_port(offering, SELF);
	check(*port > 0);
	*joined = xenevtchn_bind_interdomain(joining, SELF, (uint32_t)*port);
	equal(*joined, *port + 1);
	equal(xenevtchn_pending(joining), *joined);
	equal(xenevtchn_unmask(joining, (uint32_t)*joined), 0);
}

static int is_ready(xenevtchn_handle *handle)
{
	struct pollfd polled = {.fd = xenevtchn_fd(handle), .events = POLLIN};

	return poll(&polled, 1, 0);
}

static void finish(xenevtchn_handle *one, xenevtchn_handle *other)
{
	equal(xenevtchn_close(one), 0);
	if (other)
		equal(xenevtchn_close(other), 0);
	equal(fake_connections(), 0);
	fake_end();
}

/* ---- events ---- */

static void an_event_masks_its_port(void)
{
	xenevtchn_handle *one = handle_open(), *other = handle_open();
	int port, joined, i;

	bound(one, other, &port, &joined);
	equal(xenevtchn_notify(one, (uint32_t)port), 0);
	equal(is_ready(other), 1);
	equal(xenevtchn_pending(other), joined);
	for (i = 0; i < 3; i++)
		equal(xenevtchn_notify(one, (uint32_t)port), 0);
	equal(is_ready(other), 0);
	equal(xenevtchn_unmask(other, (uint32_t)joined), 0);
	equal(xenevtchn_unmask(other, (uint32_t)joined), 0);
	equal(is_ready(other), 1);
	equal(xenevtchn_pending(other), joined);
	equal(xenevtchn_unmask(other, (uint32_t)joined), 0);
	equal(is_ready(other), 0);
	finish(one, other);
}

static void masks_on_each_kind_of_events(void)
{
	for (int i = 0; i < 2; i++) {
		fake_events = kinds[i];
		test_context("kind %d", (int)kinds[i]);
		an_event_masks_its_port();
	}
}

static void more_events_than_fit_hold_nobody_up(void)
{
	xenevtchn_handle *one = handle_open(), *other = handle_open();
	int port, joined, i;

	bound(one, other, &port, &joined);
	for (i = 0; i < 5000; i++)
		equal(xenevtchn_notify(one, (uint32_t)port), 0);
	do {
		equal(xenevtchn_pending(other), joined);
		equal(xenevtchn_unmask(other, (uint32_t)joined), 0);
	} while (is_ready(other));
	finish(one, other);
}

static void a_nonblocking_handle_says_so(void)
{
	xenevtchn_handle *one = handle_open();

	check(fcntl(xenevtchn_fd(one), F_SETFL, O_NONBLOCK) == 0);
	equal(xenevtchn_pending(one), -1);
	equal(errno, EAGAIN);
	finish(one, NULL);
}

/* ---- threads ---- */

#define NOTIFIERS 3
#define ROUNDS 2000

struct notifier {
	xenevtchn_handle *handle;
	int port, joined;
	unsigned int published; /* atomically */
	unsigned int seen;
	pthread_t thread;
};

static void *notify_often(void *argument)
{
	struct notifier *notifier = argument;
	unsigned int i;

	for (i = 1; i <= ROUNDS; i++) {
		__atomic_store_n(&notifier->published, i, __ATOMIC_RELEASE);
		equal(xenevtchn_notify(notifier->handle, (uint32_t)notifier->port), 0);
		if (i % 64 == 0)
			sched_yield();
	}
	return NULL;
}

/* What was published before an event is seen at it, or at a later one: none is lost. */
static void every_last_event_arrives(void)
{
	xenevtchn_handle *one = handle_open(), *other = handle_open();
	struct notifier notifiers[NOTIFIERS] = {0};
	int i, done = 0;

	for (i = 0; i < NOTIFIERS; i++) {
		notifiers[i].handle = one;
		bound(one, other, &notifiers[i].port, &notifiers[i].joined);
	}
	for (i = 0; i < NOTIFIERS; i++)
		thread_start(&notifiers[i].thread, notify_often, &notifiers[i]);
	while (done < NOTIFIERS) {
		int joined = xenevtchn_pending(other);

		for (i = 0; notifiers[i].joined != joined; i++)
			check(i < NOTIFIERS - 1);
		equal(xenevtchn_unmask(other, (uint32_t)joined), 0);
		if (notifiers[i].seen < ROUNDS) {
			notifiers[i].seen =
			    __atomic_load_n(&notifiers[i].published, __ATOMIC_ACQUIRE);
			done += notifiers[i].seen == ROUNDS;
		}
	}
	for (i = 0; i < NOTIFIERS; i++)
		thread_end(notifiers[i].thread);
	finish(one, other);
}

static void *bind_and_unbind(void *argument)
{
	xenevtchn_handle *handle = argument;
	int i;

	for (i = 0; i < 40; i++) {
		int port = xenevtchn_bind_unbound_port(handle, SELF);

		check(port > 0);
		equal(xenevtchn_notify(handle, (uint32_t)port), 0);
		equal(xenevtchn_unbind(handle, (uint32_t)port), 0);
	}
	return NULL;
}

static void ports_come_and_go_beside_a_wait(void)
{
	xenevtchn_handle *one = handle_open(), *other = handle_open();
	struct notifier notifier = {.handle = one};
	pthread_t binder;

	bound(one, other, &notifier.port, &notifier.joined);
	thread_start(&binder, bind_and_unbind, other);
	thread_start(&notifier.thread, notify_often, &notifier);
	while (notifier.seen < ROUNDS) {
		equal(xenevtchn_pending(other), notifier.joined);
		equal(xenevtchn_unmask(other, (uint32_t)notifier.joined), 0);
		notifier.seen = __atomic_load_n(&notifier.published, __ATOMIC_ACQUIRE);
	}
	thread_end(binder);
	thread_end(notifier.thread);
	finish(one, other);
}

/* ---- ends of waits ---- */

static void wait_for_a_signal(void *argument)
{
	signals_go(0);
	fails(xenevtchn_pending(argument), EINTR);
	equal(xenevtchn_close(argument), 0);
	fake_end();
}

static void a_signal_ends_a_wait_and_a_stop_does_not(void)
{
	xenevtchn_handle *one = handle_open();
	pid_t child = child_start(wait_for_a_signal, one);

	child_until_asleep(child);
	check(kill(child, SIGSTOP) == 0);
	check(waitpid(child, NULL, WUNTRACED) == child);
	check(kill(child, SIGCONT) == 0);
	child_until_asleep(child);
	check(kill(child, SIGUSR1) == 0);
	child_end(child);
	finish(one, NULL);
}

static void wait_for_an_event(void *argument)
{
	signals_go(SA_RESTART);
	check(xenevtchn_pending(argument) > 0);
	check(signals_came > 0);
	equal(xenevtchn_close(argument), 0);
	fake_end();
}

/* On Xen the wait is a read(2). */
static void a_signal_with_sa_restart_ends_nothing(void)
{
	xenevtchn_handle *one = handle_open(), *other = handle_open();
	int port, joined, round;
	pid_t child;

	bound(one, other, &port, &joined);
	child = child_start(wait_for_an_event, other);
	for (round = 0; round < 20; round++) {
		child_until_asleep(child);
		check(kill(child, SIGUSR1) == 0);
	}
	child_until_asleep(child);
	equal(xenevtchn_notify(one, (uint32_t)port), 0);
	child_end(child);
	finish(one, other);
}

static void a_port_nobody_can_notify_is_told_once(void)
{
	for (int i = 0; i < 2; i++) {
		xenevtchn_handle *one = handle_open(), *other = handle_open();
		int port, joined;

		fake_events = kinds[i];
		test_context("kind %d", (int)kinds[i]);
		bound(one, other, &port, &joined);
		fake_end();
		equal(xenevtchn_notify(one, (uint32_t)port), 0);
		equal(xenevtchn_close(one), 0);
		equal(xenevtchn_pending(other), joined);
		equal(xenevtchn_unmask(other, (uint32_t)joined), 0);
		if (kinds[i] == KVMCHAN_EVENTS_SOCKET && is_ready(other)) {
			/* The event came first, and then the end. */
			equal(xenevtchn_pending(other), joined);
			equal(xenevtchn_unmask(other, (uint32_t)joined), 0);
		}
		equal(is_ready(other), 0);
		equal(xenevtchn_notify(other, (uint32_t)joined), 0);
		equal(xenevtchn_unbind(other, (uint32_t)joined), 0);
		equal(xenevtchn_close(other), 0);
	}
}

static void a_closed_descriptor_is_an_error(void)
{
	xenevtchn_handle *one = handle_open();
	int fd = duplicate(xenevtchn_fd(one));

	check(close(xenevtchn_fd(one)) == 0);
	fails(xenevtchn_pending(one), EBADF);
	check(dup2(fd, xenevtchn_fd(one)) >= 0);
	check(close(fd) == 0);
	finish(one, NULL);
}

#define FDS 256

static int is_stream(int fd)
{
	int type;
	socklen_t size = sizeof(type);

	return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_STREAM;
}

/* As bound(), and what the second waits on. */
static int bound_by(xenevtchn_handle *offering, xenevtchn_handle *joining, int *port, int *joined)
{
	int before[FDS], fd, found = -1;

	*port = xenevtchn_bind_unbound_port(offering, SELF);
	check(*port > 0);
	for (fd = 0; fd < FDS; fd++)
		before[fd] = is_stream(fd);
	*joined = xenevtchn_bind_interdomain(joining, SELF, (uint32_t)*port);
	check(*joined > 0);
	for (fd = 0; fd < FDS; fd++) {
		if (is_stream(fd) && !before[fd]) {
			check(found < 0);
			found = fd;
		}
	}
	check(found >= 0);
	return found;
}

/* A program may close all that it did not open, and open others by the numbers. */
static void another_file_by_a_ports_number_is_left_alone(void)
{
	xenevtchn_handle *one = handle_open(), *other = handle_open();
	int port, joined, fd = bound_by(one, other, &port, &joined), pair[2];
	char byte = 0;

	check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0);
	check(write(pair[1], "x", 1) == 1);
	check(dup2(pair[0], fd) == fd);
	fails(xenevtchn_notify(other, (uint32_t)joined), EBADF);
	check(read(pair[1], &byte, 1) < 0 && errno == EAGAIN);
	check(fcntl(xenevtchn_fd(other), F_SETFL, O_NONBLOCK) == 0);
	fails(xenevtchn_pending(other), EAGAIN);
	equal(is_ready(other), 0);
	equal(xenevtchn_notify(one, (uint32_t)port), 0);
	equal(xenevtchn_unmask(other, (uint32_t)joined), 0);
	fails(xenevtchn_pending(other), EAGAIN);
	equal(xenevtchn_unbind(other, (uint32_t)joined), 0);
	check(fcntl(fd, F_GETFD) >= 0);
	check(read(fd, &byte, 1) == 1 && byte == 'x');
	check(close(fd) == 0 && close(pair[0]) == 0 && close(pair[1]) == 0);
	finish(one, other);
}

/* ---- handles ---- */

static void close_what_was_inherited(void *argument)
{
	equal(xenevtchn_close(argument), 0);
	fake_end();
}

static void a_childs_close_is_not_the_parents(void)
{
	xenevtchn_handle *one = handle_open(), *other = handle_open();
	int port, joined;

	bound(one, other, &port, &joined);
	child_end(child_start(close_what_was_inherited, other));
	equal(fake_connections(), 2);
	equal(xenevtchn_notify(one, (uint32_t)port), 0);
	equal(xenevtchn_pending(other), joined);
	finish(one, other);
}

/* Though the daemon, or a child, has its descriptor too. */
static void an_unbound_port_makes_nothing_ready(void)
{
	xenevtchn_handle *one = handle_open(), *other = handle_open();
	int port, joined;

	bound(one, other, &port, &joined);
	equal(xenevtchn_notify(one, (uint32_t)port), 0);
	equal(is_ready(other), 1);
	equal(xenevtchn_unbind(other, (uint32_t)joined), 0);
	equal(is_ready(other), 0);
	finish(one, other);
}

static void a_failure_leaves_nothing(void)
{
	xenevtchn_handle *one = handle_open();

	fake_requests_left = 0;
	fails(xenevtchn_bind_unbound_port(one, SELF), EIO);
	fails(xenevtchn_bind_interdomain(one, SELF, 2), EIO);
	fake_requests_left = -1;
	fails(xenevtchn_bind_interdomain(one, SELF, 2), ENOENT);
	fails(xenevtchn_bind_unbound_port(one, 99), EINVAL);
	finish(one, NULL);
}

static void what_is_not_bound_and_what_is_not_there(void)
{
	xenevtchn_handle *one = handle_open();

	fails(xenevtchn_notify(one, 5), ENOTCONN);
	fails(xenevtchn_unbind(one, 5), ENOTCONN);
	equal(xenevtchn_unmask(one, 5), 0);
	fails(xenevtchn_bind_virq(one, 0), ENOSYS);
	fails(xenevtchn_restrict(one, 1), ENOSYS);
	errno = 0;
	check(!xenevtchn_fdopen(NULL, 0, 0) && errno == ENOSYS);
	check(!xenevtchn_open(NULL, 2) && errno == EINVAL);
	equal(xenevtchn_close(NULL), 0);
	finish(one, NULL);
}

static void the_descriptor_is_closed_on_exec_unless_it_shall_not(void)
{
	xenevtchn_handle *one = handle_open(), *other = xenevtchn_open(NULL, 1);

	equal(fcntl(xenevtchn_fd(one), F_GETFD), FD_CLOEXEC);
	equal(fcntl(xenevtchn_fd(other), F_GETFD), 0);
	finish(one, other);
}

/* A daemon that was started anew counts from the beginning again. */
static void a_number_that_is_bound_already_is_not_bound_twice(void)
{
	xenevtchn_handle *one = handle_open();
	int port = xenevtchn_bind_unbound_port(one, SELF);

	check(port > 0);
	fake_end();
	fails(xenevtchn_bind_unbound_port(one, SELF), EBUSY);
	equal(fake_connections(), 0);
	fake_end();
	equal(xenevtchn_unbind(one, (uint32_t)port), 0);
	equal(xenevtchn_bind_unbound_port(one, SELF), port);
	equal(xenevtchn_unbind(one, (uint32_t)port), 0);
	finish(one, NULL);
}

/* ---- a vchan's own handle ---- */

static void a_vchans_handle_sends_and_takes_its_events(void)
{
	struct channel channel;
	xenevtchn_handle *server, *client;

	channel_open(&channel, 10, 11);
	take_events(channel.server);
	take_events(channel.client);
	server = channel.server->event;
	client = channel.client->event;
	equal(xenevtchn_fd(server), libxenvchan_fd_for_select(channel.server));
	equal(xenevtchn_notify(client, channel.client->event_port), 0);
	equal(xenevtchn_pending(server), channel.server->event_port);
	equal(xenevtchn_unmask(server, channel.server->event_port), 0);
	check(fcntl(xenevtchn_fd(server), F_SETFL, O_NONBLOCK) == 0);
	equal(xenevtchn_pending(server), -1);
	equal(errno, EAGAIN);
	fails(xenevtchn_notify(server, channel.server->event_port + 1), ENOTCONN);
	fails(xenevtchn_unbind(server, channel.server->event_port), EINVAL);
	fails(xenevtchn_bind_unbound_port(server, SELF), EINVAL);
	fails(xenevtchn_close(server), EINVAL);
	channel_orphan(&channel);
	end_close(&channel.client);
	check(fcntl(xenevtchn_fd(server), F_SETFL, 0) == 0);
	equal(xenevtchn_pending(server), channel.server->event_port);
	fails(xenevtchn_pending(server), EPIPE);
	channel_close(&channel);
}

static const struct test tests[] = {
    TEST(masks_on_each_kind_of_events),
    TEST(more_events_than_fit_hold_nobody_up),
    TEST(a_nonblocking_handle_says_so),
    TEST(every_last_event_arrives),
    TEST(ports_come_and_go_beside_a_wait),
    TEST(a_signal_ends_a_wait_and_a_stop_does_not),
    TEST(a_signal_with_sa_restart_ends_nothing),
    TEST(a_port_nobody_can_notify_is_told_once),
    TEST(a_closed_descriptor_is_an_error),
    TEST(another_file_by_a_ports_number_is_left_alone),
    TEST(a_childs_close_is_not_the_parents),
    TEST(an_unbound_port_makes_nothing_ready),
    TEST(a_failure_leaves_nothing),
    TEST(what_is_not_bound_and_what_is_not_there),
    TEST(the_descriptor_is_closed_on_exec_unless_it_shall_not),
    TEST(a_number_that_is_bound_already_is_not_bound_twice),
    TEST(a_vchans_handle_sends_and_takes_its_events),
};

TEST_MAIN(tests)
