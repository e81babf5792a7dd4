/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Opens a vchan, goes to an empty root and becomes nobody, as careful servers do, and closes it
 * there: drops_rights DOMAIN PATH EMPTY_FOLDER. With a fourth argument it opens none before that.
 */
#include <grp.h>
#include <kvmchan.h>
#include <libxenvchan.h>
#include <stdlib.h>

#include "../rig/program.h"

#define NOBODY 65534

int main(int argc, char **argv)
{
	struct libxenvchan *vchan;
	char word[5];

	EXPECT(argc >= 4);
	if (argc == 5) {
		EXPECT(chroot(argv[3]) == 0 && chdir("/") == 0);
		EXPECT(!libxenvchan_server_init(NULL, atoi(argv[1]), argv[2], 0, 0));
		EXPECT(errno == ENOENT);
		say(kvmchan_last_error());
		return 0;
	}
	vchan = libxenvchan_server_init(NULL, atoi(argv[1]), argv[2], 0, 0);
	EXPECT(vchan);
	vchan->blocking = 1;
	EXPECT(chroot(argv[3]) == 0 && chdir("/") == 0);
	EXPECT(setgroups(0, NULL) == 0 && setgid(NOBODY) == 0 && setuid(NOBODY) == 0);
	EXPECT(access("/proc", F_OK) == -1 && setuid(0) == -1);
	say("dropped");
	EXPECT(libxenvchan_recv(vchan, word, 5) == 5);
	EXPECT(libxenvchan_send(vchan, word, 5) == 5);
	await_gate();
	libxenvchan_close(vchan);
	EXPECT(strcmp(kvmchan_last_error(), "") == 0);
	say("closed");
	await_gate();
	/* Another can't be opened from here, which is an error like any other. */
	EXPECT(!libxenvchan_server_init(NULL, atoi(argv[1]), argv[2], 0, 0) &&
	       errno == ECONNREFUSED);
	EXPECT(strstr(kvmchan_last_error(), "no kvmchand answers"));
	return 0;
}
