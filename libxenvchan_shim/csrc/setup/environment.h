/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The environment's settings: where the daemon is, and as which domain we act. */
#ifndef KVMCHAN_ENVIRONMENT_H
#define KVMCHAN_ENVIRONMENT_H

#include <stdlib.h>

/* Return an environment variable's value; "" if it is unset, or the program has raised rights.
 * Valid until the environment changes. */
static inline const char *setting(const char *name)
{
	const char *value = secure_getenv(name);

	return value ? value : "";
}

#endif
