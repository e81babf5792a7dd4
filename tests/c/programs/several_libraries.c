/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Several of our libraries in one process, as a program and its plugins may bring them:
 * several_libraries PATH LIBRARY... The ones named are loaded with RTLD_LOCAL; with LINKED there is
 * one more, which the program is linked with. Every library talks to every other and to itself, and
 * all of them must share one interpreter, or one helper process.
 */
#include <dlfcn.h>
#include <libxenvchan.h>
#include <link.h>

#include "../rig/descriptors.h"
#include "../rig/program.h"

struct library {
	struct libxenvchan *(*server_init)(struct xentoollog_logger *, int, const char *, size_t,
					   size_t);
	struct libxenvchan *(*client_init)(struct xentoollog_logger *, int, const char *);
	int (*send)(struct libxenvchan *, const void *, size_t);
	int (*recv)(struct libxenvchan *, void *, size_t);
	void (*close)(struct libxenvchan *);
	const char *(*last_error)(void);
};

static void *symbol(void *library, const char *name)
{
	void *found = dlsym(library, name);

	EXPECT(found);
	return found;
}

static struct library look_up(void *library)
{
	return (struct library){
	    .server_init = symbol(library, "libxenvchan_server_init"),
	    .client_init = symbol(library, "libxenvchan_client_init"),
	    .send = symbol(library, "libxenvchan_send"),
	    .recv = symbol(library, "libxenvchan_recv"),
	    .close = symbol(library, "libxenvchan_close"),
	    .last_error = symbol(library, "kvmchan_last_error"),
	};
}

static void talk(const struct library *one, const struct library *other, const char *path)
{
	struct libxenvchan *server = one->server_init(NULL, 0, path, 0, 0);
	struct libxenvchan *client;
	char data[5];

	if (!server)
		dprintf(2, "server: %s\n", one->last_error());
	EXPECT(server);
	client = other->client_init(NULL, 0, path);
	if (!client)
		dprintf(2, "client: %s\n", other->last_error());
	EXPECT(client);
	EXPECT(one->send(server, "there", 5) == 5);
	EXPECT(other->recv(client, data, 5) == 5 && memcmp(data, "there", 5) == 0);
	EXPECT(other->send(client, "back!", 5) == 5);
	EXPECT(one->recv(server, data, 5) == 5 && memcmp(data, "back!", 5) == 0);
	one->close(server);
	other->close(client);
}

static int pythons;
static const char *python_name;

static int see_object(struct dl_phdr_info *object, size_t size, void *data)
{
	(void)size;
	(void)data;
	if (strstr(object->dlpi_name, "/libpython")) {
		pythons++;
		python_name = object->dlpi_name;
	}
	return 0;
}

static void check_one_helper(void)
{
	int fd, helpers = 0;

	for (fd = 0; fd < 100; fd++)
		helpers += is_helpers(fd);
	EXPECT(helpers == 1);
}

static void check_one_interpreter(void)
{
	const char *runtime = getenv("KVMCHAN_RUNTIME");
	void *python, *(*head)(void), *(*next)(void *);

	dl_iterate_phdr(see_object, NULL);
	if (runtime && strcmp(runtime, "beside") == 0) {
		EXPECT(pythons == 0);
		check_one_helper();
		return;
	}
	EXPECT(pythons == 1);
	python = dlopen(python_name, RTLD_NOW | RTLD_NOLOAD);
	EXPECT(python);
	head = (void *(*)(void))symbol(python, "PyInterpreterState_Head");
	next = (void *(*)(void *))symbol(python, "PyInterpreterState_Next");
	EXPECT(head() && !next(head()));
}

int main(int argc, char **argv)
{
	struct library libraries[16];
	int count = 0;

	EXPECT(argc >= 2 && argc < 16);
#ifdef LINKED
	libraries[count++] = (struct library){
	    libxenvchan_server_init, libxenvchan_client_init,
	    libxenvchan_send,	     libxenvchan_recv,
	    libxenvchan_close,	     symbol(RTLD_DEFAULT, "kvmchan_last_error"),
	};
#endif
	for (int i = 2; i < argc; i++) {
		void *library = dlopen(argv[i], RTLD_NOW | RTLD_LOCAL);

		if (!library)
			dprintf(2, "%s\n", dlerror());
		EXPECT(library);
		libraries[count++] = look_up(library);
	}
	for (int i = 0; i < count; i++)
		for (int j = 0; j < i; j++)
			EXPECT(libraries[i].send != libraries[j].send);
	for (int i = 0; i < count; i++)
		for (int j = 0; j < count; j++)
			talk(&libraries[i], &libraries[j], argv[1]);
	check_one_interpreter();
	say("ok");
	return 0;
}
