/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The functions and structures of libxenctrl.so.<release> that we emulate; see libxenevtchn.h.
 * KVMCHAN_XEN_RELEASE is 14 for 4.14, and so on. */
#ifndef KVMCHAN_LIBXENCTRL_H
#define KVMCHAN_LIBXENCTRL_H

#include <stdint.h>

#include "libxenvchan.h"

#pragma GCC visibility push(default)

typedef struct xc_interface_core xc_interface;

xc_interface *xc_interface_open(struct xentoollog_logger *logger,
				struct xentoollog_logger *dombuild_logger, unsigned int flags);
int xc_interface_close(xc_interface *xch);

struct xc_error {
	int code; /* 0: none, 1: internal error; we never return others */
	char message[1024];
};

const struct xc_error *xc_get_last_error(xc_interface *xch);
void xc_clear_last_error(xc_interface *xch);
const char *xc_error_code_to_desc(int code);
const char *xc_strerror(xc_interface *xch, int errcode);

struct evtchn_status {
	uint16_t dom; /* in */
	uint32_t port;
	uint32_t status; /* out */
	uint32_t vcpu;
	union {
		struct {
			uint16_t dom;
		} unbound;
		struct {
			uint16_t dom;
			uint32_t port;
		} interdomain;
		uint32_t pirq;
		uint32_t virq;
	} u;
};

int xc_evtchn_status(xc_interface *xch, struct evtchn_status *status);

/* struct xen_arch_domainconfig: only its size matters here. */
struct arch_config {
#if defined(__arm__) || defined(__aarch64__)
	uint32_t words[3];
#elif KVMCHAN_XEN_RELEASE >= 15
	uint32_t words[2];
#else
	uint32_t words[1];
#endif
};

/* xc_domaininfo_t, and Xen's struct xen_domctl_getdomaininfo. */
struct xc_domaininfo {
	uint16_t domain, pad1;
	uint32_t flags;
	uint64_t __attribute__((aligned(8))) tot_pages;
	uint64_t max_pages, outstanding_pages, shr_pages, paged_pages, shared_info_frame, cpu_time;
	uint32_t nr_online_vcpus, max_vcpu_id, ssidref;
	uint8_t handle[16];
	uint32_t cpupool;
#if KVMCHAN_XEN_RELEASE >= 16
	uint8_t gpaddr_bits, pad2[7];
#endif
	struct arch_config arch_config;
};

#define XEN_DOMINF_hvm_guest (1u << 1)
#define XEN_DOMINF_running (1u << 5)

int xc_domain_getinfolist(xc_interface *xch, uint32_t first_domain, unsigned int max_domains,
			  struct xc_domaininfo *info);

#if KVMCHAN_XEN_RELEASE >= 18
int xc_domain_getinfo_single(xc_interface *xch, uint32_t domid, struct xc_domaininfo *info);
#else
/* xc_dominfo_t */
struct xc_dominfo {
	uint32_t domid, ssidref;
	unsigned int dying : 1, crashed : 1, shutdown : 1, paused : 1, blocked : 1, running : 1,
	    hvm : 1, debugged : 1, xenstore : 1, hap : 1;
	unsigned int shutdown_reason;
	unsigned long nr_pages, nr_outstanding_pages, nr_shared_pages, nr_paged_pages;
	unsigned long shared_info_frame;
	uint64_t cpu_time;
	unsigned long max_memkb;
	unsigned int nr_online_vcpus, max_vcpu_id;
	uint8_t handle[16];
	unsigned int cpupool;
#if KVMCHAN_XEN_RELEASE >= 16
	uint8_t gpaddr_bits;
#endif
	struct arch_config arch_config;
};

int xc_domain_getinfo(xc_interface *xch, uint32_t first_domid, unsigned int max_doms,
		      struct xc_dominfo *info);
#endif

/* What libxenctrl had before libxenevtchn and libxengnttab were split from it. */
xenevtchn_handle *xc_evtchn_open(struct xentoollog_logger *logger, unsigned int flags);
int xc_evtchn_close(xenevtchn_handle *xce);
int xc_evtchn_fd(xenevtchn_handle *xce);
int xc_evtchn_notify(xenevtchn_handle *xce, uint32_t port);
int xc_evtchn_bind_unbound_port(xenevtchn_handle *xce, uint32_t domid);
int xc_evtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domid, uint32_t remote_port);
int xc_evtchn_bind_virq(xenevtchn_handle *xce, unsigned int virq);
int xc_evtchn_unbind(xenevtchn_handle *xce, uint32_t port);
int xc_evtchn_pending(xenevtchn_handle *xce);
int xc_evtchn_unmask(xenevtchn_handle *xce, uint32_t port);
xengnttab_handle *xc_gnttab_open(struct xentoollog_logger *logger, unsigned int flags);
int xc_gnttab_close(xengnttab_handle *xcg);
void *xc_gnttab_map_grant_ref(xengnttab_handle *xcg, uint32_t domid, uint32_t ref, int prot);
void *xc_gnttab_map_grant_refs(xengnttab_handle *xcg, uint32_t count, uint32_t *domids,
			       uint32_t *refs, int prot);
void *xc_gnttab_map_domain_grant_refs(xengnttab_handle *xcg, uint32_t count, uint32_t domid,
				      uint32_t *refs, int prot);
void *xc_gnttab_map_grant_ref_notify(xengnttab_handle *xcg, uint32_t domid, uint32_t ref, int prot,
				     uint32_t notify_offset, uint32_t notify_port);
int xc_gnttab_munmap(xengnttab_handle *xcg, void *start_address, uint32_t count);
int xc_gnttab_set_max_grants(xengnttab_handle *xcg, uint32_t count);
xengntshr_handle *xc_gntshr_open(struct xentoollog_logger *logger, unsigned int flags);
int xc_gntshr_close(xengntshr_handle *xcg);
void *xc_gntshr_share_pages(xengntshr_handle *xcg, uint32_t domid, int count, uint32_t *refs,
			    int writable);
void *xc_gntshr_share_page_notify(xengntshr_handle *xcg, uint32_t domid, uint32_t *ref,
				  int writable, uint32_t notify_offset, uint32_t notify_port);
int xc_gntshr_munmap(xengntshr_handle *xcg, void *start_address, uint32_t count);

#pragma GCC visibility pop

#endif
