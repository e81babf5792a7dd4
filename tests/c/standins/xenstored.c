/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Stand-in for libxenctrl, libxenevtchn and libxengnttab, so that a distribution's xenstored runs
 * without Xen. Whoever talks to it makes, in the folder XEN_STANDIN_DIR, a file ring-<domain> for
 * each domain that exists, which is its xenstore page; a FIFO `kick`, into which goes the port, in
 * four bytes, after each change of a page; and a file xsd_port with the number of domain 0's port.
 */
#define _GNU_SOURCE 1
#undef _FILE_OFFSET_BITS /* so that open() is called so */

#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xenctrl.h>
#include <xenevtchn.h>
#include <xengnttab.h>

#define PAGE 4096
#define NAME_ROOM 512
#define VIRQ_PORT 9999

struct xenevtchn_handle {
	int kick;
};

static const char *in_folder(char name[NAME_ROOM], const char *format, uint32_t domain)
{
	const char *folder = getenv("XEN_STANDIN_DIR");
	int length = snprintf(name, NAME_ROOM, "%s/", folder ? folder : "");

	snprintf(name + length, NAME_ROOM - (size_t)length, format, domain);
	return name;
}

/* ---- libxenctrl ---- */

/* Never looked into. */
static char handle;

xc_interface *xc_interface_open(xentoollog_logger *logger, xentoollog_logger *builder,
				unsigned int flags)
{
	(void)logger;
	(void)builder;
	(void)flags;
	return (xc_interface *)&handle;
}

int xc_interface_close(xc_interface *xch)
{
	(void)xch;
	return 0;
}

int xc_domain_getinfo(xc_interface *xch, uint32_t first, unsigned int max, xc_dominfo_t *info)
{
	char name[NAME_ROOM];

	(void)xch;
	(void)max;
	if (access(in_folder(name, "ring-%u", first), F_OK) < 0)
		return 0;
	memset(info, 0, sizeof(*info));
	info->domid = first;
	info->running = 1;
	return 1;
}

/* ---- libxenevtchn ---- */

xenevtchn_handle *xenevtchn_open(xentoollog_logger *logger, unsigned int flags)
{
	xenevtchn_handle *made = calloc(1, sizeof(*made));
	char name[NAME_ROOM];

	(void)logger;
	(void)flags;
	if (made)
		made->kick = open(in_folder(name, "kick", 0), O_RDWR | O_NONBLOCK, 0);
	return made;
}

xenevtchn_handle *xenevtchn_fdopen(xentoollog_logger *logger, int fd, unsigned int flags)
{
	(void)fd;
	return xenevtchn_open(logger, flags);
}

int xenevtchn_fd(xenevtchn_handle *xce) { return xce->kick; }

xenevtchn_port_or_error_t xenevtchn_bind_virq(xenevtchn_handle *xce, unsigned int virq)
{
	(void)xce;
	(void)virq;
	return VIRQ_PORT;
}

xenevtchn_port_or_error_t xenevtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domain,
						     evtchn_port_t port)
{
	(void)xce;
	(void)domain;
	return (xenevtchn_port_or_error_t)port;
}

int xenevtchn_unbind(xenevtchn_handle *xce, evtchn_port_t port)
{
	(void)xce;
	(void)port;
	return 0;
}

/* Who talks to it looks at the page. */
int xenevtchn_notify(xenevtchn_handle *xce, evtchn_port_t port)
{
	(void)xce;
	(void)port;
	return 0;
}

int xenevtchn_unmask(xenevtchn_handle *xce, evtchn_port_t port)
{
	(void)xce;
	(void)port;
	return 0;
}

xenevtchn_port_or_error_t xenevtchn_pending(xenevtchn_handle *xce)
{
	uint32_t port;

	return read(xce->kick, &port, sizeof(port)) == sizeof(port)
		   ? (xenevtchn_port_or_error_t)port
		   : -1;
}

/* ---- libxengnttab ---- */

xengnttab_handle *xengnttab_open(xentoollog_logger *logger, unsigned int flags)
{
	(void)logger;
	(void)flags;
	return (xengnttab_handle *)&handle;
}

int xengnttab_close(xengnttab_handle *xgt)
{
	(void)xgt;
	return 0;
}

int xengnttab_set_max_grants(xengnttab_handle *xgt, uint32_t most)
{
	(void)xgt;
	(void)most;
	return 0;
}

void *xengnttab_map_grant_ref(xengnttab_handle *xgt, uint32_t domain, uint32_t ref, int protection)
{
	char name[NAME_ROOM];
	int fd = open(in_folder(name, "ring-%u", domain), O_RDWR, 0);
	void *page = fd < 0 ? MAP_FAILED : mmap(NULL, PAGE, protection, MAP_SHARED, fd, 0);

	(void)xgt;
	(void)ref;
	if (fd >= 0)
		close(fd);
	return page == MAP_FAILED ? NULL : page;
}

int xengnttab_unmap(xengnttab_handle *xgt, void *start, uint32_t count)
{
	(void)xgt;
	(void)count;
	return munmap(start, PAGE);
}

/* ---- the kernel's ---- */

/* xenstored opens files of Linux's xenfs for domain 0. */
int open(const char *path, int flags, ...)
{
	static int (*next)(const char *, int, ...);
	char name[NAME_ROOM];
	va_list arguments;
	unsigned int mode;

	va_start(arguments, flags);
	mode = va_arg(arguments, unsigned int);
	va_end(arguments);
	if (!next)
		next = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
	if (strcmp(path, "/proc/xen/xsd_port") == 0)
		path = in_folder(name, "xsd_port", 0);
	else if (strcmp(path, "/proc/xen/xsd_kva") == 0)
		path = in_folder(name, "ring-%u", 0);
	return next(path, flags, mode);
}
