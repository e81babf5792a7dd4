/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Vchans by domain and port, as libvchan and libkvmchan name them, at the path where Qubes' are.
 * NULL or -1 with errno and the sentence.
 */
#ifndef KVMCHAN_PEER_H
#define KVMCHAN_PEER_H

#include <stdint.h>

#include "dataplane/vchan.h"

/* 0, if it can be one's number. */
int check_domain(int64_t domain);

/* @once: to the first client that comes, and no other. */
struct libxenvchan *peer_offer(int64_t domain, int64_t port, size_t read_min, size_t write_min,
			       int once);
/* Does not wait for a server. */
struct libxenvchan *peer_connect(int64_t domain, int64_t port);
/* Waits for one, as long as @domain is there: *@control_fd is readable when there is an answer for
 * answer_vchan(). */
int peer_await(int64_t domain, int64_t port, int *control_fd);

#endif
