/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The extension modules that our Python code needs, as Python's built-in ones. */
#ifndef KVMCHAN_EXTENSIONS_H
#define KVMCHAN_EXTENSIONS_H

/* Have the interpreter find them. To be called before it starts. Returns 0, or -1 if there is no
 * memory. */
int extensions_add(void);

#endif
