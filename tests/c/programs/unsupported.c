/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Asks Xen's libraries for what only a hypervisor has: without a logger, then with one that prints:
 * unsupported ctrl|devices. */
#define XC_WANT_COMPAT_MAP_FOREIGN_API
#include <xenctrl.h>

#include <xenevtchn.h>
#include <xengnttab.h>

#include "../rig/program.h"

static void print_message(xentoollog_logger *logger, xentoollog_level level, int errnoval,
			  const char *context, const char *format, va_list arguments)
{
	(void)logger;
	printf("log %d %d %s: ", level, errnoval, context);
	vprintf(format, arguments);
	printf("\n");
}

static void destroy(xentoollog_logger *logger) { (void)logger; }

static xentoollog_logger logger = {.vmessage = print_message, .destroy = destroy};

static void ask_devices(xentoollog_logger *to)
{
	xenevtchn_handle *xce = xenevtchn_open(to, 0);
	xengnttab_handle *xgt = xengnttab_open(to, 0);
	xengntshr_handle *xgs = xengntshr_open(to, 0);

	EXPECT(xce && xgt && xgs);
	if (!to) {
		EXPECT(xenevtchn_bind_virq(xce, 0) == -1 && errno == ENOSYS);
		EXPECT(xenevtchn_bind_virq(xce, 0) == -1 && errno == ENOSYS);
		EXPECT(xengnttab_grant_copy(xgt, 0, NULL) == -1 && errno == ENOSYS);
		EXPECT(xengnttab_grant_copy(xgt, 0, NULL) == -1 && errno == ENOSYS);
	} else {
		EXPECT(xenevtchn_restrict(xce, 1) == -1 && errno == ENOSYS);
		EXPECT(xenevtchn_restrict(xce, 1) == -1 && errno == ENOSYS);
		EXPECT(!xenevtchn_fdopen(to, 0, 0) && errno == ENOSYS);
		EXPECT(xengntshr_fd(xgs) == -1 && errno == ENOSYS);
		EXPECT(xengntshr_fd(xgs) == -1 && errno == ENOSYS);
	}
	EXPECT(xenevtchn_close(xce) == 0);
	EXPECT(xengnttab_close(xgt) == 0 && xengntshr_close(xgs) == 0);
}

/* What none of ours answers without the daemon. */
static int ask_for_domain(xc_interface *xch)
{
#if XEN_MINOR >= 18
	return xc_domain_getinfo_single(xch, 0, NULL);
#else
	xc_dominfo_t info;

	return xc_domain_getinfo(xch, 0, 1, &info);
#endif
}

static void ask_ctrl(void)
{
	xc_interface *quiet, *xch = xc_interface_open(NULL, NULL, 0);
	xen_pfn_t frames[1] = {0};

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
	EXPECT(ask_for_domain(xch) == -1);
	EXPECT(xc_get_last_error(xch)->code == XC_INTERNAL_ERROR);
	printf("last %s\n", xc_get_last_error(xch)->message);
	xc_clear_last_error(xch);
	EXPECT(xc_get_last_error(xch)->code == XC_ERROR_NONE);
	EXPECT(strcmp(xc_strerror(xch, ENOENT), strerror(ENOENT)) == 0);
	EXPECT(strcmp(xc_error_code_to_desc(XC_ERROR_NONE), "No error") == 0);
	EXPECT(xc_interface_close(quiet) == 0 && xc_interface_close(xch) == 0);
	EXPECT(xc_interface_close(NULL) == 0);
}

int main(int argc, char **argv)
{
	EXPECT(argc == 2);
	if (strcmp(argv[1], "ctrl") == 0) {
		ask_ctrl();
		return 0;
	}
	ask_devices(NULL);
	ask_devices(&logger);
	return 0;
}
