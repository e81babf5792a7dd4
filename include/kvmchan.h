/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What our libxenvchan.so offers beside Xen's functions. */
#ifndef KVMCHAN_H
#define KVMCHAN_H

#ifdef __cplusplus
extern "C" {
#endif

/*
 * The sentence behind the last NULL or -1 that a libxenvchan function returned in this thread: what
 * failed, on what, and what to do. Never NULL, "" if nothing failed yet. Valid until this thread's
 * next libxenvchan call.
 */
const char *kvmchan_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
