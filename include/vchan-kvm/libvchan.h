/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libvchan: Qubes' vchans, which stand at a domain and a port.
 *
 * Source- and binary-compatible with the header of the same name of Qubes' core-vchan-xen. A vchan
 * is one between two ends of libxenvchan's kind, at data/vchan/<client's domain>/<port> below the
 * server's node, so programs of either library, and libkvmchan's, reach each other.
 *
 * Threads: one thread at a time uses a vchan; different vchans are independent. Errors: a function
 * that fails returns NULL or -1 and sets errno; kvmchan_last_error() in kvmchan.h has the sentence
 * behind it.
 */
#ifndef LIBVCHAN_H
#define LIBVCHAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A descriptor to wait on, with poll and the like. */
typedef int EVTCHN;

/* libvchan_is_open()'s answers. */
#define VCHAN_DISCONNECTED 0 /* the peer, or its domain, is gone */
#define VCHAN_CONNECTED 1
#define VCHAN_WAITING 2 /* for a client to come, or for a server to appear */

typedef struct libvchan libvchan_t;

/*
 * Offers one client in @domain a vchan at @port, 0 or more. The rings hold at least @read_min (peer
 * to us) and @write_min (us to peer) bytes; for 0 the daemon chooses. Does not wait for the client:
 * libvchan_wait() does. Blocking at first. NULL with errno as libxenvchan_server_init().
 *
 * Once a client has come no other can: is_open is VCHAN_DISCONNECTED when it has gone, or when
 * @domain goes before one came.
 */
libvchan_t *libvchan_server_init(int domain, int port, size_t read_min, size_t write_min);

/*
 * Connects to the vchan at @port of @domain; waits until there is one, through signals too.
 * Blocking at first. NULL when the domain is not there or goes meanwhile (errno ENOENT), and
 * otherwise with errno as libxenvchan_client_init(). Other than Qubes', it also connects a domain
 * with itself.
 */
libvchan_t *libvchan_client_init(int domain, int port);

/*
 * The same without waiting. When *@watch_fd, which stays the vchan's, is readable, call
 * libvchan_client_init_async_finish(): 0 once connected, 1 if it is to be called again when
 * *@watch_fd is readable again, -1 if it failed, for good. However it ends, libvchan_close() frees
 * the vchan. Until it is connected is_open is VCHAN_WAITING, the calls that move data and
 * fd_for_select return -1 with errno EAGAIN, and all others do nothing and return 0.
 */
libvchan_t *libvchan_client_init_async(int domain, int port, EVTCHN *watch_fd);
int libvchan_client_init_async_finish(libvchan_t *ctrl, bool blocking);

/*
 * All four: -1 on error, with errno EPIPE when the vchan is closed, EMSGSIZE when the call can
 * never be met (blocking, larger than the ring), EPROTO when the peer broke the ring's rules, EINTR
 * when a signal ended a wait. Non-blocking calls return 0 when the ring has too little data or
 * room.
 */
/* Puts as much of @size bytes as fits; blocking: all of it, in pieces where the ring is smaller. */
int libvchan_write(libvchan_t *ctrl, const void *data, size_t size);
/* Puts exactly @size bytes, or none. */
int libvchan_send(libvchan_t *ctrl, const void *data, size_t size);
/* Takes between 1 and @size bytes. */
int libvchan_read(libvchan_t *ctrl, void *data, size_t size);
/* Takes exactly @size bytes, or none. Closed counts only once too little is left in the ring. */
int libvchan_recv(libvchan_t *ctrl, void *data, size_t size);

/*
 * Blocks until an event is pending, and takes it: the peer has come, has written or read what we
 * asked to hear of, or is gone. 0, or -1 with errno EINTR (but not while a server waits for its
 * client) or EPIPE (the peer is gone, and no event is pending).
 */
int libvchan_wait(libvchan_t *ctrl);
/* Frees @ctrl, which may be NULL, whatever its state. What was written stays readable to the peer,
 * which is told. */
void libvchan_close(libvchan_t *ctrl);
/* The descriptor that is readable while an event is pending. The vchan owns it. */
EVTCHN libvchan_fd_for_select(libvchan_t *ctrl);
/* One of the three states above. Never blocks. */
int libvchan_is_open(libvchan_t *ctrl);
/* Bytes that can be read, or written, at once. Neither blocks; both also ask for an event at the
 * next change. */
int libvchan_data_ready(libvchan_t *ctrl);
int libvchan_buffer_space(libvchan_t *ctrl);
/* Whether the four calls wait. Without effect on a vchan that is not connected yet. */
void libvchan_set_blocking(libvchan_t *ctrl, bool blocking);

#ifdef __cplusplus
}
#endif

#endif
