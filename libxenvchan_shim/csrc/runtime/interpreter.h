/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The Python interpreter inside the library's process: started once, at the first set-up, and never
 * finalized. */
#ifndef KVMCHAN_INTERPRETER_H
#define KVMCHAN_INTERPRETER_H

#include "runtime/runtime.h"

enum kvmchan_runtime_state interpreter_state(void);
/* Start the interpreter, once, and import our modules. Returns 0, or an errno with the sentence in
 * @sentence, which has @room bytes. May be called from any thread. */
int interpreter_start(char *sentence, int room);

#endif
