/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "dataplane/event.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dataplane/error.h"
#include "dataplane/page.h"

/* BAR 0 of an ivshmem device: a store to this register interrupts a peer. */
#define DOORBELL_REGISTER 12

/* ---- ownership: a program may close what it did not open, and reuse the numbers ---- */

int event_steal_control(struct event *event) { return connection_steal(&event->control); }

/*
 * fstat() shows all eventfds as one inode, so it can not tell ours from a program's own. But a file
 * keeps the number of the signal that its owner gets when it is ready. Without an owner the number
 * has no effect, nobody sets it by chance, and everybody who shares the file sees it.
 */
#define MARK 61

int event_mark(int fd)
{
	if (fcntl(fd, F_SETSIG, MARK) < 0)
		return fail(errno, "a descriptor for events is unusable");
	return 0;
}

bool event_is_marked(int fd) { return fcntl(fd, F_GETSIG) == MARK; }

/* ---- from grant to end ---- */

void event_take_over(struct event *event, const struct kvmchan_grant *grant)
{
	*event = (struct event){
	    .handle = {HANDLE_VCHAN},
	    .port = grant_port(grant),
	    .fd = grant->event_fd,
	    .kind = KVMCHAN_EVENTS_SOCKET, /* until it is prepared */
	    .notify_fd = grant->notify_fd,
	    .control = connection_take(grant->control_fd),
	};
}

static int map_doorbell(struct event *event, const struct kvmchan_grant *grant)
{
	void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, grant->region_fd,
			  (off_t)grant->doorbell);

	if (page == MAP_FAILED)
		return fail(errno, "the device's doorbell could not be mapped");
	event->doorbell = page;
	event->doorbell_value = grant->doorbell_value;
	return 0;
}

int event_prepare(struct event *event, const struct kvmchan_grant *grant)
{
	if (grant->events == KVMCHAN_EVENTS_SOCKET)
		return 0;
	if (event_mark(event->fd) < 0)
		return -1;
	if (grant->events == KVMCHAN_EVENTS_EVENTFD && event_mark(event->notify_fd) < 0)
		return -1;
	if (grant->events == KVMCHAN_EVENTS_DOORBELL && map_doorbell(event, grant) < 0)
		return -1;
	event->kind = grant->events;
	return 0;
}

static void end_descriptor(const struct event *event, int fd)
{
	if (fd >= 0 && (event->kind == KVMCHAN_EVENTS_SOCKET || event_is_marked(fd)))
		close(fd);
}

void event_end(struct event *event)
{
	connection_close(&event->control);
	end_descriptor(event, event->fd);
	end_descriptor(event, event->notify_fd);
	if (event->doorbell)
		munmap(event->doorbell, PAGE);
}

/* ---- sending ---- */

/* Interrupt the peer, once it can see what we wrote to the ring and the page. */
static void ring_doorbell(const struct event *event)
{
	uint8_t *doorbell = (uint8_t *)event->doorbell + DOORBELL_REGISTER;

	__sync_synchronize();
	*(volatile uint32_t *)(void *)doorbell = htole32(event->doorbell_value);
}

