/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Vchans by domain and port, as libvchan and libkvmchan name them, at the paths that Qubes uses.
 * The functions return NULL or -1 with errno and the sentence if they fail. libxenvchan_close()
 * frees an end.
 */
#ifndef KVMCHAN_PEER_H
#define KVMCHAN_PEER_H

#include <stdint.h>

#include "dataplane/vchan.h"

/* Return 0 if @domain is a valid domain number. */
int check_domain(int64_t domain);

/* Offer a vchan. @once: no other client finds the offer after the first. Does not wait for one. */
struct libxenvchan *peer_offer(int64_t domain, int64_t port, size_t read_min, size_t write_min,
			       int once);
/* Connect to an offered vchan. Fails if none is offered. */
struct libxenvchan *peer_connect(int64_t domain, int64_t port);
/* Ask for a vchan and return at once. *@control_fd is readable when one is offered or @domain has
 * gone: answer_vchan() then takes the answer. */
int peer_await(int64_t domain, int64_t port, int *control_fd);

#endif
