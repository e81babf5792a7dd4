/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The program must not notice that its process has an interpreter: we neither use nor change its
 * environment, working directory, locale, signals or stdio. We find our Python code from this
 * library's own place in the file system.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "runtime/interpreter.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/call.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Where a failure is described. */
struct report {
	char *sentence;
	int room;
};

__attribute__((format(printf, 3, 4))) static int fail(const struct report *report, int error,
						      const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(report->sentence, (size_t)report->room, format, arguments);
	va_end(arguments);
	return error;
}

/* ---- fork: the child has only the thread that forked, so no other thread may hold our lock ----
 */

static _Thread_local PyGILState_STATE fork_state;

static void before_fork(void)
{
	pthread_mutex_lock(&lock);
	if (Py_IsInitialized()) {
		fork_state = PyGILState_Ensure();
		PyOS_BeforeFork();
	}
}

static void after_fork_in_parent(void)
{
	if (Py_IsInitialized()) {
		PyOS_AfterFork_Parent();
		PyGILState_Release(fork_state);
	}
	pthread_mutex_unlock(&lock);
}

static void after_fork_in_child(void)
{
	if (Py_IsInitialized()) {
		PyOS_AfterFork_Child();
		/* Python deletes all other threads' states in a child, and Python 3.11 can't make
		 * another one once the last is deleted. So this one stays. */
		PyEval_SaveThread();
	}
	pthread_mutex_unlock(&lock);
}

/* Call this before the interpreter starts, so that a fork waits until it has started. */
static void follow_forks(void)
{
	static bool follows;

	if (!follows)
		follows =
		    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) == 0;
}

/* ---- where things are ---- */

/* Folders from KVMCHAN_LIBDIR up to the one that holds the packages. */
#define LEVELS 3

static bool is_package_root(const char *directory)
{
	char file[PATH_MAX];

	return snprintf(file, sizeof(file), "%s/libxenvchan_shim/embed.py", directory) <
		   (int)sizeof(file) &&
	       access(file, R_OK) == 0;
}

/* Find the folder that holds our packages: one of those above this file, in an install as in a
 * build tree. */
static int find_packages(const struct report *report, char *directory)
{
	Dl_info self;
	int level;

	if (!dladdr((void *)&find_packages, &self) || !self.dli_fname ||
	    !realpath(self.dli_fname, directory))
		return fail(report, ENOENT, "kvmchan can not find its own file");
	for (level = 0; level < LEVELS; level++) {
		char *slash = strrchr(directory, '/');

		if (!slash || slash == directory)
			break;
		*slash = '\0';
		if (is_package_root(directory))
			return 0;
	}
	return fail(report, ENOENT, "kvmchan's Python code is not above %s: install kvmchan again",
		    self.dli_fname);
}

/* ---- start ---- */

static PyStatus add_path(PyConfig *config, const char *directory)
{
	wchar_t *wide = Py_DecodeLocale(directory, NULL);
	PyStatus status;

	if (!wide)
		return PyStatus_Error("decoding a path failed");
	status = PyWideStringList_Append(&config->module_search_paths, wide);
	PyMem_RawFree(wide);
	return status;
}

static PyStatus configure_and_start(PyConfig *config, const char *packages)
{
	/* Ours first, then the standard library, then where cffi's backend was when we were built.
	 */
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
	/* Otherwise the path configuration derives these from the program's own name. */
	status = PyConfig_SetBytesString(config, &config->home, KVMCHAN_HOME);
	if (PyStatus_Exception(status))
		return status;
	status = PyConfig_SetBytesString(config, &config->executable, "");
	if (PyStatus_Exception(status))
		return status;
	return Py_InitializeFromConfig(config);
}

