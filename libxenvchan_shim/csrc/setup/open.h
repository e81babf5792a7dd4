/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An end from the daemon: what the set-up of all our libraries' vchans has in common. */
#ifndef KVMCHAN_OPEN_H
#define KVMCHAN_OPEN_H

#include "dataplane/vchan.h"
#include "setup/embed.h"

/* For a request: the protocol's sizes are 63 bits; what is more is too much all the same. */
static inline uint64_t ring_size(size_t size) { return size < INT64_MAX ? size : INT64_MAX; }

/*
 * All fill in the request's settings, and start the interpreter. NULL or -1 with errno and the
 * sentence.
 */
/* Asks the daemon, and waits for its answer. */
struct libxenvchan *open_vchan(struct kvmchan_request *request);
/* Asks only: *@control_fd is readable when there is an answer, which answer_vchan() takes. */
int ask_vchan(struct kvmchan_request *request, int *control_fd);
/* Takes the answer, waiting for it, and @control_fd. */
struct libxenvchan *answer_vchan(int control_fd);

#endif
