/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What our libraries offer beside the functions of those that they stand in for. */
#ifndef KVMCHAN_H
#define KVMCHAN_H

#ifdef __cplusplus
extern "C" {
#endif

/*
 * The sentence behind the last NULL or -1 that a function of this library returned in this thread:
 * what failed, on what, and what to do. Never NULL, "" if nothing failed yet. Valid until this
 * thread's next call of one.
 */
const char *kvmchan_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
