/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A program that has the library in a linker namespace of its own: other_namespace PATH LIBRARY. */
#include <dlfcn.h>
#include <libxenvchan.h>
#include <pthread.h>

#include "../rig/program.h"

static const char *path;
static void *library;

static void *function(const char *name)
{
	void *found = dlsym(library, name);

	EXPECT(found);
	return found;
}

static void talk(void)
{
	struct libxenvchan *(*server_init)(struct xentoollog_logger *, int, const char *, size_t,
					   size_t) = function("libxenvchan_server_init");
	struct libxenvchan *(*client_init)(struct xentoollog_logger *, int, const char *) =
	    function("libxenvchan_client_init");
	int (*send_all)(struct libxenvchan *, const void *, size_t) = function("libxenvchan_send");
	int (*receive)(struct libxenvchan *, void *, size_t) = function("libxenvchan_recv");
	void (*close_end)(struct libxenvchan *) = function("libxenvchan_close");
	struct libxenvchan *server = server_init(NULL, 0, path, 0, 0), *client;
	char data[5];

	EXPECT(server);
	client = client_init(NULL, 0, path);
	EXPECT(client);
	EXPECT(send_all(client, "there", 5) == 5);
	EXPECT(receive(server, data, 5) == 5 && memcmp(data, "there", 5) == 0);
	close_end(client);
	close_end(server);
}

static void *run(void *unused)
{
	talk();
	return unused;
}

int main(int argc, char **argv)
{
	pthread_key_t key;
	pthread_t thread;
	int value = 0;

	EXPECT(argc == 3);
	path = argv[1];
	/* Another libc's keys have the same numbers. */
	EXPECT(pthread_key_create(&key, NULL) == 0 && pthread_setspecific(key, &value) == 0);
	library = dlmopen(LM_ID_NEWLM, argv[2], RTLD_NOW);
	if (!library)
		dprintf(2, "%s\n", dlerror());
	EXPECT(library);
	talk();
	EXPECT(pthread_getspecific(key) == &value);
	EXPECT(pthread_create(&thread, NULL, run, NULL) == 0);
	EXPECT(pthread_join(thread, NULL) == 0);
	EXPECT(pthread_getspecific(key) == &value);
	say("ok");
	return 0;
}
