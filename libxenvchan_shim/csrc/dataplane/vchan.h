/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One end of a vchan on memory that already exists: the data plane.
 *
 * Nothing here knows of the daemon or of Python. What sets a channel up fills in a struct
 * kvmchan_grant and attaches; the calls that move data, declared in libxenvchan.h, are in vchan.c.
 */
#ifndef KVMCHAN_VCHAN_H
#define KVMCHAN_VCHAN_H

#include <stddef.h>

#include "dataplane/grant.h"

/* The libraries' version maps decide what of these they export. */
#pragma GCC visibility push(default)

#include "kvmchan.h"
#include "libxenvchan.h"

/*
 * Map the region, take our place in the shared page, and tell the peer. Takes ownership of the
 * grant's descriptors, also when it fails; region_fd is closed at once, because the mapping alone
 * keeps the end alive. The end is freed by kvmchan_detach(). Returns NULL with errno EINVAL (an
 * order, size, offset or kind is invalid), EPROTO (the page's indexes are impossible), ENOMEM, or
 * what mmap failed with.
 */
struct libxenvchan *kvmchan_attach(const struct kvmchan_grant *grant);

/*
 * Copy the next @size bytes, and leave them to be read. Never blocks. Returns @size; 0 if fewer are
 * there, and then asks for an event when there are more; or -1 with errno EINVAL (@size is too
 * large for any call) or EPROTO (the peer broke the ring's rules). As the peer may change the bytes
 * until they are taken, look at the copy only.
 */
int kvmchan_peek(struct libxenvchan *ctrl, void *data, size_t size);

/*
 * As libxenvchan_recv() and the others of an end that does not block, but these ask for no event:
 * for bindings, which then wait with kvmchan_wait_data() and kvmchan_wait_room(). Without an end
 * they return -1, and leave errno and the sentence as they are.
 */
int kvmchan_try_recv(struct libxenvchan *ctrl, void *data, int size);
int kvmchan_try_read(struct libxenvchan *ctrl, void *data, int size);
int kvmchan_try_send(struct libxenvchan *ctrl, const void *data, int size);
int kvmchan_try_write(struct libxenvchan *ctrl, const void *data, int size);

/* As libxenvchan_wait(), for at most @timeout ns; -1: for ever. Fails with ETIMEDOUT, too. */
int kvmchan_wait_event(struct libxenvchan *ctrl, int64_t timeout);

/* End the waits of all threads on this end, which fail with EPIPE. The end is of no use any more.
 */
void kvmchan_shut(struct libxenvchan *ctrl);

/* Return the errno that came with kvmchan_last_error(). */
int kvmchan_last_errno(void);

/* Mark our end as gone, and tell the peer. */
void kvmchan_hang_up(struct libxenvchan *ctrl);
/* Return the connection to the daemon, which the caller then owns; -1 if there is none, or the
 * program has closed it. */
int kvmchan_steal_control(struct libxenvchan *ctrl);
/* Unmap, close the descriptors that are left, and free the end, with its xs_path. */
void kvmchan_detach(struct libxenvchan *ctrl);

#pragma GCC visibility pop

#endif
