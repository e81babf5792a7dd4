/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What libxenevtchn.so.1 exports, as facts of its ABI, because we are built without Xen's headers.
 * tests/py/e2e/test_xen_abi.py compares the two. */
#ifndef KVMCHAN_LIBXENEVTCHN_H
#define KVMCHAN_LIBXENEVTCHN_H

#include <stdint.h>

#include "libxenvchan.h"

#pragma GCC visibility push(default)

xenevtchn_handle *xenevtchn_open(struct xentoollog_logger *logger, unsigned int flags);
xenevtchn_handle *xenevtchn_fdopen(struct xentoollog_logger *logger, int fd, unsigned int flags);
int xenevtchn_close(xenevtchn_handle *xce);
int xenevtchn_fd(xenevtchn_handle *xce);
int xenevtchn_notify(xenevtchn_handle *xce, uint32_t port);
int xenevtchn_bind_unbound_port(xenevtchn_handle *xce, uint32_t domid);
int xenevtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domid, uint32_t remote_port);
int xenevtchn_bind_virq(xenevtchn_handle *xce, unsigned int virq);
int xenevtchn_unbind(xenevtchn_handle *xce, uint32_t port);
int xenevtchn_pending(xenevtchn_handle *xce);
int xenevtchn_unmask(xenevtchn_handle *xce, uint32_t port);
int xenevtchn_restrict(xenevtchn_handle *xce, uint16_t domid);

#pragma GCC visibility pop

#endif
