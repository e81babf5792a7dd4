/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The runtimes lie in KVMCHAN_LIBDIR, one for each version of Python that we were built for, and
 * the one that needs no Python. A program that never needs the daemon loads none.
 */
#include "setup/loader.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* "kvmchan-python" VERSION ".so"; a version is 3.11. */
#define PREFIX "kvmchan-python3."
#define SUFFIX ".so"
#define BESIDE_NAME "kvmchan-beside.so"
#define NAME_LENGTH_MAX 32
/* Versions tried, from the newest on. */
#define VERSIONS 16
/* Folders from KVMCHAN_LIBDIR/xen-4.17 up to KVMCHAN_LIBDIR. */
#define LEVELS 2

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const struct kvmchan_runtime *loaded[2]; /* by place */

static void before_fork(void) { pthread_mutex_lock(&lock); }

static void after_fork(void) { pthread_mutex_unlock(&lock); }

/* So that a forked child finds the lock free. To be called with the lock held. */
static void follow_forks(void)
{
	static bool follows;

	if (!follows)
		follows = pthread_atfork(before_fork, after_fork, after_fork) == 0;
}

/* Where a failure is described; NULL where nobody wants to know. */
struct report {
	int *error;
	char *sentence;
	int room;
};

/* Returns -1. */
__attribute__((format(printf, 3, 4))) static int describe(const struct report *report, int error,
							  const char *format, ...)
{
	va_list arguments;

	if (!report)
		return -1;
	va_start(arguments, format);
	vsnprintf(report->sentence, (size_t)report->room, format, arguments);
	va_end(arguments);
	*report->error = error;
	return -1;
}

/* ---- the files ---- */

struct files {
	const char *own; /* our library's own */
	bool beside;
	int minors[VERSIONS]; /* minor versions of Python, the newest first */
	int count;
	char folder[PATH_MAX];
	char path[PATH_MAX + NAME_LENGTH_MAX];
};

/* Return Python's minor version; 0 if @name is no runtime's with Python. */
static int minor_version(const char *name)
{
	char *end;
	long minor;

	if (strncmp(name, PREFIX, strlen(PREFIX)) != 0)
		return 0;
	minor = strtol(name + strlen(PREFIX), &end, 10);
	return strcmp(end, SUFFIX) == 0 && minor > 0 && minor < INT_MAX ? (int)minor : 0;
}

static void note_file(struct files *files, const char *name)
{
	int minor = minor_version(name), at;

	files->beside |= strcmp(name, BESIDE_NAME) == 0;
	if (!minor || files->count == VERSIONS)
		return;
	for (at = files->count++; at > 0 && files->minors[at - 1] < minor; at--)
		files->minors[at] = files->minors[at - 1];
	files->minors[at] = minor;
}

static void list_folder(struct files *files)
{
	DIR *directory = opendir(files->folder);
	struct dirent *entry;

	while (directory && (entry = readdir(directory)))
		note_file(files, entry->d_name);
	if (directory)
		closedir(directory);
}

/* Note the runtimes in the folder of our own file, or above it. Returns 0, or -1 with *report. */
static int find_files_in(const struct report *report, struct files *files)
{
	Dl_info self;
	int level;

	if (!dladdr((void *)&runtime_get, &self) || !self.dli_fname)
		return describe(report, ENOENT, "libxenvchan can not find its own file");
	files->own = self.dli_fname;
	if (!realpath(files->own, files->folder))
		return describe(report, errno,
				"libxenvchan can not find its own file %s (%s): a program that "
				"changes its root "
				"or its rights must open a vchan before that",
				files->own, strerror(errno));
	for (level = 0; level < LEVELS && !files->beside && files->count == 0; level++) {
		char *slash = strrchr(files->folder, '/');

		if (!slash || slash == files->folder)
			break;
		*slash = '\0';
		list_folder(files);
	}
	return 0;
}

/* Return the files; NULL with *report. To be called with the lock held. */
static struct files *find_files(const struct report *report)
{
	/* Looked for until there are some; not on the stack, which may be small. */
	static struct files files;

	if (files.beside || files.count)
		return &files;
	return find_files_in(report, &files) < 0 ? NULL : &files;
}

static const char *path_of(struct files *files, enum place place, int minor)
{
	if (place == BESIDE)
		snprintf(files->path, sizeof(files->path), "%s/" BESIDE_NAME, files->folder);
	else
		snprintf(files->path, sizeof(files->path), "%s/" PREFIX "%d" SUFFIX, files->folder,
			 minor);
	return files->path;
}