static int start(const struct report *report)
{
	char packages[PATH_MAX];
	PyPreConfig preconfig;
	PyConfig config;
	PyStatus status;

	int error = find_packages(report, packages);

	if (error)
		return error;
	if (access(KVMCHAN_STDLIB "/encodings/__init__.py", R_OK) < 0)
		return fail(report, ENOENT,
			    "Python's standard library is not at " KVMCHAN_STDLIB
			    ": install the Python that kvmchan was built with");
	follow_forks();
	PyPreConfig_InitIsolatedConfig(&preconfig);
	preconfig.utf8_mode = 1;
	status = Py_PreInitialize(&preconfig);
	if (!PyStatus_Exception(status)) {
		PyConfig_InitIsolatedConfig(&config);
		status = configure_and_start(&config, packages);
		PyConfig_Clear(&config);
	}
	if (PyStatus_Exception(status))
		return fail(report, EIO, "the embedded Python did not start: %s",
			    status.err_msg ? status.err_msg : "no reason given");
	PyEval_SaveThread();
	return 0;
}

/* Fail with the sentence of the exception that is set, and clear the exception. */
static int fail_of_exception(const struct report *report, const char *module)
{
	PyObject *kind, *value, *trace, *text;
	const char *reason;

	PyErr_Fetch(&kind, &value, &trace);
	text = value ? PyObject_Str(value) : NULL;
	reason = text ? PyUnicode_AsUTF8(text) : NULL;
	fail(report, EIO, "kvmchan's Python code can't load %s: install kvmchan again (%s)", module,
	     reason ? reason : "no reason given");
	PyErr_Clear();
	Py_XDECREF(text);
	Py_XDECREF(kind);
	Py_XDECREF(value);
	Py_XDECREF(trace);
	return EIO;
}

/* Add @directory to the list @path unless it is in it already. */
static bool add_folder(PyObject *path, const char *directory)
{
	PyObject *text = PyUnicode_DecodeFSDefault(directory);
	int found = text ? PySequence_Contains(path, text) : -1;
	bool added = found == 1 || (found == 0 && PyList_Append(path, text) == 0);

	Py_XDECREF(text);
	return added;
}

/* Import what cffi is about to import: it would print a failure, and not report it. */
static int import_from(const struct report *report, PyObject *path, const char *packages)
{
	static const char *const modules[] = {"_cffi_backend", "libxenvchan_shim.embed"};
	int result = 0;
	size_t i;

	if (!path || !add_folder(path, packages) || !add_folder(path, KVMCHAN_CFFI))
		return fail_of_exception(report, "libxenvchan_shim");
	for (i = 0; i < sizeof(modules) / sizeof(*modules) && result == 0; i++) {
		PyObject *module = PyImport_ImportModule(modules[i]);

		if (!module)
			result = fail_of_exception(report, modules[i]);
		Py_XDECREF(module);
	}
	return result;
}

/* Import our modules. The interpreter may be the program's own, so its module path shows our
 * packages only as long as this takes. */
static int import_modules(const struct report *report)
{
	char packages[PATH_MAX];
	PyGILState_STATE state;
	PyObject *path, *before;
	int result = find_packages(report, packages);

	if (result)
		return result;
	state = PyGILState_Ensure();
	path = PySys_GetObject("path");
	before = path ? PyList_GetSlice(path, 0, PyList_Size(path)) : NULL;
	result = import_from(report, before ? path : NULL, packages);
	if (before && PyList_SetSlice(path, 0, PyList_Size(path), before) < 0)
		PyErr_Clear();
	Py_XDECREF(before);
	PyGILState_Release(state);
	return result;
}

int interpreter_start(char *sentence, int room)
{
	static bool has_modules;
	const struct report report = {sentence, room};
	int result = 0;

	pthread_mutex_lock(&lock);
	if (!Py_IsInitialized())
		result = start(&report);
	if (result == 0 && !has_modules) {
		result = import_modules(&report);
		/* Here, where no other thread calls it: cffi's own start has no lock that a thread
		 * checker knows. */
		if (result == 0)
			kvmchan_python_start();
		has_modules = result == 0;
	}
	pthread_mutex_unlock(&lock);
	return result;
}
