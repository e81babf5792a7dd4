/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The program whose process this is must not notice: nothing of its environment, working directory, locale, signals or
 * stdio is used or changed. Our Python code is found from where this library lies.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "interpreter.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"

/*
 * A process may hold several of our libraries, but starts one interpreter: "unique" makes the dynamic linker give all of
 * them the same lock, however they were loaded.
 */
__attribute__((visibility("default"))) pthread_mutex_t kvmchan_interpreter_lock =
	PTHREAD_MUTEX_INITIALIZER;
__asm__(".type kvmchan_interpreter_lock, %gnu_unique_object");

/* ---- fork: the child's interpreter has the thread that forked, and no other ---- */

static _Thread_local PyGILState_STATE fork_state;

static void before_fork(void)
{
	fork_state = PyGILState_Ensure();
	PyOS_BeforeFork();
}

static void after_fork_in_parent(void)
{
	PyOS_AfterFork_Parent();
	PyGILState_Release(fork_state);
}

static void after_fork_in_child(void)
{
	PyOS_AfterFork_Child();
	PyGILState_Release(fork_state);
}

/* ---- where things are ---- */

static bool is_package_root(const char *directory)
{
	char file[PATH_MAX];

	return snprintf(file, sizeof(file), "%s/libxenvchan_shim/embed.py", directory) < (int)sizeof(file) &&
	       access(file, R_OK) == 0;
}

/* The folder that holds our packages: the one above this library that does, in an install as in a build tree. */
static int find_packages(char *directory)
{
	Dl_info self;
	int level;

	if (!dladdr((void *)&find_packages, &self) || !self.dli_fname ||
	    !realpath(self.dli_fname, directory))
		return fail(ENOENT, "libxenvchan can't tell where it lies in the file system");
	for (level = 0; level < 8; level++) {
		char *slash = strrchr(directory, '/');

		if (!slash || slash == directory)
			break;
		*slash = '\0';
		if (is_package_root(directory))
			return 0;
	}
	return fail(ENOENT, "kvmchan's Python code is not above %s: install kvmchan again", self.dli_fname);
}

/* ---- start ---- */

static PyStatus add_path(PyConfig *config, const char *directory)
{
	wchar_t *wide = Py_DecodeLocale(directory, NULL);
	PyStatus status;

	if (!wide)
		return PyStatus_Error("a path can't be decoded");
	status = PyWideStringList_Append(&config->module_search_paths, wide);
	PyMem_RawFree(wide);
	return status;
}

static PyStatus configure_and_start(PyConfig *config, const char *packages)
{
	/* Ours first, then the standard library, then where cffi's backend was when we were built. */
	const char *const paths[] = {packages, KVMCHAN_STDLIB, KVMCHAN_DYNLOAD, KVMCHAN_CFFI};
	PyStatus status;
	size_t i;

	config->install_signal_handlers = 0;
	config->site_import = 0;
	config->write_bytecode = 0;
	config->configure_c_stdio = 0;
	config->pathconfig_warnings = 0;
	config->module_search_paths_set = 1;
	for (i = 0; i < sizeof(paths) / sizeof(*paths); i++) {
		status = add_path(config, paths[i]);
		if (PyStatus_Exception(status))
			return status;
	}
	/* Names that the path configuration would otherwise derive from the program's own. */
	status = PyConfig_SetBytesString(config, &config->home, KVMCHAN_HOME);
	if (PyStatus_Exception(status))
		return status;
	status = PyConfig_SetBytesString(config, &config->executable, "");
	if (PyStatus_Exception(status))
		return status;
	return Py_InitializeFromConfig(config);
}

static int start(void)
{
	char packages[PATH_MAX];
	PyPreConfig preconfig;
	PyConfig config;
	PyStatus status;

	if (find_packages(packages) < 0)
		return -1;
	if (access(KVMCHAN_STDLIB "/encodings/__init__.py", R_OK) < 0)
		return fail(ENOENT, "Python's standard library is not at " KVMCHAN_STDLIB
				    ": install the Python that kvmchan was built with");
	PyPreConfig_InitIsolatedConfig(&preconfig);
	preconfig.utf8_mode = 1;
	status = Py_PreInitialize(&preconfig);
	if (!PyStatus_Exception(status)) {
		PyConfig_InitIsolatedConfig(&config);
		status = configure_and_start(&config, packages);
		PyConfig_Clear(&config);
	}
	if (PyStatus_Exception(status))
		return fail(EIO, "the embedded Python did not start: %s",
			    status.err_msg ? status.err_msg : "no reason given");
	pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
	PyEval_SaveThread();
	return 0;
}

int interpreter_start(void)
{
	int result = 0;

	pthread_mutex_lock(&kvmchan_interpreter_lock);
	if (!Py_IsInitialized())
		result = start();
	pthread_mutex_unlock(&kvmchan_interpreter_lock);
	return result;
}
