/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Set up an end through the daemon, as all our libraries do for their vchans. */
#ifndef KVMCHAN_OPEN_H
#define KVMCHAN_OPEN_H

#include "dataplane/vchan.h"
#include "runtime/call.h"

/* Return a size for a request. The protocol's sizes have 63 bits, and more is too much anyway. */
static inline uint64_t ring_size(size_t size) { return size < INT64_MAX ? size : INT64_MAX; }

/* These return NULL or -1 with errno and the sentence if they fail. libxenvchan_close() frees an
 * end. */
/* Ask the daemon, and block until it answers. */
struct libxenvchan *open_vchan(struct kvmchan_request *request);
/* Ask the daemon and return at once, as daemon_ask(). */
int ask_vchan(struct kvmchan_request *request, int *control_fd);
/* Take the answer, which has come, as daemon_answer(). Also returns NULL if it is to ask again, and
 * then *@control_fd is not -1. */
struct libxenvchan *answer_vchan(int *control_fd);

#endif
