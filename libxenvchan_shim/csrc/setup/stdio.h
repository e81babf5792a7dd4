/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Descriptors of ours never have the numbers of stdio, which programs write to. */
#ifndef KVMCHAN_STDIO_H
#define KVMCHAN_STDIO_H

/* Return @fd, or another in its place if it is one of stdio's; -1 with errno, and then @fd is
 * closed. */
int above_stdio(int fd);
/* Make a pair of SOCK_SEQPACKET sockets, neither of them one of stdio's. Returns 0 or an errno. */
int seqpacket_pair(int pair[2]);

#endif
