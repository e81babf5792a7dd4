/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What C asks of the embedded Python (libxenvchan_shim/embed.py). build_embed.py reads this file
 * too. */
#ifndef KVMCHAN_EMBED_H
#define KVMCHAN_EMBED_H

#include <stddef.h>
#include <stdint.h>

/* cffi: types */
/* server_init's or client_init's arguments. Strings are never NULL; they stay the caller's. */
struct kvmchan_request {
	int is_server;
	int peer;
	const char *path;
	uint64_t read_min, write_min;
	const char *runtime_dir; /* of the environment, "" where unset */
	const char *domain;
};

/* The end that was opened, as struct kvmchan_grant has it. The descriptors are the caller's. */
struct kvmchan_opened {
	int region_fd, event_fd, notify_fd, control_fd;
	uint32_t left_order, right_order;
	uint32_t port;
	uint32_t events, doorbell_value;
	uint64_t region_offset, doorbell_offset;
	char path[4352]; /* absolute */
};
/* cffi: functions */
/* Returns 0, or an errno with the sentence in @sentence, which holds @room bytes. */
int kvmchan_python_open(const struct kvmchan_request *request, struct kvmchan_opened *opened,
			char *sentence, int room);
/* Tells the daemon, waits until it knows, and closes @control_fd. */
void kvmchan_python_close(int control_fd);
/* cffi: end */

#endif
