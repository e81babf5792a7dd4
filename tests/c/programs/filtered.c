/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program that allows itself few system calls once its vchan is open, as docs/porting.md lists
 * them: filtered server|client DOMAIN PATH. The client sends, the server checks every byte.
 */
#include <libxenvchan.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "../rig/program.h"

#define TOTAL 300000

static const int allowed[] = {
    SYS_sendto,	       SYS_recvfrom,	      SYS_poll,	      SYS_read, SYS_write, SYS_getsockopt,
    SYS_clock_gettime, SYS_sched_getaffinity, SYS_exit_group,
};
#define COUNT (sizeof(allowed) / sizeof(*allowed))

static void filter(void)
{
	struct sock_filter code[2 * COUNT + 2] = {
	    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	};
	struct sock_fprog program = {.len = 2 * COUNT + 2, .filter = code};

	for (size_t i = 0; i < COUNT; i++) {
		code[2 * i + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K,
							       (unsigned int)allowed[i], 0, 1);
		code[2 * i + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	}
	code[2 * COUNT + 1] =
	    (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	EXPECT(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	EXPECT(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static void move(struct libxenvchan *vchan, int sends)
{
	unsigned char data[5000];

	for (size_t done = 0; done < TOTAL;) {
		int count;

		for (size_t i = 0; sends && i < sizeof(data); i++)
			data[i] = (unsigned char)((done + i) % 251);
		count = sends ? libxenvchan_write(vchan, data, 3000)
			      : libxenvchan_read(vchan, data, sizeof(data));
		EXPECT(count > 0);
		for (int i = 0; !sends && i < count; i++)
			EXPECT(data[i] == (done + (size_t)i) % 251);
		done += (size_t)count;
	}
}

int main(int argc, char **argv)
{
	int is_server, domain;
	struct libxenvchan *vchan;

	EXPECT(argc == 4);
	is_server = strcmp(argv[1], "server") == 0;
	domain = atoi(argv[2]);
	vchan = is_server ? libxenvchan_server_init(NULL, domain, argv[3], 4096, 4096)
			  : libxenvchan_client_init(NULL, domain, argv[3]);
	EXPECT(vchan);
	vchan->blocking = 1;
	if (is_server)
		say("offered");
	filter();
	move(vchan, !is_server);
	move(vchan, is_server);
	EXPECT(write(1, "done\n", 5) == 5);
	_exit(0);
}
