/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libxenevtchn: event channels from the daemon, each the same as a vchan's own (event.h).
 *
 * A handle is an epoll descriptor over its ports' descriptors. A port that pending() has returned
 * is masked: it is out of the set until unmask() (EPOLLONESHOT), and events that come meanwhile
 * stay in its socket. Only bind, unbind and close speak with the daemon.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <search.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "dataplane/error.h"
#include "dataplane/event.h"
#include "dataplane/handle.h"
#include "setup/daemon.h"
#include "xen/libxenevtchn.h"

#define NO_CLOEXEC 1u /* of xenevtchn_open()'s flags */

struct port {
	uint32_t number;
	struct event event;
	struct connection socket; /* event.fd if that is a socket, to recognize it again */
};

struct ports {
	struct xenevtchn_handle handle;
	struct xentoollog_logger *logger;
	int epoll_fd;
	pid_t process; /* the one that opened it; a child of it may only close it */
	pthread_mutex_t lock;
	void *by_number; /* a search tree of struct port */
};

static bool is_vchan(const xenevtchn_handle *xce) { return xce->kind == HANDLE_VCHAN; }

static struct event *vchan_event(xenevtchn_handle *xce) { return (struct event *)xce; }

static struct ports *ports_of(xenevtchn_handle *xce) { return (struct ports *)xce; }

static struct xentoollog_logger *logger_of(xenevtchn_handle *xce)
{
	return is_vchan(xce) ? NULL : ports_of(xce)->logger;
}

static int fail_vchan(void)
{
	return fail(EINVAL, "this is a vchan's own event channel: close the vchan instead");
}

static int fail_port(uint32_t port)
{
	return fail(ENOTCONN, "event channel %u is not bound by this handle", port);
}

/* ---- ports of a handle ---- */

static int compare(const void *a, const void *b)
{
	uint32_t left = ((const struct port *)a)->number, right = ((const struct port *)b)->number;

	return (left > right) - (left < right);
}

static struct port *find(struct ports *ports, uint32_t number)
{
	struct port wanted = {.number = number};
	void *found = tfind(&wanted, &ports->by_number, compare);

	return found ? *(struct port **)found : NULL;
}

/* Return whether the port's descriptor is still ours: a program may close what it did not open, and
 * reuse the number. */
static bool is_there(const struct port *port)
{
	return port->socket.cookie ? connection_is_there(&port->socket)
				   : event_is_marked(port->event.fd);
}

static int watch(struct ports *ports, int operation, const struct port *port)
{
	struct epoll_event wanted = {.events = EPOLLIN | EPOLLONESHOT, .data.u32 = port->number};

	return epoll_ctl(ports->epoll_fd, operation, port->event.fd, &wanted);
}

/* Take a port out of the set. To close it is not enough, because the daemon has the file too, and a
 * child may have it. */
static void unwatch(struct ports *ports, const struct port *port)
{
	(void)epoll_ctl(ports->epoll_fd, EPOLL_CTL_DEL, port->event.fd, NULL);
}

static int insert(struct ports *ports, struct port *port)
{
	void *found = tsearch(port, &ports->by_number, compare);

	if (!found)
		return fail(ENOMEM, "no memory for an event channel");
	if (*(struct port **)found != port)
		return fail(EBUSY,
			    "event channel %u is bound already, from before the daemon was started "
			    "again: unbind it first",
			    port->number);
	if (watch(ports, EPOLL_CTL_ADD, port) == 0)
		return 0;
	tdelete(port, &ports->by_number, compare);
	return fail(errno, "epoll refuses event channel %u", port->number);
}

static int add(struct ports *ports, struct port *port)
{
	int result;

	pthread_mutex_lock(&ports->lock);
	result = insert(ports, port);
	pthread_mutex_unlock(&ports->lock);
	return result;
}

/* Free a port without telling the daemon: in a child, the parent's event channel stays open. */
static void port_leave(void *left)
{
	struct port *port = left;

	if (port->socket.cookie && !is_there(port))
		port->event.fd = -1;
	event_end(&port->event);
	free(port);
}

static void port_close(void *port)
{
	daemon_close(&((struct port *)port)->event.control);
	port_leave(port);
}

