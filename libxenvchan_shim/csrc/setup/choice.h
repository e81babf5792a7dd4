/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where Python runs for this process: inside it, unless that can't be. */
#ifndef KVMCHAN_CHOICE_H
#define KVMCHAN_CHOICE_H

#include "setup/loader.h"

/* Return enum place, which KVMCHAN_RUNTIME forces (inside, beside); or -1 with errno and the
 * sentence, if what it forces can't be. Once chosen, a process stays with it, unless it loses the
 * use of the Python inside. */
int runtime_choose(void);
/* Return whether we are in a linker namespace of our own (dlmopen), which has its own libc. */
bool is_in_own_namespace(void);

#endif
