/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The part of libxenctrl that a program with vchans uses. The daemon knows the domains; fields that
 * it knows nothing about are 0. */
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dataplane/ends.h"
#include "dataplane/error.h"
#include "kvmchan.h"
#include "setup/daemon.h"
#include "xen/libxenctrl.h"
#include "xen/libxenctrl_unsupported.h"

struct xc_interface_core {
	struct xc_interface_core *next;
	struct xentoollog_logger *logger;
	struct xc_error last;
};

/* The open interfaces, the youngest first. */
static struct {
	pthread_mutex_t lock;
	xc_interface *first;
} interfaces = {.lock = PTHREAD_MUTEX_INITIALIZER};

xc_interface *xc_interface_open(struct xentoollog_logger *logger,
				struct xentoollog_logger *dombuild_logger, unsigned int flags)
{
	xc_interface *xch = calloc(1, sizeof(*xch));

	(void)dombuild_logger;
	(void)flags;
	if (!xch) {
		fail(ENOMEM, "no memory for an interface");
		error_log(logger, "xc_interface_open");
		return NULL;
	}
	xch->logger = logger;
	pthread_mutex_lock(&interfaces.lock);
	xch->next = interfaces.first;
	interfaces.first = xch;
	pthread_mutex_unlock(&interfaces.lock);
	return xch;
}

int xc_interface_close(xc_interface *xch)
{
	xc_interface **link;

	if (!xch)
		return 0;
	pthread_mutex_lock(&interfaces.lock);
	for (link = &interfaces.first; *link && *link != xch; link = &(*link)->next)
		;
	if (*link)
		*link = xch->next;
	pthread_mutex_unlock(&interfaces.lock);
	free(xch);
	return 0;
}

/* ---- errors ---- */

void xenctrl_unsupported(const char *function)
{
	struct xentoollog_logger *logger;

	fail(ENOSYS, "not emulated by kvmchan, which is no hypervisor");
	pthread_mutex_lock(&interfaces.lock);
	logger = interfaces.first ? interfaces.first->logger : NULL;
	if (logger)
		error_log(logger, function);
	else
		fprintf(stderr, "kvmchan: %s: %s\n", function, kvmchan_last_error());
	pthread_mutex_unlock(&interfaces.lock);
}

/* Keep and log the sentence of a failure. Returns -1. */
static int failed(xc_interface *xch, const char *function)
{
	xch->last.code = 1;
	snprintf(xch->last.message, sizeof(xch->last.message), "%s", kvmchan_last_error());
	error_log(xch->logger, function);
	return -1;
}

const struct xc_error *xc_get_last_error(xc_interface *xch) { return &xch->last; }

void xc_clear_last_error(xc_interface *xch) { xch->last = (struct xc_error){0}; }

const char *xc_error_code_to_desc(int code)
{
	static const char *const texts[] = {"No error", "Internal error", "Invalid kernel",
					    "Invalid parameter", "Out of memory"};

	if (code < 0 || (size_t)code >= sizeof(texts) / sizeof(*texts))
		return "Unknown error";
	return texts[code];
}

const char *xc_strerror(xc_interface *xch, int errcode)
{
	(void)xch;
	return strerror(errcode);
}

/* ---- domains ---- */

/* Call @tell for each domain from @first on, at most @max of them. Returns their number, or -1. */
static int each_domain(uint32_t first, unsigned int max,
		       void (*tell)(void *infos, unsigned int at, int domain), void *infos)
{
	unsigned int told = 0;
	int numbers[256];
	const unsigned int room = sizeof(numbers) / sizeof(*numbers);

	while (told < max && first <= INT_MAX) {
		struct kvmchan_domains domains = {
		    .first = (int)first,
		    .most = (int)(max - told < room ? max - told : room),
		    .numbers = numbers,
		};
		int i;

		if (daemon_domains(&domains) < 0)
			return -1;
		for (i = 0; i < domains.count; i++)
			tell(infos, told++, numbers[i]);
		if (domains.count < domains.most)
			break;
		first = (uint32_t)numbers[domains.count - 1] + 1;
	}
	return (int)told;
}

static void tell_domaininfo(void *infos, unsigned int at, int domain)
{
	((struct xc_domaininfo *)infos)[at] = (struct xc_domaininfo){
	    .domain = (uint16_t)domain,
	    .flags = XEN_DOMINF_running | (domain ? XEN_DOMINF_hvm_guest : 0),
	};
}

int xc_domain_getinfolist(xc_interface *xch, uint32_t first_domain, unsigned int max_domains,
			  struct xc_domaininfo *info)
{
	int count = each_domain(first_domain, max_domains, tell_domaininfo, info);

	return count < 0 ? failed(xch, "xc_domain_getinfolist") : count;
}

#if KVMCHAN_XEN_RELEASE >= 18
int xc_domain_getinfo_single(xc_interface *xch, uint32_t domid, struct xc_domaininfo *info)
{
	struct xc_domaininfo found;
	int count = each_domain(domid, 1, tell_domaininfo, &found);

	if (count < 0)
		return failed(xch, "xc_domain_getinfo_single");
	if (!count || found.domain != domid) {
		fail(ESRCH, "there is no domain %u", domid);
		return failed(xch, "xc_domain_getinfo_single");
	}
	if (info)
		*info = found;
	return 0;
}
#else
static void tell_dominfo(void *infos, unsigned int at, int domain)
{
	((struct xc_dominfo *)infos)[at] = (struct xc_dominfo){
	    .domid = (uint32_t)domain,
	    .running = 1,
	    .hvm = domain != 0,
	};
}

int xc_domain_getinfo(xc_interface *xch, uint32_t first_domid, unsigned int max_doms,
		      struct xc_dominfo *info)
{
	int count = each_domain(first_domid, max_doms, tell_dominfo, info);

	if (count < 0)
		return failed(xch, "xc_domain_getinfo");
	/* This is how Xen says that there are no more. */
	if (!count && max_doms)
		return fail(ESRCH, "there is no domain from %u on", first_domid);
	return count;
}
#endif

/* ---- event channels ---- */

enum {
	STATUS_CLOSED,
	STATUS_UNBOUND,
	STATUS_INTERDOMAIN,
};

static void fill_status(struct evtchn_status *status, const struct kvmchan_port *port)
{
	status->status = (uint32_t)port->state;
	status->vcpu = 0;
	memset(&status->u, 0, sizeof(status->u));
	if (port->state == STATUS_UNBOUND)
		status->u.unbound.dom = (uint16_t)port->peer;
	if (port->state == STATUS_INTERDOMAIN) {
		status->u.interdomain.dom = (uint16_t)port->peer;
		status->u.interdomain.port = (uint32_t)port->peer_port;
	}
}

/* Fill in the answer if the port is that of a vchan which this process has open. */
static bool find_vchan(struct kvmchan_port *port)
{
	bool is_there;

	if (port->of >= 0 || !ends_find((uint32_t)port->port, &port->peer, &is_there))
		return false;
	port->state = is_there ? STATUS_INTERDOMAIN : STATUS_UNBOUND;
	port->peer_port = port->port ^ 1;
	return true;
}

int xc_evtchn_status(xc_interface *xch, struct evtchn_status *status)
{
	struct kvmchan_port port = {
	    .of = status->dom == DOMAIN_SELF ? -1 : status->dom,
	    .port = status->port,
	};

	/* Logs nothing, as Xen's. */
	(void)xch;
	if (!find_vchan(&port) && daemon_port(&port) < 0)
		return -1;
	fill_status(status, &port);
	return 0;
}
