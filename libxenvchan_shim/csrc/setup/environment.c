/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "setup/environment.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *setting(const char *name)
{
	const char *value = secure_getenv(name);

	return value ? value : "";
}

static const char *runtime_dir(void) { return setting("KVMCHAN_RUNTIME_DIR"); }

/* What it was when we were loaded, if that is relative, and what that means. */
static char *relative, *absolute;

__attribute__((constructor)) static void remember_folder(void)
{
	const char *value = runtime_dir();
	char folder[PATH_MAX];

	if (!*value || *value == '/' || !getcwd(folder, sizeof(folder)) ||
	    asprintf(&absolute, "%s/%s", folder, value) < 0)
		return;
	relative = strdup(value);
}

const char *setting_runtime_dir(void)
{
	const char *value = runtime_dir();

	return relative && strcmp(value, relative) == 0 ? absolute : value;
}

const char *setting_domain(void) { return setting("KVMCHAN_DOMAIN"); }

const char *setting_runtime(void) { return setting("KVMCHAN_RUNTIME"); }
