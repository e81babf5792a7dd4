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

/* What bindings wait for. */
enum kvmchan_awaited {
	KVMCHAN_DATA,  /* kvmchan_wait_data() */
	KVMCHAN_ROOM,  /* kvmchan_wait_room() */
	KVMCHAN_EVENT, /* libxenvchan_wait(), with such a timeout; takes what is pending */
};

/*
 * For bindings, whose callers may have other things to do between a call and its errno: these
 * return a negative errno where they fail. Without an end that is -EBADF.
 *
 * As libxenvchan_recv() and the others of an end that does not block, but these ask for no event.
 */
int kvmchan_try_recv(struct libxenvchan *ctrl, void *data, int size);
int kvmchan_try_read(struct libxenvchan *ctrl, void *data, int size);
int kvmchan_try_send(struct libxenvchan *ctrl, const void *data, int size);
int kvmchan_try_write(struct libxenvchan *ctrl, const void *data, int size);

/* As kvmchan_look() and kvmchan_reserve() of what there is, if that is nothing, too; and these ask
 * for no event. Return where it begins in the ring, times 2^32, plus its size. */
int64_t kvmchan_try_look(struct libxenvchan *ctrl);
int64_t kvmchan_try_reserve(struct libxenvchan *ctrl);
/* Ask for the event of more data, or more room, then look: return how much there is. */
int kvmchan_try_ask(struct libxenvchan *ctrl, int what);
/* The same for any thread, also for one that is not this direction's: it keeps nothing of what it
 * sees. An impossible index counts as nothing. */
int kvmchan_glance(struct libxenvchan *ctrl, int what);
/* kvmchan_consume() and kvmchan_commit(). */
int kvmchan_try_consume(struct libxenvchan *ctrl, int count);
int kvmchan_try_commit(struct libxenvchan *ctrl, int count);

/* Wait for one of the above, for at most @timeout µs. */
int kvmchan_await(struct libxenvchan *ctrl, int what, int least, int timeout);

/* Let kvmchan_shut() end the waits that begin from now on, for which the end gets one descriptor
 * more. Returns 0 or a negative errno. */
int kvmchan_make_wakeable(struct libxenvchan *ctrl);
/* End the waits of all threads on this end, which fail with EPIPE. The end is of no use any more.
 */
void kvmchan_shut(struct libxenvchan *ctrl);

/* Mark our end as gone, and tell the peer. */
void kvmchan_hang_up(struct libxenvchan *ctrl);
/* Return the connection to the daemon, which the caller then owns; -1 if there is none, or the
 * program has closed it. */
int kvmchan_steal_control(struct libxenvchan *ctrl);
/* Close the descriptors that are left. The memory stays, and so what another thread may look at. */
void kvmchan_close_descriptors(struct libxenvchan *ctrl);
/* In a forked child: close the descriptors, and put zeroes in the place of the shared memory. The
 * parent's end goes on, and the child has no part in it. */
void kvmchan_forget(struct libxenvchan *ctrl);
/* Unmap, close the descriptors that are left, and free the end, with its xs_path. */
void kvmchan_detach(struct libxenvchan *ctrl);

#pragma GCC visibility pop

#endif
