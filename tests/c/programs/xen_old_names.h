/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Before a program: it calls libxenevtchn's and libxengnttab's functions by the names that
 * libxenctrl has for them. */
#ifndef XEN_OLD_NAMES_H
#define XEN_OLD_NAMES_H

#define xenevtchn_open xc_evtchn_open
#define xenevtchn_close xc_evtchn_close
#define xenevtchn_fd xc_evtchn_fd
#define xenevtchn_notify xc_evtchn_notify
#define xenevtchn_bind_unbound_port xc_evtchn_bind_unbound_port
#define xenevtchn_bind_interdomain xc_evtchn_bind_interdomain
#define xenevtchn_bind_virq xc_evtchn_bind_virq
#define xenevtchn_unbind xc_evtchn_unbind
#define xenevtchn_pending xc_evtchn_pending
#define xenevtchn_unmask xc_evtchn_unmask

#define xengnttab_open xc_gnttab_open
#define xengnttab_close xc_gnttab_close
#define xengnttab_map_grant_ref xc_gnttab_map_grant_ref
#define xengnttab_map_grant_refs xc_gnttab_map_grant_refs
#define xengnttab_map_domain_grant_refs xc_gnttab_map_domain_grant_refs
#define xengnttab_map_grant_ref_notify xc_gnttab_map_grant_ref_notify
#define xengnttab_unmap xc_gnttab_munmap
#define xengnttab_set_max_grants xc_gnttab_set_max_grants

#define xengntshr_open xc_gntshr_open
#define xengntshr_close xc_gntshr_close
#define xengntshr_share_pages xc_gntshr_share_pages
#define xengntshr_share_page_notify xc_gntshr_share_page_notify
#define xengntshr_unshare xc_gntshr_munmap

#endif
