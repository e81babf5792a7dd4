/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "dataplane/event.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dataplane/error.h"
#include "ring/copy.h"
#include "ring/page.h"

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
	    .wake_fd = -1,
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
	copy_choose(); /* we are in a guest */
	return 0;
}

int event_prepare(struct event *event, const struct kvmchan_grant *grant)
{
	if (grant->events == KVMCHAN_EVENTS_SOCKET)
		return 0;
	if (event_mark(event->fd) < 0)
		return -1;
	if ((events_have_doorbell(grant->events) ? map_doorbell(event, grant)
						 : event_mark(event->notify_fd)) < 0)
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
	if (event_is_marked(event->wake_fd))
		close(event->wake_fd);
	event->fd = event->notify_fd = event->wake_fd = -1;
	if (event->doorbell)
		munmap(event->doorbell, PAGE);
	event->doorbell = NULL;
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
	int error = errno, cancel;

	/* send() and write() are cancellation points: the request is taken, and must be met. */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);

	/* A failure needs no handling: the peer's queue or counter is full, so it has events; or
	 * the peer is gone. */
	switch (event->kind) {
	case KVMCHAN_EVENTS_SOCKET:
		(void)send(event->fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
		break;
	case KVMCHAN_EVENTS_EVENTFD:
	case KVMCHAN_EVENTS_SHARED_EVENTFD:
		if (event_is_marked(event->notify_fd))
			(void)eventfd_write(event->notify_fd, 1);
		break;
	case KVMCHAN_EVENTS_DOORBELL:
	case KVMCHAN_EVENTS_SHARED_DOORBELL:
		if (event->doorbell)
			ring_doorbell(event);
		break;
	}
	pthread_setcancelstate(cancel, NULL);
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

/* Sleep until there is something to take. Returns EVENT_NONE to take it, or at the deadline. */
static enum event_result poll_until(struct pollfd *polled, nfds_t count, uint64_t deadline)
{
	uint64_t now, left = 0;
	int ready;

	if (deadline && deadline != NEVER) {
		now = time_now();
		left = now < deadline ? deadline - now : 0;
	}
	if (left) {
		struct timespec timeout = {
		    .tv_sec = (time_t)(left / 1000000000u),
		    .tv_nsec = (long)(left % 1000000000u),
		};

		ready = ppoll(polled, count, &timeout, NULL);
	} else {
		ready = poll(polled, count, deadline == NEVER ? -1 : 0);
	}
	if (ready >= 0)
		return EVENT_NONE;
	return errno == EINTR ? EVENT_INTERRUPTED : EVENT_LOST;
}

static enum event_result socket_wait(const struct event *event, uint64_t deadline)
{
	/* One system call, where one will do. */
	int flags = deadline == NEVER && event->wake_fd < 0 ? 0 : MSG_DONTWAIT;

	for (;;) {
		enum event_result result = socket_take(event->fd, flags);
		struct pollfd polled[] = {
		    {.fd = event->fd, .events = POLLIN},
		    {.fd = event->wake_fd, .events = POLLIN},
		};

		if (result != EVENT_NONE || has_passed(deadline))
			return result;
		/* Also where the program has made the descriptor non-blocking. */
		result = poll_until(polled, 2, deadline);
		if (result == EVENT_LOST || (result == EVENT_NONE && polled[1].revents))
			return EVENT_LOST;
		if (result == EVENT_INTERRUPTED && !event_wait_goes_on())
			return result;
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

/* Take what is pending. Returns whether anything was. */
static bool take_pending(const struct event *event)
{
	struct epoll_event ready;
	eventfd_t events;

	return events_are_shared(event->kind) ? epoll_wait(event->fd, &ready, 1, 0) == 1
					      : eventfd_read(event->fd, &events) == 0;
}

/* Take events. Returns EVENT_NONE at the deadline, and sometimes before. */
static enum event_result eventfd_take(struct event *event, uint64_t deadline)
{
	struct pollfd polled[] = {
	    {.fd = event->fd, .events = POLLIN},
	    {.fd = event->control.fd, .events = POLLRDHUP | (event->move ? POLLIN : 0)},
	    {.fd = event->wake_fd, .events = POLLIN},
	};
	enum event_result result;
	bool lost;

	/* Look before the wait, which could last for ever, and after it, since it may have lasted
	 * long. */
	if (!event_is_marked(event->fd))
		return EVENT_LOST;
	result = poll_until(polled, 3, deadline);
	if (result != EVENT_NONE)
		return result;
	if (polled[2].revents)
		return EVENT_LOST;
	lost = control_is_lost(event, polled[1].revents);
	if (event->move && event->control.fd >= 0 && polled[1].revents & POLLIN) {
		result = event->move(event);
		if (result != EVENT_NONE)
			return result;
	}
	if (polled[0].revents & POLLIN && event_is_marked(event->fd) && take_pending(event))
		return lost ? EVENT_LAST : EVENT_TAKEN;
	return lost ? EVENT_LOST : EVENT_NONE;
}

static enum event_result eventfd_wait(struct event *event, uint64_t deadline)
{
	enum event_result result;

	do
		result = eventfd_take(event, deadline);
	while ((result == EVENT_NONE && !has_passed(deadline)) ||
	       (result == EVENT_INTERRUPTED && event_wait_goes_on()));
	return result;
}

/* ---- taking ---- */

static bool is_socket(const struct event *event) { return event->kind == KVMCHAN_EVENTS_SOCKET; }

static bool took(enum event_result result)
{
	return result == EVENT_TAKEN || result == EVENT_LAST || result == EVENT_LOST;
}

enum event_result event_try(struct event *event)
{
	enum event_result result;
	int cancel;

	if (!waiters_lead(&event->waiters))
		return EVENT_NONE;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel); /* it does not wait */
	result = is_socket(event) ? socket_take(event->fd, MSG_DONTWAIT) : eventfd_take(event, 0);
	waiters_leave(&event->waiters, took(result));
	pthread_setcancelstate(cancel, NULL);
	return result;
}

/* A cancelled thread's part. */
static void leave(void *waiters) { waiters_leave(waiters, false); }

/* Wait on the descriptor, unless the event came before this thread was the first. */
static enum event_result wait_as_first(struct event *event, uint32_t count, uint64_t deadline)
{
	if (event_count(event) != count)
		return EVENT_TAKEN;
	return is_socket(event) ? socket_wait(event, deadline) : eventfd_wait(event, deadline);
}

static enum event_result lead(struct event *event, uint32_t count, uint64_t deadline)
{
	enum event_result result;

	pthread_cleanup_push(leave, &event->waiters);
	result = wait_as_first(event, count, deadline);
	pthread_cleanup_pop(0);
	waiters_leave(&event->waiters, took(result));
	return result;
}

enum event_result event_wait(struct event *event, uint32_t count, uint64_t deadline)
{
	for (;;) {
		uint32_t changes = atomic_load(&event->waiters.changes);

		if (event_count(event) != count)
			return EVENT_TAKEN;
		if (waiters_lead(&event->waiters))
			return lead(event, count, deadline);
		switch (waiters_follow(&event->waiters, changes, deadline)) {
		case WAITERS_LOOK:
			break;
		case WAITERS_INTERRUPTED:
			if (!event_wait_goes_on())
				return EVENT_INTERRUPTED;
			break;
		case WAITERS_LATE:
			return EVENT_NONE;
		}
	}
}

int event_make_wakeable(struct event *event)
{
	int fd;

	if (event->wake_fd >= 0)
		return 0;
	fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fd < 0)
		return fail(errno, "a descriptor that ends waits could not be made");
	if (event_mark(fd) < 0) {
		close(fd);
		return -1;
	}
	event->wake_fd = fd;
	return 0;
}

void event_shut(struct event *event)
{
	if (event_is_marked(event->wake_fd))
		(void)eventfd_write(event->wake_fd, 1);
	waiters_stir(&event->waiters);
}
