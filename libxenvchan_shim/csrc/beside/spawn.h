/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef KVMCHAN_SPAWN_H
#define KVMCHAN_SPAWN_H

/* Start @path as a process that is not the program's child: its end raises no SIGCHLD, and no
 * wait() returns it. It has @fd as its stdin, nothing else of the program's, default signals, a
 * session of its own, and the hard limits of memory. Returns 0 or an errno. */
int spawn_unnoticed(const char *path, int fd);

#endif
