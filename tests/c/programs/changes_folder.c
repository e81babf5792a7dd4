/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Goes to another folder before it opens a vchan: changes_folder PATH. */
#include <libxenvchan.h>

#include "../rig/program.h"

int main(int argc, char **argv)
{
	struct libxenvchan *vchan;

	EXPECT(argc == 2);
	EXPECT(chdir("/") == 0);
	vchan = libxenvchan_server_init(NULL, 0, argv[1], 0, 0);
	EXPECT(vchan);
	libxenvchan_close(vchan);
	return 0;
}
