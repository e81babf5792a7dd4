/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The program must not notice that its process has an interpreter: we neither use nor change its
 * environment, working directory, locale, signals or stdio.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "runtime/interpreter.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/call.h"
#include "runtime/extensions.h"
#include "runtime/frozen.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_int owner;	/* the process whose interpreter it is; 0 if none has started it */
static atomic_bool has_modules; /* all is imported */

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

static _Thread_local struct {
	bool has_gil; /* the thread that forks holds Python's lock */
	PyGILState_STATE gil;
} at_fork;

static bool is_running(void) { return atomic_load(&owner) == getpid() && Py_IsInitialized(); }

static void before_fork(void)
{
	pthread_mutex_lock(&lock);
	at_fork.has_gil = is_running();
	if (at_fork.has_gil) {
		at_fork.gil = PyGILState_Ensure();
		PyOS_BeforeFork();
	}
}

static void after_fork_in_parent(void)
{
	if (at_fork.has_gil) {
		PyOS_AfterFork_Parent();
		PyGILState_Release(at_fork.gil);
	}
	pthread_mutex_unlock(&lock);
}

static void after_fork_in_child(void)
{
	if (at_fork.has_gil) {
		PyOS_AfterFork_Child();
		/* Python deletes all other threads' states in a child, and Python 3.11 can't make
		 * another one once the last is deleted. So this one stays. */
		PyEval_SaveThread();
		atomic_store(&owner, getpid());
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

/* ---- start ---- */

static PyStatus configure_and_start(PyConfig *config)
{
	PyStatus status;

	config->install_signal_handlers = 0;
	config->site_import = 0;
	config->write_bytecode = 0;
	config->configure_c_stdio = 0;
	config->pathconfig_warnings = 0;
	/* All that we import is built in or frozen, and so Python looks for no file. */
	config->module_search_paths_set = 1;
	/* Otherwise Python looks for itself in the folders of PATH. */
	status = PyConfig_SetBytesString(config, &config->program_name, "/kvmchan");
	if (!PyStatus_Exception(status))
		status = PyConfig_SetBytesString(config, &config->home, "/");
	return PyStatus_Exception(status) ? status : Py_InitializeFromConfig(config);
}

static int start(const struct report *report)
{
	PyPreConfig preconfig;
	PyConfig config;
	PyStatus status;

	if (extensions_add() < 0)
		return fail(report, ENOMEM, "no memory to start Python");
	PyImport_FrozenModules = frozen_modules;
	follow_forks();
	PyPreConfig_InitIsolatedConfig(&preconfig);
	preconfig.utf8_mode = 1;
	status = Py_PreInitialize(&preconfig);
	if (!PyStatus_Exception(status)) {
		PyConfig_InitIsolatedConfig(&config);
		status = configure_and_start(&config);
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

/* Import what cffi is about to import: it would print a failure, and not report it. */
static int import_modules(const struct report *report)
{
	static const char *const modules[] = {"_cffi_backend", "libxenvchan_shim.embed"};
	PyGILState_STATE state = PyGILState_Ensure();
	int result = 0;
	size_t i;

	for (i = 0; i < sizeof(modules) / sizeof(*modules) && result == 0; i++) {
		PyObject *module = PyImport_ImportModule(modules[i]);

		if (!module)
			result = fail_of_exception(report, modules[i]);
		Py_XDECREF(module);
	}
	PyGILState_Release(state);
	return result;
}

enum kvmchan_runtime_state interpreter_state(void)
{
	/* The program may have loaded the same libpython, and started or ended Python in it. */
	if (atomic_load(&owner) ? !is_running() : Py_IsInitialized())
		return RUNTIME_LOST;
	return atomic_load(&has_modules) ? RUNTIME_STARTED : RUNTIME_STOPPED;
}

static int start_once(const struct report *report)
{
	int result = 0;

	if (interpreter_state() == RUNTIME_LOST)
		return fail(report, ENOTSUP,
			    "the program uses the Python " PY_VERSION
			    " that this library would run in: set KVMCHAN_RUNTIME to beside");
	if (!atomic_load(&owner)) {
		result = start(report);
		if (result)
			return result;
		atomic_store(&owner, getpid());
	}
	if (!atomic_load(&has_modules)) {
		result = import_modules(report);
		/* Here, where no other thread calls it: cffi's own start has no lock that a thread
		 * checker knows. */
		if (result == 0)
			kvmchan_python_start();
		atomic_store(&has_modules, result == 0);
	}
	return result;
}

int interpreter_start(char *sentence, int room)
{
	const struct report report = {sentence, room};
	int result;

	pthread_mutex_lock(&lock);
	result = start_once(&report);
	pthread_mutex_unlock(&lock);
	return result;
}
