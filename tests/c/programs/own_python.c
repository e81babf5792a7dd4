/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program that embeds a Python of its own: own_python PATH LIBPYTHON WHEN. before: it has started
 * that before the first vchan. loaded: it has loaded it, and starts it after. after: it loads it
 * after. ended: it starts it before, and ends it after.
 */
#include <dlfcn.h>
#include <stdbool.h>

#include "../rig/talk.h"

static const char *path;
static void *python;

static void *function(const char *name)
{
	void *found = dlsym(python, name);

	EXPECT(found);
	return found;
}

static void load(const char *file)
{
	python = dlopen(file, RTLD_NOW | RTLD_GLOBAL);
	if (!python)
		dprintf(2, "%s\n", dlerror());
	EXPECT(python);
}

static void start(void) { ((void (*)(void))function("Py_Initialize"))(); }

static void end(void) { EXPECT(((int (*)(void))function("Py_FinalizeEx"))() == 0); }

/* With what only an ordinary start gives it. */
static void run(void)
{
	int (*run_string)(const char *) = (int (*)(const char *))function("PyRun_SimpleString");

	EXPECT(run_string("import site, sys, json\n"
			  "assert 'site' in sys.modules and sys.flags.isolated == 0\n"
			  "assert not any('libxenvchan' in each for each in sys.modules)\n") == 0);
}

int main(int argc, char **argv)
{
	bool early;

	EXPECT(argc == 4);
	path = argv[1];
	early = strcmp(argv[3], "after") != 0;
	if (early)
		load(argv[2]);
	if (early && strcmp(argv[3], "loaded") != 0)
		start();
	talk(path);
	if (!early)
		load(argv[2]);
	start();
	run();
	talk(path);
	run();
	end();
	talk(path);
	say("ok");
	return 0;
}