/* ---- loading ---- */

/* Locally, so that a Python that the program loads later finds its own functions, not ours. */
#define HOW (RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)

static const struct kvmchan_runtime *load(const struct report *report, struct files *files,
					  enum place place, int minor)
{
	void *handle = dlopen(path_of(files, place, minor), HOW);
	const struct kvmchan_runtime *runtime =
	    handle ? dlsym(handle, KVMCHAN_RUNTIME_SYMBOL) : NULL;

	if (!runtime && place == INSIDE)
		describe(report, ELIBACC,
			 "kvmchan's runtime can't be loaded: install Python 3.%d, for which it was "
			 "built (%s)",
			 minor, dlerror());
	else if (!runtime)
		describe(report, ELIBACC,
			 "kvmchan's runtime can't be loaded: install kvmchan again (%s)",
			 dlerror());
	else if (runtime->version != KVMCHAN_RUNTIME_VERSION)
		describe(report, ELIBBAD, "%s is of another release: install kvmchan again",
			 files->path);
	else
		return runtime;
	return NULL;
}

static const struct kvmchan_runtime *load_first(const struct report *report, struct files *files,
						enum place place)
{
	const struct kvmchan_runtime *runtime = NULL;
	int i;

	if (place == BESIDE ? !files->beside : files->count == 0)
		describe(report, ENOENT,
			 "kvmchan's runtime (%s) is not beside %s: install kvmchan again",
			 place == BESIDE ? BESIDE_NAME : PREFIX "*" SUFFIX, files->own);
	else if (place == BESIDE)
		runtime = load(report, files, place, 0);
	for (i = 0; place == INSIDE && i < files->count && !runtime; i++)
		runtime = load(report, files, place, files->minors[i]);
	return runtime;
}

static const struct kvmchan_runtime *find_and_load(const struct report *report, enum place place)
{
	struct files *files = find_files(report);

	return files ? load_first(report, files, place) : NULL;
}

/* Bytes that Python takes, with a margin: of the address space, and of those what it writes to. */
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

bool runtime_has_memory(void)
{
	return can_map(ALL_BYTES, PROT_NONE) && can_map(OWN_BYTES, PROT_READ | PROT_WRITE);
}

static int require_memory(const struct report *report)
{
	if (runtime_has_memory())
		return 0;
	return describe(
	    report, ENOMEM,
	    "Python, which talks to the daemon, needs %d MiB of address space and %d MiB of "
	    "data: raise the limits (ulimit -v, -d)",
	    ALL_BYTES >> 20, OWN_BYTES >> 20);
}

const struct kvmchan_runtime *runtime_get(enum place place, int *error, char *sentence, int room)
{
	const struct report report = {error, sentence, room};
	const struct kvmchan_runtime *runtime;

	pthread_mutex_lock(&lock);
	follow_forks();
	if (!loaded[place] && (place == BESIDE || require_memory(&report) == 0))
		loaded[place] = find_and_load(&report, place);
	runtime = loaded[place];
	pthread_mutex_unlock(&lock);
	if (!runtime)
		return NULL;
	*error = runtime->start(sentence, room);
	return *error ? NULL : runtime;
}

/* ---- what is loaded ---- */

static const struct kvmchan_runtime *find_inside(void)
{
	struct files *files = find_files(NULL);
	const struct kvmchan_runtime *runtime = NULL;
	int i;

	for (i = 0; files && i < files->count && !runtime; i++)
		if (dlopen(path_of(files, INSIDE, files->minors[i]), HOW | RTLD_NOLOAD))
			runtime = load(NULL, files, INSIDE, files->minors[i]);
	return runtime;
}

const struct kvmchan_runtime *runtime_inside(void)
{
	const struct kvmchan_runtime *runtime;

	pthread_mutex_lock(&lock);
	follow_forks();
	if (!loaded[INSIDE])
		loaded[INSIDE] = find_inside();
	runtime = loaded[INSIDE];
	pthread_mutex_unlock(&lock);
	return runtime;
}

int runtime_version(void)
{
	struct files *files;
	int minor;

	pthread_mutex_lock(&lock);
	follow_forks();
	files = find_files(NULL);
	minor = files ? files->minors[0] : 0;
	pthread_mutex_unlock(&lock);
	return minor;
}
