/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Stand-in for libxenevtchn.so.1, so that a distribution's libxenvchan runs without Xen.
 *
 * A channel is two eventfds, both made by the end that offers the port. The other end fetches them
 * from that process with pidfd_getfd when it binds. From then on a notify is one write and a
 * pending is one read; the reference's speed is measured over these, so nothing else may happen
 * there. A handle has one port, as libxenvchan uses it.
 *
 * The file evtchn-<owner>-<port>-<peer> holds "pid, fd to wait on, fd to notify" while the port
 * exists. The end that binds to it keeps a lock on it: a port has one peer at a time.
 */
#define _GNU_SOURCE 1

#include "standin.h"

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xenevtchn.h>

struct xenevtchn_handle {
	int wait_fd;
	int notify_fd;
	int lock_fd;
	evtchn_port_t port;
	char path[PATH_MAX];
};

xenevtchn_handle *xenevtchn_open(struct xentoollog_logger *logger, unsigned int flags)
{
	xenevtchn_handle *xce;

	(void)logger;
	(void)flags;
	if (!standin_dir())
		return NULL;
	xce = calloc(1, sizeof(*xce));
	if (!xce)
		return NULL;
	xce->wait_fd = xce->notify_fd = xce->lock_fd = -1;
	return xce;
}

static void close_if(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

int xenevtchn_unbind(xenevtchn_handle *xce, evtchn_port_t port)
{
	if (!port || port != xce->port) {
		errno = ENOTCONN;
		return -1;
	}
	unlink(xce->path);
	close_if(&xce->lock_fd);
	xce->port = 0;
	return 0;
}

int xenevtchn_close(xenevtchn_handle *xce)
{
	if (!xce)
		return 0;
	if (xce->port)
		xenevtchn_unbind(xce, xce->port);
	close_if(&xce->wait_fd);
	close_if(&xce->notify_fd);
	free(xce);
	return 0;
}

int xenevtchn_fd(xenevtchn_handle *xce) { return xce->wait_fd; }

/* Gives the handle a port of its own, with the eventfds that are already in it. */
static int publish(xenevtchn_handle *xce, uint32_t domid)
{
	int fd = standin_claim(xce->path, "evtchn", domid, &xce->port);

	if (fd < 0) {
		xce->port = 0;
		return -1;
	}
	dprintf(fd, "%d %d %d\n", (int)getpid(), xce->wait_fd, xce->notify_fd);
	close(fd);
	return (int)xce->port;
}

xenevtchn_port_or_error_t xenevtchn_bind_unbound_port(xenevtchn_handle *xce, uint32_t domid)
{
	if (xce->port) {
		errno = EBUSY;
		return -1;
	}
	/* Where the kernel lets only ancestors fetch our fds, this lets the peer do so too. */
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
	xce->wait_fd = eventfd(0, EFD_CLOEXEC);
	xce->notify_fd = eventfd(0, EFD_CLOEXEC);
	if (xce->wait_fd < 0 || xce->notify_fd < 0 || publish(xce, domid) < 0) {
		close_if(&xce->wait_fd);
		close_if(&xce->notify_fd);
		return -1;
	}
	return (int)xce->port;
}

static int fetch(int pid, int fd)
{
	int pidfd, got;

	if (pid == getpid())
		return fcntl(fd, F_DUPFD_CLOEXEC, 0);
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0)
		return -1;
	got = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	close(pidfd);
	return got;
}

static bool fetch_pair(xenevtchn_handle *xce)
{
	char text[64] = "";
	int pid, theirs, ours;

	if (read(xce->lock_fd, text, sizeof(text) - 1) <= 0 ||
	    sscanf(text, "%d %d %d", &pid, &theirs, &ours) != 3) {
		errno = EINVAL;
		return false;
	}
	xce->wait_fd = fetch(pid, ours);
	xce->notify_fd = fetch(pid, theirs);
	return xce->wait_fd >= 0 && xce->notify_fd >= 0;
}

/* A new binding knows nothing of events sent to an earlier peer, and starts with one pending. */
static bool reset_pending(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	uint64_t count = 1;

	if (poll(&p, 1, 0) == 1 && read(fd, &count, sizeof(count)) != sizeof(count))
		return false;
	count = 1;
	return write(fd, &count, sizeof(count)) == sizeof(count);
}

xenevtchn_port_or_error_t xenevtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domid,
						     evtchn_port_t remote_port)
{
	char path[PATH_MAX];

	if (xce->port) {
		errno = EBUSY;
		return -1;
	}
	if (standin_name(path, "evtchn", domid, remote_port, standin_domid()))
		return -1;
	xce->lock_fd = open(path, O_RDWR | O_CLOEXEC);
	if (xce->lock_fd < 0 || flock(xce->lock_fd, LOCK_EX | LOCK_NB)) {
		close_if(&xce->lock_fd);
		errno = EINVAL; /* the hypervisor's answer to a port that is not on offer */
		return -1;
	}
	if (!fetch_pair(xce) || !reset_pending(xce->wait_fd) || publish(xce, domid) < 0) {
		close_if(&xce->wait_fd);
		close_if(&xce->notify_fd);
		close_if(&xce->lock_fd);
		return -1;
	}
	return (int)xce->port;
}

int xenevtchn_notify(xenevtchn_handle *xce, evtchn_port_t port)
{
	const uint64_t one = 1;

	if (port != xce->port) {
		errno = EINVAL;
		return -1;
	}
	return write(xce->notify_fd, &one, sizeof(one)) == sizeof(one) ? 0 : -1;
}

xenevtchn_port_or_error_t xenevtchn_pending(xenevtchn_handle *xce)
{
	uint64_t count;

	if (read(xce->wait_fd, &count, sizeof(count)) != sizeof(count))
		return -1;
	return (int)xce->port;
}

int xenevtchn_unmask(xenevtchn_handle *xce, evtchn_port_t port)
{
	(void)xce;
	(void)port;
	return 0;
}
