/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Prints the layout of the structures that libxenctrl fills in. Compiled with Xen's header and with
 * OURS, for a test to compare; KVMCHAN_XEN_RELEASE is 17 for 4.17, and so on. */
#ifdef OURS
#include "xen/libxenctrl.h"
typedef struct evtchn_status xc_evtchn_status_t;
typedef struct xc_domaininfo xc_domaininfo_t;
#if KVMCHAN_XEN_RELEASE < 18
typedef struct xc_dominfo xc_dominfo_t;
#endif
typedef struct xc_error xc_error;
#else
#include <xenctrl.h>
#endif
#include <stddef.h>
#include <stdio.h>

#define SIZE(type) printf(#type " size %zu\n", sizeof(type))
#define FIELD(type, field)                                                                         \
	printf(#type " " #field " at %zu size %zu\n", offsetof(type, field),                       \
	       sizeof(((type *)0)->field))

int main(void)
{
	SIZE(xc_evtchn_status_t);
	FIELD(xc_evtchn_status_t, dom);
	FIELD(xc_evtchn_status_t, port);
	FIELD(xc_evtchn_status_t, status);
	FIELD(xc_evtchn_status_t, vcpu);
	FIELD(xc_evtchn_status_t, u.unbound.dom);
	FIELD(xc_evtchn_status_t, u.interdomain.dom);
	FIELD(xc_evtchn_status_t, u.interdomain.port);
	FIELD(xc_evtchn_status_t, u.virq);
	SIZE(xc_error);
	FIELD(xc_error, code);
	FIELD(xc_error, message);
	SIZE(xc_domaininfo_t);
	FIELD(xc_domaininfo_t, domain);
	FIELD(xc_domaininfo_t, flags);
	FIELD(xc_domaininfo_t, tot_pages);
	FIELD(xc_domaininfo_t, shared_info_frame);
	FIELD(xc_domaininfo_t, cpu_time);
	FIELD(xc_domaininfo_t, nr_online_vcpus);
	FIELD(xc_domaininfo_t, handle);
	FIELD(xc_domaininfo_t, cpupool);
	FIELD(xc_domaininfo_t, arch_config);
#if KVMCHAN_XEN_RELEASE >= 16
	FIELD(xc_domaininfo_t, gpaddr_bits);
#endif
#if KVMCHAN_XEN_RELEASE < 18
	SIZE(xc_dominfo_t);
	FIELD(xc_dominfo_t, domid);
	FIELD(xc_dominfo_t, ssidref);
	FIELD(xc_dominfo_t, shutdown_reason);
	FIELD(xc_dominfo_t, nr_pages);
	FIELD(xc_dominfo_t, cpu_time);
	FIELD(xc_dominfo_t, max_memkb);
	FIELD(xc_dominfo_t, nr_online_vcpus);
	FIELD(xc_dominfo_t, max_vcpu_id);
	FIELD(xc_dominfo_t, handle);
	FIELD(xc_dominfo_t, cpupool);
	FIELD(xc_dominfo_t, arch_config);
#endif
	return 0;
}
