/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The environment's settings: where the daemon is, and as which domain we act. */
#ifndef KVMCHAN_ENVIRONMENT_H
#define KVMCHAN_ENVIRONMENT_H

#include <stdlib.h>

#include "setup/embed.h"

/* Return an environment variable's value; "" if it is unset, or the program has raised rights. */
static inline const char *setting(const char *name)
{
	const char *value = secure_getenv(name);

	return value ? value : "";
}

/* Return the settings. Their strings are valid until the environment changes. */
static inline struct kvmchan_where here(void)
{
	return (struct kvmchan_where){
	    .runtime_dir = setting("KVMCHAN_RUNTIME_DIR"),
	    .domain = setting("KVMCHAN_DOMAIN"),
	};
}

#endif
