/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "setup/wire.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "setup/daemon.h"
#include "setup/hello.h"
#include "setup/stdio.h"

#define RUNTIME_DIR "/run/kvmchand"
#define DOMAIN_DIGITS 5

/* As socket_path() of libxenvchan_shim/protocol.py. Returns 0, or -1 with errno. */
static int make_address(const char *runtime_dir, const char *domain, struct sockaddr_un *address)
{
	const char *folder = *runtime_dir ? runtime_dir : RUNTIME_DIR;
	const size_t room = sizeof(address->sun_path);
	size_t digits = strspn(domain, "0123456789");
	int length;

	if (domain[digits] || digits > DOMAIN_DIGITS) {
		errno = EINVAL;
		return -1;
	}
	address->sun_family = AF_UNIX;
	if (atoi(domain))
		length =
		    snprintf(address->sun_path, room, "%s/domain-%d.sock", folder, atoi(domain));
	else
		length = snprintf(address->sun_path, room, "%s/kvmchand.sock", folder);
	if (length < (int)room)
		return 0;
	errno = ENAMETOOLONG;
	return -1;
}

int send_packet(int fd, const void *data, size_t size)
{
	ssize_t sent;

	do
		sent = send(fd, data, size, MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	return sent < 0 && errno == EAGAIN ? ETIMEDOUT : 0;
}

static int connect_socket(int fd, const struct sockaddr_un *address)
{
	const struct timeval deadline = {.tv_sec = DAEMON_DEADLINE / 1000};

	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &deadline, sizeof(deadline)) < 0)
		return -1;
	if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0)
		return -1;
	/* Now, so that the daemon reads it while Python starts. Why it is refused, if it is, comes
	 * as the answer. */
	send_packet(fd, hello_packet, hello_size);
	return 0;
}

int connect_daemon(const char *runtime_dir, const char *domain)
{
	struct sockaddr_un address;
	int fd, error;

	if (make_address(runtime_dir, domain, &address) < 0)
		return -1;
	fd = above_stdio(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
	if (fd < 0 || connect_socket(fd, &address) == 0)
		return fd;
	error = errno;
	close(fd);
	errno = error;
	return -1;
}

/* ---- packets ---- */

static ssize_t receive(int fd, struct msghdr *packet, int flags)
{
	ssize_t got;
	int tries = 2;

	/* After a reset, what the daemon said before it left a packet of ours unread is still to
	 * come. */
	do
		got = recvmsg(fd, packet, MSG_DONTWAIT | flags);
	while (got < 0 && (errno == EINTR || (errno == ECONNRESET && --tries)));
	return got;
}

/* Return room for the packet that has come; NULL with errno. */
static uint8_t *make_room(int fd, size_t *size)
{
	struct msghdr nothing = {0};
	ssize_t length = receive(fd, &nothing, MSG_PEEK | MSG_TRUNC);

	if (length < 0)
		return NULL;
	if (length > KVMCHAN_PACKET_MAX) {
		errno = EMSGSIZE;
		return NULL;
	}
	*size = (size_t)length + 1;
	return malloc(*size);
}

/* Take ownership of what lies beside a packet. Returns 0 or an errno. */
static int note_fds(struct msghdr *packet, struct packet_fds *fds)
{
	struct cmsghdr *header;
	int error = packet->msg_flags & MSG_CTRUNC ? EMFILE : 0, i;

	for (header = CMSG_FIRSTHDR(packet); header; header = CMSG_NXTHDR(packet, header)) {
		if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
			continue;
		fds->count = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fds->fds, CMSG_DATA(header), (size_t)fds->count * sizeof(int));
	}
	for (i = 0; i < fds->count; i++) {
		fds->fds[i] = above_stdio(fds->fds[i]);
		if (fds->fds[i] < 0)
			error = errno;
	}
	return packet->msg_flags & MSG_TRUNC ? EMSGSIZE : error;
}

static int receive_into(int fd, uint8_t *room, size_t size, struct kvmchan_received *received,
			struct packet_fds *fds)
{
	struct iovec data = {room, size};
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(PACKET_FDS_MAX * sizeof(int))];
	} beside;
	struct msghdr packet = {
	    .msg_iov = &data,
	    .msg_iovlen = 1,
	    .msg_control = &beside,
	    .msg_controllen = sizeof(beside),
	};
	ssize_t got = receive(fd, &packet, MSG_CMSG_CLOEXEC);
	int error = got < 0 ? errno : note_fds(&packet, fds);

	if (error)
		return error;
	received->size = (uint32_t)got;
	received->fd_count = (uint32_t)fds->count;
	return 0;
}

void receive_packet(int fd, struct kvmchan_received *received, struct packet_fds *fds)
{
	size_t size = 0;
	uint8_t *room = make_room(fd, &size);

	fds->count = 0;
	*received = (struct kvmchan_received){.data = room};
	received->error = room ? receive_into(fd, room, size, received, fds) : errno;
	if (received->error)
		close_fds(fds);
}

int take_fd(struct packet_fds *fds)
{
	int fd;

	if (fds->count == 0)
		return -1;
	fd = fds->fds[0];
	fds->count--;
	memmove(fds->fds, fds->fds + 1, (size_t)fds->count * sizeof(int));
	return fd;
}

void close_fds(struct packet_fds *fds)
{
	while (fds->count > 0) {
		int fd = fds->fds[--fds->count];

		if (fd >= 0)
			close(fd);
	}
}
