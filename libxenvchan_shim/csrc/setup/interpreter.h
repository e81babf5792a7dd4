/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The Python interpreter inside the library's process: started once, at the first set-up, and never
 * finalized. */
#ifndef KVMCHAN_INTERPRETER_H
#define KVMCHAN_INTERPRETER_H

/* Starts it unless the process has one. 0, or -1 with errno and the sentence. Callable from any
 * thread. */
int interpreter_start(void);

#endif
