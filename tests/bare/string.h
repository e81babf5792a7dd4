/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* All that ring.c wants of a C library. */
#include <stddef.h>
void *memcpy(void *to, const void *from, size_t count);
