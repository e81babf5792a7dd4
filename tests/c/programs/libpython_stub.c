/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a program may load as its Python, of a version that is not ours: libpython3.99.so. Its
 * functions must neither be taken for ours, nor ours for them. */
#include <stdbool.h>

static bool started;

int Py_IsInitialized(void) { return started; }

const char *Py_GetVersion(void) { return "3.99.0 (stub)"; }

void Py_Initialize(void) { started = true; }

int Py_FinalizeEx(void)
{
	started = false;
	return 0;
}

int PyRun_SimpleString(const char *unused)
{
	(void)unused;
	/* By name, as libpython's own calls may be. */
	return started && Py_IsInitialized() ? 0 : -1;
}

/* Of those that our runtime uses. */
int PyGILState_Ensure(void) { __builtin_trap(); }

void PyGILState_Release(int unused)
{
	(void)unused;
	__builtin_trap();
}

void *PyImport_ImportModule(const char *unused)
{
	(void)unused;
	__builtin_trap();
}

void *PyObject_CallObject(void) { __builtin_trap(); }
