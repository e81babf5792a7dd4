/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A runtime lies in KVMCHAN_LIBDIR, one for each version of Python that it was built for. A program
 * that never needs the daemon needs no Python, nor does one that was linked to us.
 */
#include "setup/loader.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "dataplane/error.h"

/* "kvmchan-python" VERSION ".so"; a version is 3.11. */
#define PREFIX "kvmchan-python3."
#define SUFFIX ".so"
#define NAME_MAX_LENGTH 32
/* Versions tried, from the newest on. */
#define VERSIONS 16
/* Folders from KVMCHAN_LIBDIR/xen-4.17 up to KVMCHAN_LIBDIR. */
#define LEVELS 2

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const struct kvmchan_runtime *loaded;
static atomic_bool has_started;

static void before_fork(void) { pthread_mutex_lock(&lock); }

static void after_fork(void) { pthread_mutex_unlock(&lock); }

/* So that a forked child finds the lock free. To be called with the lock held. */
static void follow_forks(void)
{
	static bool follows;

	if (!follows)
		follows = pthread_atfork(before_fork, after_fork, after_fork) == 0;
}

/* Where a failure is described. */
struct report {
	int *error;
	char *sentence;
	int room;
};

#define FAIL(report, number, ...)                                                                  \
	(*(report)->error = (number),                                                              \
	 (void)snprintf((report)->sentence, (size_t)(report)->room, __VA_ARGS__), NULL)

/* Bytes that a runtime takes, with a margin: of the address space, and of those what it writes to.
 */
#define ALL_BYTES (24 << 20)
#define OWN_BYTES (10 << 20)

static bool can_map(size_t size, int protection)
{
	void *mapped =
	    mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (mapped == MAP_FAILED)
		return false;
	munmap(mapped, size);
	return true;
}

int runtime_require_memory(void)
{
	if (can_map(ALL_BYTES, PROT_NONE) && can_map(OWN_BYTES, PROT_READ | PROT_WRITE))
		return 0;
	return fail(
	    ENOMEM,
	    "Python, which talks to the daemon, needs %d MiB of address space and %d MiB of "
	    "data: raise the limits (ulimit -v, -d)",
	    ALL_BYTES >> 20, OWN_BYTES >> 20);
}

/* Return Python's minor version; 0 if @name is no runtime's. */
static int minor_version(const char *name)
{
	char *end;
	long minor;

	if (strncmp(name, PREFIX, strlen(PREFIX)) != 0)
		return 0;
	minor = strtol(name + strlen(PREFIX), &end, 10);
	return strcmp(end, SUFFIX) == 0 && minor > 0 && minor < INT_MAX ? (int)minor : 0;
}

/* Note the minor versions of the runtimes in @folder, the newest first. Returns how many. */
static int list_versions(const char *folder, int minors[VERSIONS])
{
	DIR *directory = opendir(folder);
	struct dirent *entry;
	int count = 0;

	while (directory && (entry = readdir(directory))) {
		int minor = minor_version(entry->d_name), at;

		if (!minor || count == VERSIONS)
			continue;
		for (at = count++; at > 0 && minors[at - 1] < minor; at--)
			minors[at] = minors[at - 1];
		minors[at] = minor;
	}
	if (directory)
		closedir(directory);
	return count;
}

/* Load the runtime of one version, and return it. */
static const struct kvmchan_runtime *load(const struct report *report, const char *folder,
					  int minor)
{
	char path[PATH_MAX + NAME_MAX_LENGTH];
	const struct kvmchan_runtime *runtime;
	void *handle;

	snprintf(path, sizeof(path), "%s/" PREFIX "%d" SUFFIX, folder, minor);
	/* Extension modules look for Python's functions among the global symbols. */
	handle = dlopen(path, RTLD_NOW | RTLD_GLOBAL | RTLD_NODELETE);
	runtime = handle ? dlsym(handle, KVMCHAN_RUNTIME_SYMBOL) : NULL;
	if (!runtime)
		return FAIL(report, ELIBACC,
			    "kvmchan's runtime can't be loaded: install Python 3.%d, for which it "
			    "was built (%s)",
			    minor, dlerror());
	if (runtime->version != KVMCHAN_RUNTIME_VERSION)
		return FAIL(report, ELIBBAD, "%s is of another release: install kvmchan again",
			    path);
	return runtime;
}

static const struct kvmchan_runtime *find(const struct report *report)
{
	const struct kvmchan_runtime *runtime = NULL;
	char folder[PATH_MAX];
	Dl_info self;
	int level;

	if (!dladdr((void *)&runtime_get, &self) || !self.dli_fname)
		return FAIL(report, ENOENT, "libxenvchan can not find its own file");
	if (!realpath(self.dli_fname, folder))
		return FAIL(report, errno,
			    "libxenvchan can not find its own file %s (%s): a program that changes "
			    "its root or its rights must open a vchan before that",
			    self.dli_fname, strerror(errno));
	for (level = 0; level < LEVELS; level++) {
		int minors[VERSIONS], count, i;
		char *slash = strrchr(folder, '/');

		if (!slash || slash == folder)
			break;
		*slash = '\0';
		count = list_versions(folder, minors);
		for (i = 0; i < count && !runtime; i++)
			runtime = load(report, folder, minors[i]);
		if (count)
			return runtime;
	}
	return FAIL(report, ENOENT,
		    "kvmchan's runtime (" PREFIX "*" SUFFIX ") is not beside %s: install kvmchan "
		    "again",
		    self.dli_fname);
}

const struct kvmchan_runtime *runtime_get(int *error, char *sentence, int room)
{
	const struct report report = {error, sentence, room};
	const struct kvmchan_runtime *runtime;

	pthread_mutex_lock(&lock);
	follow_forks();
	if (!loaded)
		loaded = find(&report);
	runtime = loaded;
	pthread_mutex_unlock(&lock);
	if (!runtime)
		return NULL;
	*error = runtime->start(sentence, room);
	if (*error)
		return NULL;
	atomic_store(&has_started, true);
	return runtime;
}

bool runtime_has_started(void) { return atomic_load(&has_started); }
