/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Gives libxenvchan a logger made with Xen's own header, and prints what comes of failures: what
 * each of the ways of learning of one says. */
#include <kvmchan.h>
#include <libxenvchan.h>
#include <xentoollog.h>

#include "../rig/program.h"

struct my_logger {
	struct xentoollog_logger vtable;
	int calls;
};

static void my_vmessage(struct xentoollog_logger *logger, xentoollog_level level, int errnoval,
			const char *context, const char *format, va_list arguments)
{
	printf("log %d %d %s: ", (int)level, errnoval, context);
	vprintf(format, arguments);
	printf("\n");
	((struct my_logger *)logger)->calls++;
	errno = 0; /* as any logger may */
}

static void my_progress(struct xentoollog_logger *logger, const char *context, const char *what,
			int percent, unsigned long done, unsigned long total)
{
	(void)logger, (void)context, (void)what, (void)percent, (void)done, (void)total;
	EXPECT(!"progress is reported");
}

int main(void)
{
	struct my_logger logger = {{my_vmessage, my_progress, NULL}, 0};
	struct libxenvchan *vchan;

	EXPECT(strcmp(kvmchan_last_error(), "") == 0);
	EXPECT(!libxenvchan_client_init(&logger.vtable, 0, "data/nobody"));
	EXPECT(errno == ENOENT && logger.calls == 1);
	printf("last %s\n", kvmchan_last_error());
	EXPECT(!libxenvchan_server_init(&logger.vtable, 0, "data/bad path", 0, 0));
	EXPECT(errno == EINVAL && logger.calls == 2);
	printf("last %s\n", kvmchan_last_error());
	EXPECT(!libxenvchan_server_init(NULL, 99, "data/fine", 0, 0));
	EXPECT(errno == ENOENT && logger.calls == 2);
	printf("last %s\n", kvmchan_last_error());
	vchan = libxenvchan_server_init(&logger.vtable, 0, "data/fine", 0, 0);
	EXPECT(vchan && logger.calls == 2);
	libxenvchan_close(vchan);
	return 0;
}