/* ---- handles ---- */

xenevtchn_handle *xenevtchn_open(struct xentoollog_logger *logger, unsigned int flags)
{
	struct ports *ports;

	if (flags & ~NO_CLOEXEC) {
		fail(EINVAL, "flags %#x: only XENEVTCHN_NO_CLOEXEC is one", flags);
		goto failed;
	}
	ports = calloc(1, sizeof(*ports));
	if (!ports) {
		fail(ENOMEM, "no memory for a handle");
		goto failed;
	}
	ports->handle.kind = HANDLE_PORTS;
	ports->logger = logger;
	ports->process = getpid();
	pthread_mutex_init(&ports->lock, NULL);
	ports->epoll_fd = epoll_create1(flags & NO_CLOEXEC ? 0 : EPOLL_CLOEXEC);
	if (ports->epoll_fd >= 0)
		return &ports->handle;
	fail(errno, "no descriptor for a handle");
	free(ports);
failed:
	error_log(logger, "xenevtchn_open");
	return NULL;
}

xenevtchn_handle *xenevtchn_fdopen(struct xentoollog_logger *logger, int fd, unsigned int flags)
{
	(void)fd;
	(void)flags;
	FAIL_UNSUPPORTED(logger, "event channels don't outlive an exec, open a new handle");
	return NULL;
}

int xenevtchn_close(xenevtchn_handle *xce)
{
	struct ports *ports;

	if (!xce)
		return 0;
	if (is_vchan(xce))
		return fail_vchan();
	ports = ports_of(xce);
	tdestroy(ports->by_number, ports->process == getpid() ? port_close : port_leave);
	close(ports->epoll_fd);
	pthread_mutex_destroy(&ports->lock);
	free(ports);
	return 0;
}

int xenevtchn_fd(xenevtchn_handle *xce)
{
	return is_vchan(xce) ? vchan_event(xce)->fd : ports_of(xce)->epoll_fd;
}

int xenevtchn_restrict(xenevtchn_handle *xce, uint16_t domid)
{
	(void)domid;
	return FAIL_UNSUPPORTED(logger_of(xce), "a process could open new handles, so it would "
						"protect nothing");
}

/* ---- binding ---- */

static int port_prepare(struct port *port, const struct kvmchan_grant *grant)
{
	int result;

	event_take_over(&port->event, grant);
	port->socket = connection_take(grant->event_fd);
	port->number = grant_port(grant);
	result = event_prepare(&port->event, grant);
	/* An event channel does not need the memory that the daemon keeps beside it. */
	close(grant->region_fd);
	return result;
}

static int open_port(xenevtchn_handle *xce, struct kvmchan_request *request)
{
	struct kvmchan_grant grant;
	struct port *port;
	int error;

	if (is_vchan(xce))
		return fail_vchan();
	request->path = "";
	request->peer = daemon_domain((uint32_t)request->peer);
	if (request->peer < 0)
		return -1;
	port = calloc(1, sizeof(*port));
	if (!port)
		return fail(ENOMEM, "no memory for an event channel");
	if (daemon_open(request, &grant) < 0) {
		free(port);
		return -1;
	}
	if (port_prepare(port, &grant) == 0 && add(ports_of(xce), port) == 0)
		return (int)port->number;
	error = errno;
	port_close(port);
	errno = error;
	return -1;
}

int xenevtchn_bind_unbound_port(xenevtchn_handle *xce, uint32_t domid)
{
	struct kvmchan_request request = {.what = KVMCHAN_BIND, .peer = (int)domid};

	return open_port(xce, &request);
}

int xenevtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domid, uint32_t remote_port)
{
	struct kvmchan_request request = {
	    .what = KVMCHAN_JOIN, .peer = (int)domid, .port = remote_port};

	return open_port(xce, &request);
}

int xenevtchn_bind_virq(xenevtchn_handle *xce, unsigned int virq)
{
	(void)virq;
	return FAIL_UNSUPPORTED(logger_of(xce), "there are no VIRQs");
}

