/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* libxenevtchn's and libxengnttab's functions by the names that they had in libxenctrl, from where
 * programs still import them. */
#include "xen/libxenctrl.h"
#include "xen/libxenevtchn.h"
#include "xen/libxengnttab.h"

xenevtchn_handle *xc_evtchn_open(struct xentoollog_logger *logger, unsigned int flags)
{
	return xenevtchn_open(logger, flags);
}

int xc_evtchn_close(xenevtchn_handle *xce) { return xenevtchn_close(xce); }

int xc_evtchn_fd(xenevtchn_handle *xce) { return xenevtchn_fd(xce); }

int xc_evtchn_notify(xenevtchn_handle *xce, uint32_t port) { return xenevtchn_notify(xce, port); }

int xc_evtchn_bind_unbound_port(xenevtchn_handle *xce, uint32_t domid)
{
	return xenevtchn_bind_unbound_port(xce, domid);
}

int xc_evtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domid, uint32_t remote_port)
{
	return xenevtchn_bind_interdomain(xce, domid, remote_port);
}

int xc_evtchn_bind_virq(xenevtchn_handle *xce, unsigned int virq)
{
	return xenevtchn_bind_virq(xce, virq);
}

int xc_evtchn_unbind(xenevtchn_handle *xce, uint32_t port) { return xenevtchn_unbind(xce, port); }

int xc_evtchn_pending(xenevtchn_handle *xce) { return xenevtchn_pending(xce); }

int xc_evtchn_unmask(xenevtchn_handle *xce, uint32_t port) { return xenevtchn_unmask(xce, port); }

xengnttab_handle *xc_gnttab_open(struct xentoollog_logger *logger, unsigned int flags)
{
	return xengnttab_open(logger, flags);
}

int xc_gnttab_close(xengnttab_handle *xcg) { return xengnttab_close(xcg); }

void *xc_gnttab_map_grant_ref(xengnttab_handle *xcg, uint32_t domid, uint32_t ref, int prot)
{
	return xengnttab_map_grant_ref(xcg, domid, ref, prot);
}

void *xc_gnttab_map_grant_refs(xengnttab_handle *xcg, uint32_t count, uint32_t *domids,
			       uint32_t *refs, int prot)
{
	return xengnttab_map_grant_refs(xcg, count, domids, refs, prot);
}

void *xc_gnttab_map_domain_grant_refs(xengnttab_handle *xcg, uint32_t count, uint32_t domid,
				      uint32_t *refs, int prot)
{
	return xengnttab_map_domain_grant_refs(xcg, count, domid, refs, prot);
}

void *xc_gnttab_map_grant_ref_notify(xengnttab_handle *xcg, uint32_t domid, uint32_t ref, int prot,
				     uint32_t notify_offset, uint32_t notify_port)
{
	return xengnttab_map_grant_ref_notify(xcg, domid, ref, prot, notify_offset, notify_port);
}

int xc_gnttab_munmap(xengnttab_handle *xcg, void *start_address, uint32_t count)
{
	return xengnttab_unmap(xcg, start_address, count);
}

int xc_gnttab_set_max_grants(xengnttab_handle *xcg, uint32_t count)
{
	return xengnttab_set_max_grants(xcg, count);
}

xengntshr_handle *xc_gntshr_open(struct xentoollog_logger *logger, unsigned int flags)
{
	return xengntshr_open(logger, flags);
}

int xc_gntshr_close(xengntshr_handle *xcg) { return xengntshr_close(xcg); }

void *xc_gntshr_share_pages(xengntshr_handle *xcg, uint32_t domid, int count, uint32_t *refs,
			    int writable)
{
	return xengntshr_share_pages(xcg, domid, count, refs, writable);
}

void *xc_gntshr_share_page_notify(xengntshr_handle *xcg, uint32_t domid, uint32_t *ref,
				  int writable, uint32_t notify_offset, uint32_t notify_port)
{
	return xengntshr_share_page_notify(xcg, domid, ref, writable, notify_offset, notify_port);
}

int xc_gntshr_munmap(xengntshr_handle *xcg, void *start_address, uint32_t count)
{
	return xengntshr_unshare(xcg, start_address, count);
}
