/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The file with Python in it, which the first call that needs the daemon loads. */
#ifndef KVMCHAN_LOADER_H
#define KVMCHAN_LOADER_H

#include <stdbool.h>

#include "runtime/runtime.h"

/* Return 0 if there is memory to load and start a runtime, or -1 with errno and the sentence.
 * Python would end the process if it ran out of it in its start. */
int runtime_require_memory(void);
/* Return the runtime, loaded and started; or NULL, with *@error an errno and the sentence in
 * @sentence, which has @room bytes. May be called from any thread whose stack has
 * KVMCHAN_RUNTIME_STACK bytes. */
const struct kvmchan_runtime *runtime_get(int *error, char *sentence, int room);
/* Return whether that has succeeded before. */
bool runtime_has_started(void);

#endif
