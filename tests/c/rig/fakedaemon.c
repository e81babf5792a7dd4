/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fakedaemon.h"

#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dataplane/error.h"
#include "harness.h"
#include "setup/daemon.h"

#define MOST 128
#define FIRST_REF 1000u

enum kvmchan_events fake_events;
int fake_requests_left = -1;
struct fake_notice fake_notice;

/* An event channel: by end, the server's first, what it waits on. The channel's number is its place
 * here, from 1 on. */
static struct {
	enum kvmchan_events kind;
	int fd[2];
} channels[MOST];

static struct {
	uint32_t ref, pages;
	int fd, writable;
} shares[MOST];

/* The daemon's ends of connections. */
static int connections[MOST * 8];
static int channel_count, share_count, connection_count;
static uint32_t next_ref = FIRST_REF;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int is_met(void)
{
	if (fake_requests_left == 0)
		return fail(EIO, "this request is to fail");
	if (fake_requests_left > 0)
		fake_requests_left--;
	return 0;
}

static int connection_make(void)
{
	int ends[2];

	check(connection_count < MOST * 8);
	check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
	connections[connection_count++] = ends[0];
	return ends[1];
}

int fake_connections(void)
{
	int i, found = 0;
	char byte;

	pthread_mutex_lock(&lock);
	for (i = 0; i < connection_count; i++)
		found += recv(connections[i], &byte, 1, MSG_DONTWAIT) < 0;
	pthread_mutex_unlock(&lock);
	return found;
}

static int memory_make(uint32_t pages)
{
	int fd = memfd_create("fake", MFD_CLOEXEC);

	check(fd >= 0);
	check(ftruncate(fd, (off_t)pages * PAGE) == 0);
	return fd;
}

/* ---- event channels ---- */

static int event_channel_make(void)
{
	int *fd = channels[channel_count].fd;

	check(channel_count < MOST);
	channels[channel_count].kind = fake_events;
	if (fake_events == KVMCHAN_EVENTS_SOCKET) {
		check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) == 0);
	} else {
		fd[0] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		fd[1] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		check(fd[0] >= 0 && fd[1] >= 0);
	}
	return ++channel_count;
}

/* As the daemon does: one is pending where a port is joined. */
static void make_pending(int number, int side)
{
	uint64_t one = 1;

	if (channels[number].kind == KVMCHAN_EVENTS_SOCKET)
		check(send(channels[number].fd[!side], "", 1, 0) == 1);
	else
		check(write(channels[number].fd[side], &one, sizeof(one)) == sizeof(one));
}

static int open_port(const struct kvmchan_request *request, struct kvmchan_grant *grant)
{
	int side = request->what == KVMCHAN_JOIN, number;

	if (is_met() < 0)
		return -1;
	if (side &&
	    (request->port % 2 || !request->port || request->port / 2 > (uint64_t)channel_count))
		return fail(ENOENT, "there is no such port");
	number = side ? (int)request->port / 2 : event_channel_make();
	grant->region_fd = memory_make(1);
	grant->event_fd = duplicate(channels[number - 1].fd[side]);
	grant->events = channels[number - 1].kind;
	grant->notify_fd =
	    grant->events == KVMCHAN_EVENTS_SOCKET ? -1 : duplicate(channels[number - 1].fd[!side]);
	grant->control_fd = connection_make();
	grant->channel = (uint64_t)number;
	grant->is_server = !side;
	if (side)
		make_pending(number - 1, side);
	return 0;
}

int daemon_open(struct kvmchan_request *request, struct kvmchan_grant *grant)
{
	int result;

	memset(grant, 0, sizeof(*grant));
	pthread_mutex_lock(&lock);
	result = open_port(request, grant);
	pthread_mutex_unlock(&lock);
	return result;
}

/* ---- pages ---- */

static int give(struct kvmchan_pages *pages, int i)
{
	pages->ref = shares[i].ref;
	pages->pages = shares[i].pages;
	pages->offset = 0;
	pages->memory_fd = duplicate(shares[i].fd);
	pages->control_fd = connection_make();
	return 0;
}

int daemon_share(struct kvmchan_pages *pages)
{
	int result = -1;

	pthread_mutex_lock(&lock);
	if (is_met() == 0) {
		check(share_count < MOST);
		shares[share_count].ref = next_ref;
		shares[share_count].pages = pages->pages;
		shares[share_count].fd = memory_make(pages->pages);
		shares[share_count].writable = pages->writable;
		next_ref += pages->pages;
		result = give(pages, share_count++);
	}
	pthread_mutex_unlock(&lock);
	return result;
}

int daemon_map(struct kvmchan_pages *pages)
{
	int result = -1, i;

	pthread_mutex_lock(&lock);
	if (is_met() == 0) {
		for (i = 0; i < share_count; i++)
			if (pages->ref - shares[i].ref < shares[i].pages)
				break;
		if (i == share_count)
			fail(ENOENT, "there is no such page");
		else if (pages->writable && !shares[i].writable)
			fail(EACCES, "that page may only be read");
		else
			result = give(pages, i);
	}
	pthread_mutex_unlock(&lock);
	return result;
}

int daemon_notify(int control_fd, uint64_t offset, bool clears, uint64_t port)
{
	int result;

	check(control_fd >= 0);
	pthread_mutex_lock(&lock);
	result = is_met();
	if (result == 0)
		fake_notice = (struct fake_notice){offset, port, clears};
	pthread_mutex_unlock(&lock);
	return result;
}

/* ---- the rest ---- */

/* Who else has the connection is told too. */
void daemon_close(struct connection *connection)
{
	if (connection_is_there(connection))
		check(shutdown(connection->fd, SHUT_WR) == 0);
	connection_close(connection);
}

int daemon_domain(uint32_t domain)
{
	if (domain == DOMAIN_SELF)
		return 0;
	return domain < 8 ? (int)domain : fail(EINVAL, "there is no domain %u", domain);
}

static void close_all(int *fds, int *count)
{
	while (*count)
		close(fds[--*count]);
}

void fake_end(void)
{
	close_all(connections, &connection_count);
	while (channel_count) {
		channel_count--;
		close(channels[channel_count].fd[0]);
		close(channels[channel_count].fd[1]);
	}
	while (share_count)
		close(shares[--share_count].fd);
	fake_events = KVMCHAN_EVENTS_SOCKET;
	fake_requests_left = -1;
	fake_notice = (struct fake_notice){0};
}
