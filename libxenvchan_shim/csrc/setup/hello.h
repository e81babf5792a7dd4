/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The packet that opens a connection to the daemon: Hello of kvmchand/wire/client.py, encoded when
 * we were built (build_hello.py). */
#ifndef KVMCHAN_HELLO_H
#define KVMCHAN_HELLO_H

#include <stddef.h>

extern const unsigned char hello_packet[];
extern const size_t hello_size;

#endif
