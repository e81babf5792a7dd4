/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One end of a vchan that does what its stdin says, a line of answer for each line: the peer of the
 *programs whose behaviour is tested, and what bad input is tried with.
 *
 *	server DOMAIN READ_MIN WRITE_MIN PATH    ok, or NULL, errno and the sentence. The path NULL
 *is a null pointer client DOMAIN PATH                       the same send TEXT, recv SIZE what send
 *returns, what recv received; blocking open                                     is_open's answer
 *	gone                                     waits until the peer has gone
 *	fds                                      how many descriptors are open
 *	close                                    ok
 */
#include <dirent.h>
#include <kvmchan.h>
#include <libxenvchan.h>
#include <stdlib.h>

#include "program.h"

static struct libxenvchan *vchan;

static int count_fds(void)
{
	DIR *directory = opendir("/proc/self/fd");
	int count = 0;

	EXPECT(directory);
	while (readdir(directory))
		count++;
	closedir(directory);
	return count - 3; /* ., .. and the directory itself */
}

/* The next word, up to @separators, which ends it. */
static char *word(char **rest, const char *separators)
{
	char *found = strsep(rest, separators);

	EXPECT(found);
	return found;
}

static void opened(struct libxenvchan *made)
{
	if (!made) {
		printf("NULL %d %s\n", errno, kvmchan_last_error());
		return;
	}
	EXPECT(!vchan);
	vchan = made;
	vchan->blocking = 1;
	printf("ok\n");
}

static const char *path_of(const char *text) { return strcmp(text, "NULL") == 0 ? NULL : text; }

static void do_server(char *rest)
{
	int domain = atoi(word(&rest, " "));
	size_t read_min = strtoul(word(&rest, " "), NULL, 10);
	size_t write_min = strtoul(word(&rest, " "), NULL, 10);

	errno = 0;
	opened(
	    libxenvchan_server_init(NULL, domain, path_of(word(&rest, "")), read_min, write_min));
}

static void do_client(char *rest)
{
	int domain = atoi(word(&rest, " "));

	errno = 0;
	opened(libxenvchan_client_init(NULL, domain, path_of(word(&rest, ""))));
}

static void do_recv(size_t size)
{
	char data[4096];
	int got;

	EXPECT(size <= sizeof(data));
	got = libxenvchan_recv(vchan, data, size);
	if (got < 0)
		printf("-1 %d\n", errno);
	else
		printf("%.*s\n", got, data);
}

static void do_gone(void)
{
	while (libxenvchan_is_open(vchan))
		EXPECT(libxenvchan_wait(vchan) == 0);
	printf("gone\n");
}

int main(void)
{
	char *line = NULL;
	size_t room = 0;
	ssize_t length;

	while ((length = getline(&line, &room, stdin)) > 0) {
		char *rest = line, *command;

		line[length - 1] = '\0';
		command = word(&rest, " ");
		if (strcmp(command, "server") == 0)
			do_server(rest);
		else if (strcmp(command, "client") == 0)
			do_client(rest);
		else if (strcmp(command, "fds") == 0)
			printf("%d\n", count_fds());
		else if (strcmp(command, "send") == 0)
			printf("%d\n", libxenvchan_send(vchan, rest, strlen(rest)));
		else if (strcmp(command, "recv") == 0)
			do_recv(strtoul(rest, NULL, 10));
		else if (strcmp(command, "open") == 0)
			printf("%d\n", libxenvchan_is_open(vchan));
		else if (strcmp(command, "gone") == 0)
			do_gone();
		else if (strcmp(command, "close") == 0) {
			libxenvchan_close(vchan);
			vchan = NULL;
			printf("ok\n");
		} else
			EXPECT(!"a known command");
		fflush(stdout);
	}
	free(line);
	return 0;
}
