/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Asks libxenctrl for what only a hypervisor has: without a logger, then with one that prints. */
#define XC_WANT_COMPAT_MAP_FOREIGN_API
#include <xenctrl.h>

#include "program.h"

static void print_message(xentoollog_logger *logger, xentoollog_level level, int errnoval,
			  const char *context, const char *format, va_list arguments)
{
	(void)logger;
	printf("log %d %d %s: ", level, errnoval, context);
	vprintf(format, arguments);
	printf("\n");
}

static void destroy(xentoollog_logger *logger) { (void)logger; }

int main(void)
{
	xentoollog_logger logger = {.vmessage = print_message, .destroy = destroy};
	xc_interface *quiet, *xch = xc_interface_open(NULL, NULL, 0);
	xen_pfn_t frames[1] = {0};
	xc_dominfo_t info;

	EXPECT(xch);
	EXPECT(xc_domain_pause(xch, 1) == -1 && errno == ENOSYS);
	EXPECT(xc_domain_pause(xch, 1) == -1 && errno == ENOSYS);
	EXPECT(!xc_map_foreign_pages(xch, 1, 1, frames, 1) && errno == ENOSYS);
	quiet = xch;
	xch = xc_interface_open(&logger, &logger, 0);
	EXPECT(xch);
	EXPECT(xc_domain_unpause(xch, 1) == -1 && errno == ENOSYS);
	EXPECT(xc_domain_unpause(xch, 1) == -1 && errno == ENOSYS);
	EXPECT(xc_get_tot_pages(xch, 1) == -1 && errno == ENOSYS);
	EXPECT(xc_get_last_error(xch)->code == XC_ERROR_NONE);
	EXPECT(xc_domain_getinfo(xch, 0, 1, &info) == -1);
	EXPECT(xc_get_last_error(xch)->code == XC_INTERNAL_ERROR);
	printf("last %s\n", xc_get_last_error(xch)->message);
	xc_clear_last_error(xch);
	EXPECT(xc_get_last_error(xch)->code == XC_ERROR_NONE);
	EXPECT(strcmp(xc_strerror(xch, ENOENT), strerror(ENOENT)) == 0);
	EXPECT(strcmp(xc_error_code_to_desc(XC_ERROR_NONE), "No error") == 0);
	EXPECT(xc_interface_close(quiet) == 0 && xc_interface_close(xch) == 0);
	EXPECT(xc_interface_close(NULL) == 0);
	return 0;
}
