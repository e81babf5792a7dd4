/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Closes every descriptor but the one of libxenvchan_fd_for_select, as daemons do, fills the
 * numbers with its own files, and goes on: closes_fds server|client files|sockets DOMAIN PATH.
 *
 * Has no stdio by then, so the peer says what to do and is answered on the vchan: "hello" before,
 * "close" for a close; whether the library touched a file of ours is the exit status.
 */
#include <fcntl.h>
#include <libxenvchan.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "../rig/program.h"

#define HIGHEST 40

static struct libxenvchan *vchan;

static void expect_word(const char *word)
{
	char data[5];

	EXPECT(libxenvchan_recv(vchan, data, 5) == 5);
	EXPECT(memcmp(data, word, 5) == 0);
}

static int reuse_with_files(int *own)
{
	int count = 0, fd;

	do {
		fd = memfd_create("program's own", 0);
		EXPECT(fd >= 0 && count < 2 * HIGHEST);
		EXPECT(write(fd, "mine", 4) == 4);
		own[count++] = fd;
	} while (fd < HIGHEST);
	return count;
}

static void check_files(const int *own, int count)
{
	for (int i = 0; i < count; i++) {
		struct stat status;
		char data[5];

		EXPECT(fstat(own[i], &status) == 0 && status.st_size == 4);
		EXPECT(lseek(own[i], 0, SEEK_CUR) == 4);
		EXPECT((fcntl(own[i], F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == O_RDWR);
		EXPECT(fcntl(own[i], F_GETFD) == 0);
		EXPECT(pread(own[i], data, 5, 0) == 4 && memcmp(data, "mine", 4) == 0);
	}
}

/* Of the same kind as the daemon's socket, so that a number alone tells nothing. */
static int reuse_with_sockets(int *own)
{
	int count = 0;

	do {
		EXPECT(count < 2 * HIGHEST);
		EXPECT(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, own + count) == 0);
		count += 2;
	} while (own[count - 1] < HIGHEST);
	return count;
}

static void check_sockets(const int *own, int count)
{
	for (int i = 0; i < count; i++) {
		char data[1];

		/* Neither sent to nor shut down. */
		EXPECT(recv(own[i], data, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
		EXPECT(fcntl(own[i], F_GETFL) == O_RDWR);
	}
}

int main(int argc, char **argv)
{
	int own[2 * HIGHEST + 2], count, kept, as_server, with_files;

	EXPECT(argc == 5);
	as_server = strcmp(argv[1], "server") == 0;
	with_files = strcmp(argv[2], "files") == 0;
	vchan = as_server ? libxenvchan_server_init(NULL, atoi(argv[3]), argv[4], 0, 0)
			  : libxenvchan_client_init(NULL, atoi(argv[3]), argv[4]);
	EXPECT(vchan);
	vchan->blocking = 1;
	say("ready");
	expect_word("hello");

	kept = libxenvchan_fd_for_select(vchan);
	if (kept > 0)
		EXPECT(close_range(0, (unsigned int)kept - 1, 0) == 0);
	EXPECT(close_range((unsigned int)kept + 1, ~0U, 0) == 0);
	count = with_files ? reuse_with_files(own) : reuse_with_sockets(own);
	EXPECT(own[0] == 0);

	EXPECT(libxenvchan_send(vchan, "naked", 5) == 5);
	expect_word("close");
	libxenvchan_close(vchan);
	if (with_files)
		check_files(own, count);
	else
		check_sockets(own, count);
	/* The one number that was the library's to close. */
	EXPECT(fcntl(kept, F_GETFD) == -1 && errno == EBADF);
	return 0;
}
