/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "setup/choice.h"

#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "dataplane/error.h"
#include "setup/environment.h"

#define UNDECIDED (-1)
#define REASON 160

static int is_libpython(struct dl_phdr_info *info, size_t size, void *unused)
{
	const char *slash = strrchr(info->dlpi_name, '/');
	const char *name = slash ? slash + 1 : info->dlpi_name;

	(void)size;
	(void)unused;
	return strncmp(name, "libpython", strlen("libpython")) == 0;
}

/* Return whether the program has a Python that is not ours, started or not: two of one process
 * would take each other's functions. */
static bool program_has_python(void)
{
	/* It may be part of the program's own file. */
	return (dlsym(RTLD_DEFAULT, "Py_IsInitialized") || dl_iterate_phdr(is_libpython, NULL)) &&
	       !runtime_inside();
}

static void describe_pythons(char reason[REASON])
{
	const char *(*get_version)(void) =
	    (const char *(*)(void))dlsym(RTLD_DEFAULT, "Py_GetVersion");
	const char *version = get_version ? get_version() : "a Python of its own";

	snprintf(reason, REASON, "this library was built for Python 3.%d and the program runs %.*s",
		 runtime_version(), (int)(get_version ? strcspn(version, " ") : strlen(version)),
		 version);
}

bool is_in_own_namespace(void)
{
	struct link_map *map = NULL;
	Dl_info self;
	Lmid_t namespace = LM_ID_BASE;

	return dladdr1((void *)&runtime_choose, &self, (void **)&map, RTLD_DL_LINKMAP) &&
	       dlinfo(map, RTLD_DI_LMID, &namespace) == 0 && namespace != LM_ID_BASE;
}

/* Return whether something keeps Python out of this process; then @reason says what. */
static bool is_kept_out(char reason[REASON])
{
	const struct kvmchan_runtime *inside;

	if (is_in_own_namespace()) {
		strcpy(reason, "this library is in a linker namespace of its own (dlmopen)");
		return true;
	}
	if (program_has_python()) {
		describe_pythons(reason);
		return true;
	}
	inside = runtime_inside();
	if (inside && inside->state() == RUNTIME_LOST) {
		strcpy(reason, "this process can't use the Python that was started in it before");
		return true;
	}
	return false;
}

static int choose(void)
{
	const char *wish = setting_runtime();
	char reason[REASON];

	if (strcmp(wish, "beside") == 0)
		return BESIDE;
	if (*wish && strcmp(wish, "inside") != 0)
		return fail(EINVAL,
			    "KVMCHAN_RUNTIME is '%.20s': set it to inside or beside, or unset it",
			    wish);
	if (is_kept_out(reason))
		return *wish
			   ? fail(ENOTSUP, "%s: set KVMCHAN_RUNTIME to beside, or unset it", reason)
			   : BESIDE;
	return *wish || runtime_has_memory() ? INSIDE : BESIDE;
}

int runtime_choose(void)
{
	static atomic_int chosen = UNDECIDED;
	const struct kvmchan_runtime *inside;
	int place = atomic_load(&chosen);

	if (place == INSIDE) {
		inside = runtime_inside();
		if (inside && inside->state() == RUNTIME_LOST)
			place = UNDECIDED;
	}
	if (place == UNDECIDED) {
		place = choose();
		if (place >= 0)
			atomic_store(&chosen, place);
	}
	return place;
}
