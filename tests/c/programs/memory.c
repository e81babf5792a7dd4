/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Prints by how many KiB the process's resident memory grows by its first vchan, and by all of a
 * hundred more: memory PATH. */
#include <libxenvchan.h>
#include <stdlib.h>

#include "../rig/program.h"

static long resident_kib(void)
{
	FILE *status = fopen("/proc/self/status", "r");
	char line[200];
	long found = -1;

	EXPECT(status);
	while (fgets(line, sizeof(line), status))
		if (strncmp(line, "VmRSS:", 6) == 0)
			found = atol(line + 6);
	fclose(status);
	EXPECT(found > 0);
	return found;
}

static void open_and_close(const char *path)
{
	struct libxenvchan *vchan = libxenvchan_server_init(NULL, 0, path, 0, 0);

	EXPECT(vchan);
	libxenvchan_close(vchan);
}

int main(int argc, char **argv)
{
	long before, first;

	EXPECT(argc == 2);
	before = resident_kib();
	open_and_close(argv[1]);
	first = resident_kib();
	for (int i = 0; i < 100; i++)
		open_and_close(argv[1]);
	printf("%ld %ld\n", first - before, resident_kib() - first);
	return 0;
}
