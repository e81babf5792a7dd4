/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How libxenctrl reports a call of a function that it does not emulate. */
#ifndef KVMCHAN_LIBXENCTRL_UNSUPPORTED_H
#define KVMCHAN_LIBXENCTRL_UNSUPPORTED_H

/* Set errno to ENOSYS, and say so to the logger of the interface that was opened last, or on stderr
 * if there is none. */
void xenctrl_unsupported(const char *function);

#endif
