/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Our Python code, and what of the standard library it needs, as Python's frozen modules
 * (build_frozen.py). */
#ifndef KVMCHAN_FROZEN_H
#define KVMCHAN_FROZEN_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

extern const struct _frozen frozen_modules[];

#endif
