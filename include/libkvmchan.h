/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libkvmchan: vchans, and memory shared between domains, by the interface of the library of that
 * name that kvmchan succeeds.
 *
 * Source- and binary-compatible with it. The vchans are those of libvchan.h, at the same domains
 * and ports.
 *
 * Threads: one thread at a time uses a vchan; different vchans are independent; the calls on shared
 * memory may be made from any. Errors: a function that fails returns NULL or -1 and sets errno;
 * kvmchan_last_error() in kvmchan.h has the sentence behind it.
 */
#ifndef LIBKVMCHAN_H
#define LIBKVMCHAN_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#ifdef __cplusplus
extern "C" {
#endif

/* libkvmchan_get_state()'s answers. */
#define VCHAN_DISCONNECTED 0 /* the peer, or its domain, is gone */
#define VCHAN_CONNECTED 1
#define VCHAN_WAITING 2 /* no client has come yet */

/* For programs that declare functions of their own with it. */
#define LIBKVMCHAN_EXPORTED __attribute__((__visibility__("default")))

/* ---- vchans ---- */

struct libkvmchan;

/*
 * Offers @domain a vchan at @port. The rings hold at least @read_min (peer to us) and @write_min
 * (us to peer) bytes; for 0 the daemon chooses. Does not wait for a client. NULL with errno as
 * libxenvchan_server_init().
 */
LIBKVMCHAN_EXPORTED struct libkvmchan *libkvmchan_server_init(uint32_t domain, uint32_t port,
							      size_t read_min, size_t write_min);
/* Connects to the vchan at @port of @domain. Does not wait for a server: NULL with errno ENOENT if
 * there is none; otherwise as libxenvchan_client_init(). */
LIBKVMCHAN_EXPORTED struct libkvmchan *libkvmchan_client_init(uint32_t domain, uint32_t port);

/*
 * All four block, a server's also until its client has come. -1 on error, with errno EPIPE when the
 * vchan is closed, EMSGSIZE when recv or send is for more than the ring holds, EPROTO when the peer
 * broke the ring's rules, EINTR when a signal ended a wait.
 */
/* Exactly @size bytes. */
LIBKVMCHAN_EXPORTED int libkvmchan_recv(struct libkvmchan *chan, void *data, size_t size);
LIBKVMCHAN_EXPORTED int libkvmchan_send(struct libkvmchan *chan, void *data, size_t size);
/* Between 1 and @size bytes: what is there, what there is room for. */
LIBKVMCHAN_EXPORTED int libkvmchan_read(struct libkvmchan *chan, void *data, size_t size);
LIBKVMCHAN_EXPORTED int libkvmchan_write(struct libkvmchan *chan, void *data, size_t size);

/*
 * A descriptor that is readable while there is data to read or the peer is gone, and may be so for
 * other news of the peer's. To be polled and not read from: libkvmchan_clear_eventfd() takes the
 * news. The vchan owns it; each call gives the same. -1 with errno EMFILE, ENFILE, ENOMEM.
 */
LIBKVMCHAN_EXPORTED int libkvmchan_get_eventfd(struct libkvmchan *chan);
LIBKVMCHAN_EXPORTED void libkvmchan_clear_eventfd(struct libkvmchan *chan);

/* Closes our end and frees @chan, which may be NULL. What was written stays readable to the peer,
 * which is told. True. */
LIBKVMCHAN_EXPORTED bool libkvmchan_close(struct libkvmchan *chan);
/* Bytes that can be read, or written, at once. Neither blocks. */
LIBKVMCHAN_EXPORTED size_t libkvmchan_data_ready(struct libkvmchan *chan);
LIBKVMCHAN_EXPORTED size_t libkvmchan_buffer_space(struct libkvmchan *chan);
/* One of the three states above. Never blocks. */
LIBKVMCHAN_EXPORTED int libkvmchan_get_state(struct libkvmchan *chan);

/* ---- shared memory ---- */

/* What a program shares and has mapped. */
struct libkvmchan_shmem;

/* NULL with errno ECONNREFUSED or ENOENT (no daemon), EACCES, EPROTO, ENOMEM. */
LIBKVMCHAN_EXPORTED struct libkvmchan_shmem *libkvmchan_shmem_start(void);
/* Closes all its regions, and frees @handle, which may be NULL. */
LIBKVMCHAN_EXPORTED void libkvmchan_shmem_end(struct libkvmchan_shmem *handle);

/*
 * Shares @page_count new pages of 4096 bytes, all 0, with domain @client_dom, which may read and
 * write them. Returns where they are, and their number, which that domain connects by, in
 * *@region_id_out. NULL with errno.
 */
LIBKVMCHAN_EXPORTED void *libkvmchan_shmem_region_create(struct libkvmchan_shmem *handle,
							 uint32_t client_dom, uint32_t page_count,
							 uint32_t *region_id_out);
/* Maps the region @region_id that domain @server_dom shares with us. NULL with errno. */
LIBKVMCHAN_EXPORTED void *libkvmchan_shmem_region_connect(struct libkvmchan_shmem *handle,
							  uint32_t server_dom, uint32_t region_id);

/*
 * Unmaps a region, by where it is, or by the peer's domain and its number. One that we created
 * can't be connected to any more; who is connected keeps it. One that we connected to can be
 * connected to again. 0, or -1 with errno EINVAL if @handle has no such region.
 */
LIBKVMCHAN_EXPORTED int libkvmchan_shmem_region_close(struct libkvmchan_shmem *handle, void *ptr);
LIBKVMCHAN_EXPORTED int libkvmchan_shmem_region_close_by_id(struct libkvmchan_shmem *handle,
							    uint32_t peer_dom, uint32_t region_id);

#ifdef __cplusplus
}
#endif

#endif
