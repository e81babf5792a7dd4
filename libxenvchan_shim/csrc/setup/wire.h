/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Connections to the daemon, and packets on them. What they say is Python's (runtime/call.h), but
 * the program itself connects, wherever Python runs: the daemon judges a client by the process that
 * connects. */
#ifndef KVMCHAN_WIRE_H
#define KVMCHAN_WIRE_H

#include <stddef.h>

#include "runtime/call.h"

/* Connect to the daemon that the environment's values name (setup/environment.h), and greet it.
 * Blocks while the
 * daemon's queue is full, for at most DAEMON_DEADLINE. Returns a blocking descriptor that is none
 * of stdio's, or -1 with errno; Python has the sentence. */
int connect_daemon(const char *runtime_dir, const char *domain);

/* Send a packet. Returns 0, also if the daemon has ended the connection: it may have said why.
 * Returns ETIMEDOUT if it takes none for DAEMON_DEADLINE. */
int send_packet(int fd, const void *data, size_t size);

/* What may lie beside a packet: the kernel's SCM_MAX_FD. With room for fewer, we could not tell how
 * many there were. */
#define PACKET_FDS_MAX 253

/* Descriptors that we own. */
struct packet_fds {
	int count;
	int fds[PACKET_FDS_MAX];
};

/* Receive the packet that has come, or note the error in @received, whose data is the caller's to
 * free. No descriptor is one of stdio's. */
void receive_packet(int fd, struct kvmchan_received *received, struct packet_fds *fds);
/* Return the next descriptor, which the caller then owns; -1 if there is none. */
int take_fd(struct packet_fds *fds);
/* Close those that were not taken. */
void close_fds(struct packet_fds *fds);

#endif
