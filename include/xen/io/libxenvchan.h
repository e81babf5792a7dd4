/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The page that the two ends of a vchan share, as Xen lays it out (xen/io/libxenvchan.h).
 *
 * Both ends write here at any time, so every field is untrusted to the end that reads it. All
 * integers are in the machine's byte order; sizes are in bytes; indexes count bytes and run freely
 * modulo 2^32.
 */
#ifndef KVMCHAN_XEN_IO_LIBXENVCHAN_H
#define KVMCHAN_XEN_IO_LIBXENVCHAN_H

#include <stdint.h>
#include <sys/types.h>

/* Read position and write position of one ring: prod - cons bytes are waiting in it. */
struct ring_shared {
	uint32_t cons;
	uint32_t prod;
};

/* Bits of cli_notify and srv_notify: the event its owner is asked for. */
#define VCHAN_NOTIFY_WRITE 0x1 /* tell me when you have written */
#define VCHAN_NOTIFY_READ 0x2  /* tell me when you have read */

struct vchan_interface {
	/* left: the client writes, the server reads; right: the other way round. */
	struct ring_shared left, right;
	/*
	 * A ring holds 2^order bytes. Order 10 lies at offset 1024 of this page, order 11 at offset
	 * 2048, and 12 or more on pages of its own, left before right. Set once, by the server.
	 */
	uint16_t left_order, right_order;
	/* 0: that end is gone, 1: it is there, 2 (cli_live only): no client has come yet. */
	uint8_t cli_live, srv_live;
	/* What the client (cli_notify) or the server (srv_notify) is asked to tell its peer of; the
	 * asking end sets bits, the end named in the field clears them when it acts. */
	uint8_t cli_notify, srv_notify;
	/* Xen's grant references of the rings' pages; unused here. */
	uint32_t grants[];
};

#endif
