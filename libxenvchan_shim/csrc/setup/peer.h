/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Vchans by domain and port, as libvchan and libkvmchan name them, at the paths that Qubes uses.
 * The functions return NULL or -1 with errno and the sentence if they fail. libxenvchan_close()
 * frees an end.
 */
#ifndef KVMCHAN_PEER_H
#define KVMCHAN_PEER_H

#include <stdbool.h>
#include <stdint.h>

#include "dataplane/vchan.h"

/* Room for a path with the longest numbers. */
#define PEER_PATH_MAX 96

/* Return 0 if @domain is a valid domain number. */
int check_domain(int64_t domain);

/* Offer a vchan. @once: no other client finds the offer after the first. Does not wait for one. */
struct libxenvchan *peer_offer(int64_t domain, int64_t port, size_t read_min, size_t write_min,
			       int once);
/* What a client asks for. */
struct peer_place {
	int domain;
	char path[PEER_PATH_MAX];
};

/* Find the place of @domain's @port for us, which depends on our own domain. */
int peer_find(struct peer_place *place, int64_t domain, int64_t port);
/* Connect to the vchan that is offered there. If none is, fails, or waits if @waits. */
struct libxenvchan *peer_connect(const struct peer_place *place, bool waits);
/* Ask for a vchan and return at once. *@control_fd, -1 before, is readable when one is offered or
 * the domain has gone: answer_vchan() then takes the answer. If that is to ask again, this asks
 * again on *@control_fd, whose number stays. */
int peer_await(const struct peer_place *place, int *control_fd);

#endif