void event_send(const struct event *event)
{
	int error = errno;

	/* A failure needs no handling: the peer's queue or counter is full, so it has events; or
	 * the peer is gone. */
	switch (event->kind) {
	case KVMCHAN_EVENTS_SOCKET:
		(void)send(event->fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
		break;
	case KVMCHAN_EVENTS_EVENTFD:
		if (event_is_marked(event->notify_fd))
			(void)eventfd_write(event->notify_fd, 1);
		break;
	case KVMCHAN_EVENTS_DOORBELL:
		ring_doorbell(event);
		break;
	}
	errno = error;
}

/* ---- signals ---- */

/* Return whether an instruction of the program's own causes the signal, so that it can not come in
 * a wait. Whoever looks for such errors handles these signals, and without SA_RESTART. */
static bool is_fault(int number)
{
	return number == SIGSEGV || number == SIGBUS || number == SIGFPE || number == SIGILL ||
	       number == SIGTRAP || number == SIGABRT || number == SIGSYS;
}

static bool restarts(const struct sigaction *action)
{
	/* SA_RESETHAND leaves the default behind. */
	bool handled = (action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN) ||
		       action->sa_flags & SA_RESETHAND;

	return !handled || action->sa_flags & SA_RESTART;
}

/* We can not know which signal it was, so the wait goes on if no handled signal would end it. */
bool event_wait_goes_on(void)
{
	struct sigaction action;
	int number, error = errno;
	bool result = true;

	/* sigaction() refuses the C library's own signals. */
	for (number = 1; number < NSIG && result; number++)
		result =
		    is_fault(number) || sigaction(number, NULL, &action) < 0 || restarts(&action);
	errno = error;
	return result;
}

/* ---- taking: from a socket ---- */

static enum event_result socket_take(int fd, int flags)
{
	char events[512];
	ssize_t count = recv(fd, events, sizeof(events), flags);

	if (count > 0)
		return EVENT_TAKEN;
	if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return EVENT_NONE;
	if (count < 0 && errno == EINTR)
		return EVENT_INTERRUPTED;
	return EVENT_LOST;
}

static enum event_result socket_wait(int fd)
{
	for (;;) {
		enum event_result result = socket_take(fd, 0);
		struct pollfd readable = {.fd = fd, .events = POLLIN};

		if (result != EVENT_NONE)
			return result;
		/* The program has made the descriptor non-blocking. */
		if (poll(&readable, 1, -1) < 0 && (errno != EINTR || !event_wait_goes_on()))
			return errno == EINTR ? EVENT_INTERRUPTED : EVENT_LOST;
	}
}

/* ---- taking: from an eventfd ---- */

/* Return whether poll()'s answer about the connection means that the daemon is gone. Forget the
 * number if it is no longer the connection. */
static bool control_is_lost(struct event *event, short revents)
{
	if (!revents)
		return false;
	if (connection_is_there(&event->control))
		return revents & (POLLHUP | POLLRDHUP | POLLERR);
	event->control.fd = -1;
	return false;
}

/* Take events. Returns EVENT_NONE after @timeout, and sometimes before. */
static enum event_result eventfd_take(struct event *event, int timeout)
{
	struct pollfd polled[] = {
	    {.fd = event->fd, .events = POLLIN},
	    {.fd = event->control.fd, .events = POLLRDHUP},
	};
	eventfd_t events;
	bool lost;

	/* Look before the wait, which could last for ever, and after it, since it may have lasted
	 * long. */
	if (!event_is_marked(event->fd))
		return EVENT_LOST;
	if (poll(polled, 2, timeout) < 0)
		return errno == EINTR ? EVENT_INTERRUPTED : EVENT_LOST;
	lost = control_is_lost(event, polled[1].revents);
	if (polled[0].revents & POLLIN && event_is_marked(event->fd) &&
	    eventfd_read(event->fd, &events) == 0)
		return lost ? EVENT_LAST : EVENT_TAKEN;
	return lost ? EVENT_LOST : EVENT_NONE;
}

static enum event_result eventfd_wait(struct event *event)
{
	enum event_result result;

	do
		result = eventfd_take(event, -1);
	while (result == EVENT_NONE || (result == EVENT_INTERRUPTED && event_wait_goes_on()));
	return result;
}

/* ---- taking ---- */

enum event_result event_try(struct event *event)
{
	return event->kind == KVMCHAN_EVENTS_SOCKET ? socket_take(event->fd, MSG_DONTWAIT)
						    : eventfd_take(event, 0);
}

enum event_result event_wait(struct event *event)
{
	return event->kind == KVMCHAN_EVENTS_SOCKET ? socket_wait(event->fd) : eventfd_wait(event);
}
