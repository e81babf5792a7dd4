/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Loads a runtime (runtime/runtime.h) from KVMCHAN_LIBDIR. All of our libraries in a process share
 * it. */
#ifndef KVMCHAN_LOADER_H
#define KVMCHAN_LOADER_H

#include <stdbool.h>

#include "runtime/runtime.h"

/* Where Python runs. */
enum place {
	INSIDE, /* in this process: kvmchan-python<version>.so, of the newest version that loads */
	BESIDE, /* in a helper process: kvmchan-beside.so */
};

/* Return the runtime, loaded and started; or NULL, with *@error an errno and the sentence in
 * @sentence, which has @room bytes. May be called from any thread whose stack has
 * room for it: see setup/daemon.c. */
const struct kvmchan_runtime *runtime_get(enum place place, int *error, char *sentence, int room);
/* Return the one of this process if one of our libraries has loaded it, or NULL. */
const struct kvmchan_runtime *runtime_inside(void);
/* Return whether there is memory to load and start one inside. Python would end the process if it
 * ran out of it in its start. */
bool runtime_has_memory(void);
/* Return the minor version of the newest Python that there is a runtime for; 0 if there is none. */
int runtime_version(void);

#endif
