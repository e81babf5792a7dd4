/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A new connection to the daemon. The program itself makes it, wherever Python runs: the daemon
 * judges a client by the process that connects. */
#ifndef KVMCHAN_CONNECT_H
#define KVMCHAN_CONNECT_H

/* Connect to the daemon that the environment's values name (setup/environment.h). Blocks while the
 * daemon's queue is full, for at most DEADLINE of libxenvchan_shim/connection.py. Returns a
 * blocking descriptor that is none of stdio's, or -1 with errno; Python has the sentence. */
int connect_daemon(const char *runtime_dir, const char *domain);

#endif
