/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What libxenctrl says of a function that it does not have. */
#ifndef KVMCHAN_LIBXENCTRL_UNSUPPORTED_H
#define KVMCHAN_LIBXENCTRL_UNSUPPORTED_H

/* Sets errno to ENOSYS, and says so to the logger of the interface that was opened last; without
 * one, on stderr. */
void xenctrl_unsupported(const char *function);

#endif
