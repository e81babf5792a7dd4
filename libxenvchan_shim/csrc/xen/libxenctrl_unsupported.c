/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Everything that libxenctrl exports and that has no meaning here, so that a program which can do
 * without it links and runs. The arguments are ignored, so those of any caller fit.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>

#include "xen/libxenctrl_unsupported.h"

#pragma GCC visibility push(default)

/* Define a function that fails, and says so once. */
#define UNSUPPORTED(type, name, result)                                                            \
	type name(void);                                                                           \
	type name(void)                                                                            \
	{                                                                                          \
		static atomic_flag said = ATOMIC_FLAG_INIT;                                        \
                                                                                                   \
		if (!atomic_flag_test_and_set(&said))                                              \
			xenctrl_unsupported(#name);                                                \
		errno = ENOSYS;                                                                    \
		return result;                                                                     \
	}
#define INTEGER(name) UNSUPPORTED(int64_t, name, -1)
#define POINTER(name) UNSUPPORTED(void *, name, 0)

#include "xen/libxenctrl_unsupported.def"

/* Xen's HYPERCALL_BUFFER_NULL: a structure whose pointers and sizes are 0. */
uint64_t xc__hypercall_buffer_HYPERCALL_BUFFER_NULL[5];

#pragma GCC visibility pop
