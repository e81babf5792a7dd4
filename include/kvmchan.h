/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What our libraries offer beside the functions of those that they stand in for. */
#ifndef KVMCHAN_H
#define KVMCHAN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

struct libxenvchan;

/*
 * The sentence behind the last NULL or -1 that a function of this library returned in this thread:
 * what failed, on what, and what to do. Never NULL, "" if nothing failed yet. Valid until this
 * thread's next call of one.
 */
const char *kvmchan_last_error(void);

/* ---- a vchan's bytes in place, in libxenvchan.so ---- */

/*
 * Look at the bytes that can be read, where they lie in the ring. Sets *@pieces to them, in order;
 * the second piece is empty unless they go over the ring's end. Returns their number, at least
 * @least; 0 if there are fewer and the vchan is not blocking, and then asks for an event when there
 * are more; or -1 with an errno of libxenvchan_recv().
 *
 * The pieces are valid until kvmchan_consume() passes them, and at most until the vchan is closed.
 * The peer can change the bytes meanwhile: take care not to read twice what you check, and copy
 * what you parse. They are for reading only.
 */
int kvmchan_look(struct libxenvchan *ctrl, size_t least, struct iovec pieces[2]);
/* Pass the next @count bytes, and so give the peer their room. Returns 0, or -1 with errno EINVAL
 * (that many were not seen). */
int kvmchan_consume(struct libxenvchan *ctrl, size_t count);

/*
 * Reserve room to write in place: the same as kvmchan_look(), for at least @least bytes of room.
 * The peer sees nothing until kvmchan_commit(). Fails with an errno of libxenvchan_send().
 */
int kvmchan_reserve(struct libxenvchan *ctrl, size_t least, struct iovec pieces[2]);
/* Publish the first @count bytes of that room, which then hold what was written there. Returns 0,
 * or -1 with errno EINVAL (more than was seen) or EPIPE. */
int kvmchan_commit(struct libxenvchan *ctrl, size_t count);

/* ---- a vchan's waits with a timeout, in libxenvchan.so ---- */

/*
 * Wait until at least @least bytes can be read, or written, whether or not the vchan is blocking:
 * for at most @timeout ns; -1: for ever; 0: not at all, but ask for an event when they can, and
 * take those that are pending. Returns how many can be. Or -1 with errno ETIMEDOUT; EAGAIN, where
 * @timeout is 0; EPIPE (the channel is closed, and fewer are left); EMSGSIZE (they are more than
 * the ring holds); EINTR (a signal, or many events that brought nothing); EPROTO; EBUSY (see
 * libxenvchan.h about threads).
 */
int kvmchan_wait_data(struct libxenvchan *ctrl, size_t least, int64_t timeout);
int kvmchan_wait_room(struct libxenvchan *ctrl, size_t least, int64_t timeout);

#ifdef __cplusplus
}
#endif

#endif