int xenevtchn_unbind(xenevtchn_handle *xce, uint32_t number)
{
	struct ports *ports = ports_of(xce);
	struct port *port;

	if (is_vchan(xce))
		return fail_vchan();
	pthread_mutex_lock(&ports->lock);
	port = find(ports, number);
	if (port) {
		unwatch(ports, port);
		tdelete(port, &ports->by_number, compare);
	}
	pthread_mutex_unlock(&ports->lock);
	if (!port)
		return fail_port(number);
	port_close(port);
	return 0;
}

/* ---- events ---- */

int xenevtchn_notify(xenevtchn_handle *xce, uint32_t number)
{
	struct ports *ports = ports_of(xce);
	struct port *port;
	int result = 0;

	if (is_vchan(xce)) {
		if (number != vchan_event(xce)->port)
			return fail_port(number);
		event_send(vchan_event(xce));
		return 0;
	}
	pthread_mutex_lock(&ports->lock);
	port = find(ports, number);
	if (!port)
		result = fail_port(number);
	else if (!is_there(port))
		result =
		    fail(EBADF, "the program has closed event channel %u's descriptor", number);
	else
		event_send(&port->event);
	pthread_mutex_unlock(&ports->lock);
	return result;
}

/* Return a port with an event, which is masked from now on; 0 if there is none. */
static int take(struct ports *ports)
{
	struct epoll_event ready;
	struct port *port;
	int count;

	while ((count = epoll_wait(ports->epoll_fd, &ready, 1, 0)) == 1) {
		port = find(ports, ready.data.u32);
		if (!port || !is_there(port))
			continue;
		switch (event_try(&port->event)) {
		case EVENT_TAKEN:
			return (int)port->number;
		case EVENT_LAST:
		case EVENT_LOST:
			/* Nobody is left who could send one. Return the port once more, so that
			 * whoever waits looks, and then never again: unmask() does nothing for a
			 * port that is out of the set. */
			unwatch(ports, port);
			return (int)port->number;
		case EVENT_NONE:
		case EVENT_INTERRUPTED:
			(void)watch(ports, EPOLL_CTL_MOD, port);
			break;
		}
	}
	return count < 0 ? fail(errno, "the program has closed the handle's descriptor") : 0;
}

static bool is_nonblocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags >= 0 && flags & O_NONBLOCK;
}

static int fail_nothing(void)
{
	errno = EAGAIN;
	return -1;
}

static int fail_wait(int error)
{
	return fail(error, "the wait for an event has ended without one");
}

/* Take a vchan's events. Its port is never masked: the ring says when events are wanted. */
static int vchan_pending(struct event *event)
{
	switch (is_nonblocking(event->fd) ? event_try(event)
					  : event_wait(event, event_count(event), NEVER)) {
	case EVENT_TAKEN:
	case EVENT_LAST:
		return (int)event->port;
	case EVENT_NONE:
		return fail_nothing();
	case EVENT_INTERRUPTED:
		return fail_wait(EINTR);
	case EVENT_LOST:
		break;
	}
	return fail(EPIPE, "the vchan's other end and the daemon are gone");
}

int xenevtchn_pending(xenevtchn_handle *xce)
{
	struct ports *ports = ports_of(xce);
	struct pollfd polled;
	int number;

	if (is_vchan(xce))
		return vchan_pending(vchan_event(xce));
	for (;;) {
		pthread_mutex_lock(&ports->lock);
		number = take(ports);
		pthread_mutex_unlock(&ports->lock);
		if (number)
			return number;
		if (is_nonblocking(ports->epoll_fd))
			return fail_nothing();
		/* Unlike epoll_wait(), this goes on after a stop and SIGCONT. */
		polled = (struct pollfd){.fd = ports->epoll_fd, .events = POLLIN};
		if (poll(&polled, 1, -1) < 0 && (errno != EINTR || !event_wait_goes_on()))
			return fail_wait(errno);
	}
}

int xenevtchn_unmask(xenevtchn_handle *xce, uint32_t number)
{
	struct ports *ports = ports_of(xce);
	struct port *port;

	if (is_vchan(xce))
		return 0;
	/* As on Linux, a port that does not exist is no error. */
	pthread_mutex_lock(&ports->lock);
	port = find(ports, number);
	if (port)
		(void)watch(ports, EPOLL_CTL_MOD, port);
	pthread_mutex_unlock(&ports->lock);
	return 0;
}
