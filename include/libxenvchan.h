/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libxenvchan: byte streams in shared memory between two domains, or two processes of one machine.
 *
 * Source- and binary-compatible with Xen's header of the same name. Xen's own header also draws in
 * xen/xen.h and the headers of libxenevtchn and libxengnttab; a program that uses those includes
 * them itself.
 *
 * Threads: one thread may read from a vchan (recv, read, data_ready) while another writes to it
 * (send, write, buffer_space), and both may block. A second one in either direction fails with
 * EBUSY. A thread that leaves a blocked call by siglongjmp() counts as in it until its next one.
 * Any thread may call is_open and fd_for_select. A blocked call may take the event that select() or
 * poll() would show to another thread, so don't watch the descriptor while another thread may block
 * in a call; libxenvchan_wait() works beside one. Close a vchan when no other thread uses it.
 * Different vchans are independent.
 *
 * Errors: a function that fails returns NULL or -1 and sets errno; kvmchan_last_error() in
 * kvmchan.h has the sentence behind it.
 */
#ifndef KVMCHAN_LIBXENVCHAN_H
#define KVMCHAN_LIBXENVCHAN_H

#include <stddef.h>
#include <stdint.h>
#include <xen/io/libxenvchan.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Opaque here, and spelled as in Xen's headers, so that both may be included. */
typedef struct xengntdev_handle xengntshr_handle;
typedef struct xengntdev_handle xengnttab_handle;
typedef struct xenevtchn_handle xenevtchn_handle;
struct xentoollog_logger;

/* One direction of a vchan, as a program may look at it. */
struct libxenvchan_ring {
	struct ring_shared *shr; /* indexes, in the shared page */
	void *buffer;		 /* 2^order bytes of data */
	int order;
};

/*
 * A vchan. The library allocates it and libxenvchan_close() frees it. Programs set server_persist
 * and blocking; everything else is for reading.
 */
struct libxenvchan {
	union {
		xengntshr_handle *gntshr; /* the server's */
		xengnttab_handle *gnttab; /* the client's */
	};
	struct vchan_interface *ring; /* the shared page */
	xenevtchn_handle *event;
	uint32_t event_port;
	/* One-bit signed fields, as in Xen: set means non-zero, not 1. */
	int is_server : 1;
	int server_persist : 1; /* is_open says 1 to the server even while no client is there */
	int blocking : 1;	/* calls wait instead of returning 0 */
	struct libxenvchan_ring read, write;
	char *xs_path; /* where the server's offer stands; NULL in a client */
};

/*
 * Offers a vchan to the domain numbered @domain at @xs_path, absolute or relative to the caller's
 * own /local/domain/<id>. The rings hold at least @read_min (peer to us) and @write_min (us to
 * peer) bytes, 1 MiB at most unless the daemon's settings allow more; for 0 the daemon chooses.
 * @logger may be NULL; it is told of a failure, and is not kept.
 *
 * Blocks for the daemon's answer only, never for a client. Returns NULL with errno ECONNREFUSED (no
 * daemon), EINVAL (path, domain or size), E2BIG (path too long), EACCES (not below the caller's own
 * node, or a daemon that is not for this user), ENOENT (unknown domain), ENOSPC (the domain has too
 * many channels), EPROTO (a daemon of another version), EMFILE, ENOMEM. The offer stands until
 * close, or until the process ends; a second offer at the path takes the path over.
 */
struct libxenvchan *libxenvchan_server_init(struct xentoollog_logger *logger, int domain,
					    const char *xs_path, size_t read_min, size_t write_min);

/*
 * Connects to the vchan that @domain offers us at @xs_path. Does not wait for a server: NULL with
 * errno ENOENT if nothing is offered there, EACCES if it is offered to another domain, EBUSY while
 * another client is connected; otherwise as server_init.
 */
struct libxenvchan *libxenvchan_client_init(struct xentoollog_logger *logger, int domain,
					    const char *xs_path);

/* Closes our end and frees @ctrl, which may be NULL. What was written stays readable to the peer,
 * which is told. */
void libxenvchan_close(struct libxenvchan *ctrl);

/*
 * All four: -1 on error, with errno EPIPE when the channel is closed, EMSGSIZE when the call can
 * never be met (blocking, larger than the ring), EPROTO when the peer broke the ring's rules, EINTR
 * when a signal ended a wait, EBUSY when another thread is in such a call. Non-blocking calls
 * return 0 when the ring has too little data or room.
 */
/* Takes exactly @size bytes, or none. Closed counts only once too little is left in the ring. */
int libxenvchan_recv(struct libxenvchan *ctrl, void *data, size_t size);
/* Takes between 1 and @size bytes. */
int libxenvchan_read(struct libxenvchan *ctrl, void *data, size_t size);
/* Puts exactly @size bytes, or none. */
int libxenvchan_send(struct libxenvchan *ctrl, const void *data, size_t size);
/* Puts as much of @size bytes as fits; blocking: all of it, in pieces where the ring is smaller. */
int libxenvchan_write(struct libxenvchan *ctrl, const void *data, size_t size);

/* Blocks until an event is pending, and takes it: 0, or -1 with errno EINTR, EPIPE (the peer and
 * the daemon are gone). */
int libxenvchan_wait(struct libxenvchan *ctrl);
/* The descriptor that is readable while an event is pending. The vchan owns it. */
int libxenvchan_fd_for_select(struct libxenvchan *ctrl);
/* 1: the peer is there; 0: it is gone; 2 (server): no client has come yet. Never blocks. */
int libxenvchan_is_open(struct libxenvchan *ctrl);
/* Bytes that can be read, or written, at once. Neither blocks; both also ask for an event at the
 * next change. */
int libxenvchan_data_ready(struct libxenvchan *ctrl);
int libxenvchan_buffer_space(struct libxenvchan *ctrl);

#ifdef __cplusplus
}
#endif

#endif
