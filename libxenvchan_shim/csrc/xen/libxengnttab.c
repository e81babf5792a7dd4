/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libxengnttab: pages that the daemon lets domains share.
 *
 * A share is memory of its own, which both sides map. Each side of it lives as long as its
 * connection to the daemon, or its mapping. The daemon does what was asked for at its end. A
 * mapping of pages from several shares consists of several mappings, one beside the other.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dataplane/error.h"
#include "ring/page.h"
#include "setup/daemon.h"
#include "xen/libxengnttab.h"

#define NO_OFFSET UINT32_MAX
#define NO_PORT UINT32_MAX

/* A share that is ours, or that we map pages of. */
struct share {
	struct share *next;
	int domain;
	uint32_t ref, pages;
	uint64_t offset;
	int memory_fd; /* -1: nothing more is to be mapped */
	struct connection control;
};

struct mapping {
	struct mapping *next;
	uint8_t *start;
	uint32_t pages;
	struct share *shares;
};

struct xengntdev_handle {
	struct xentoollog_logger *logger;
	pid_t process; /* the one that opened it */
	pthread_mutex_t lock;
	struct mapping *mappings; /* the youngest first */
};

static size_t bytes(uint32_t pages) { return (size_t)pages * PAGE; }

/* ---- shares ---- */

static struct share *share_add(struct mapping *mapping, const struct kvmchan_pages *pages)
{
	struct share *share = calloc(1, sizeof(*share));

	if (!share) {
		close(pages->memory_fd);
		close(pages->control_fd);
		fail(ENOMEM, "no memory for a share's descriptors");
		return NULL;
	}
	*share = (struct share){
	    .next = mapping->shares,
	    .domain = pages->peer,
	    .ref = (uint32_t)pages->ref,
	    .pages = pages->pages,
	    .offset = pages->offset,
	    .memory_fd = pages->memory_fd,
	    .control = connection_take(pages->control_fd),
	};
	mapping->shares = share;
	return share;
}

static bool has(const struct share *share, int domain, uint32_t ref)
{
	return share->domain == domain && ref - share->ref < share->pages;
}

/* Return the share that has @domain's page @ref: one that this mapping has already, or a new one.
 */
static struct share *share_of(struct mapping *mapping, int domain, uint32_t ref, int prot)
{
	struct kvmchan_pages pages = {
	    .peer = domain, .ref = ref, .writable = (prot & PROT_WRITE) != 0};
	struct share *share;

	for (share = mapping->shares; share; share = share->next)
		if (has(share, domain, ref))
			return share;
	return daemon_map(&pages) < 0 ? NULL : share_add(mapping, &pages);
}

static void close_memory(struct share *share)
{
	if (share->memory_fd >= 0)
		close(share->memory_fd);
	share->memory_fd = -1;
}

/* ---- mappings ---- */

/* Free a mapping. @end is called for the connection of each share. */
static void mapping_free(struct mapping *mapping, void (*end)(struct connection *connection))
{
	struct share *share;

	while ((share = mapping->shares)) {
		mapping->shares = share->next;
		close_memory(share);
		end(&share->control);
		free(share);
	}
	free(mapping);
}

static struct mapping *mapping_make(uint32_t pages)
{
	struct mapping *mapping = calloc(1, sizeof(*mapping));

	if (!mapping) {
		fail(ENOMEM, "no memory for a mapping");
		return NULL;
	}
	mapping->pages = pages;
	mapping->start =
	    mmap(NULL, bytes(pages), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (mapping->start == MAP_FAILED) {
		fail(errno, "there is no room for %u pages", pages);
		free(mapping);
		return NULL;
	}
	return mapping;
}

/* Unmap first, and tell the daemon then, because it may give the memory to others. */
static void mapping_unmap(struct mapping *mapping, void (*end)(struct connection *connection))
{
	int error = errno;

	munmap(mapping->start, bytes(mapping->pages));
	mapping_free(mapping, end);
	errno = error;
}

static void mapping_undo(struct mapping *mapping) { mapping_unmap(mapping, daemon_close); }

/* Map @pages of a share, from @ref on, at @at. */
static int place(uint8_t *at, const struct share *share, uint32_t ref, uint32_t pages, int prot)
{
	off_t offset = (off_t)(share->offset + bytes(ref - share->ref));

	if (mmap(at, bytes(pages), prot, MAP_SHARED | MAP_FIXED, share->memory_fd, offset) ==
	    MAP_FAILED)
		return fail(errno, "page %u of domain %d could not be mapped", ref, share->domain);
	return 0;
}

/* Return how many of the references follow one another in the share of the first. */
static uint32_t run_length(const struct share *share, uint32_t count, const int *domains,
			   const uint32_t *refs)
{
	uint32_t length = 1;

	while (length < count && refs[length] == refs[0] + length &&
	       has(share, domains[length], refs[length]))
		length++;
	return length;
}

static int fill(struct mapping *mapping, const int *domains, const uint32_t *refs, int prot)
{
	uint32_t done, length;
	struct share *share;

	for (done = 0; done < mapping->pages; done += length) {
		share = share_of(mapping, domains[done], refs[done], prot);
		if (!share)
			return -1;
		length = run_length(share, mapping->pages - done, domains + done, refs + done);
		if (place(mapping->start + bytes(done), share, refs[done], length, prot) < 0)
			return -1;
	}
	/* The mappings do not need the descriptors. */
	for (share = mapping->shares; share; share = share->next)
		close_memory(share);
	return 0;
}

static void *mapping_keep(struct xengntdev_handle *handle, struct mapping *mapping)
{
	pthread_mutex_lock(&handle->lock);
	mapping->next = handle->mappings;
	handle->mappings = mapping;
	pthread_mutex_unlock(&handle->lock);
	return mapping->start;
}

/* End what was mapped or shared in one piece. */
static int mapping_end(struct xengntdev_handle *handle, void *start, uint32_t pages)
{
	struct mapping **link, *mapping;

	pthread_mutex_lock(&handle->lock);
	/* Take the youngest: the program may have unmapped an older one there by itself. */
	for (link = &handle->mappings; (mapping = *link); link = &mapping->next)
		if (mapping->start == start && mapping->pages == pages)
			break;
	if (mapping)
		*link = mapping->next;
	pthread_mutex_unlock(&handle->lock);
	if (!mapping)
		return fail(EINVAL, "no %u pages are mapped at %p by this handle", pages, start);
	/* A child unmaps its own memory; the connection that it inherited is still the parent's. */
	mapping_unmap(mapping, handle->process == getpid() ? daemon_close : connection_close);
	return 0;
}

/* ---- what the daemon shall do at the end of a page ---- */

static int check_notify(uint32_t offset, uint32_t port, bool writable)
{
	if (offset != NO_OFFSET && offset >= PAGE)
		return fail(EINVAL, "byte %u is not in a page", offset);
	if (offset != NO_OFFSET && !writable)
		return fail(EINVAL, "clearing a byte needs a page that is mapped for writing");
	if (!port)
		return fail(EINVAL, "0 is no event channel");
	return 0;
}

static int set_notify(const struct mapping *mapping, uint32_t ref, uint32_t offset, uint32_t port)
{
	const struct share *share = mapping->shares;
	bool clears = offset != NO_OFFSET;

	if (!clears && port == NO_PORT)
		return 0;
	return daemon_notify(share->control.fd, bytes(ref - share->ref) + (clears ? offset : 0),
			     clears, port == NO_PORT ? 0 : port);
}

/* ---- handles ---- */

static struct xengntdev_handle *handle_open(struct xentoollog_logger *logger, const char *function)
{
	struct xengntdev_handle *handle = calloc(1, sizeof(*handle));

	if (!handle) {
		fail(ENOMEM, "no memory for a handle");
		error_log(logger, function);
		return NULL;
	}
	handle->logger = logger;
	handle->process = getpid();
	pthread_mutex_init(&handle->lock, NULL);
	return handle;
}

/* Close a handle. As on Xen, what is still mapped stays mapped, and a share lasts as long. A child
 * of the process that opened it has the mappings too, so only descriptors are closed. */
static int handle_close(struct xengntdev_handle *handle)
{
	struct mapping *mapping;

	if (!handle)
		return 0;
	while ((mapping = handle->mappings)) {
		handle->mappings = mapping->next;
		mapping_free(mapping, connection_close);
	}
	pthread_mutex_destroy(&handle->lock);
	free(handle);
	return 0;
}

static void *failed(const struct xengntdev_handle *handle, const char *function)
{
	error_log(handle->logger, function);
	return NULL;
}

xengnttab_handle *xengnttab_open(struct xentoollog_logger *logger, unsigned int flags)
{
	(void)flags;
	return handle_open(logger, "xengnttab_open");
}

int xengnttab_close(xengnttab_handle *xgt) { return handle_close(xgt); }

int xengnttab_fd(xengnttab_handle *xgt)
{
	return FAIL_UNSUPPORTED(xgt->logger, "there is no one descriptor of a handle");
}

int xengnttab_set_max_grants(xengnttab_handle *xgt, uint32_t nr_grants)
{
	(void)xgt;
	(void)nr_grants; /* the daemon's settings say how many */
	return 0;
}

xengntshr_handle *xengntshr_open(struct xentoollog_logger *logger, unsigned int flags)
{
	(void)flags;
	return handle_open(logger, "xengntshr_open");
}

int xengntshr_close(xengntshr_handle *xgs) { return handle_close(xgs); }

int xengntshr_fd(xengntshr_handle *xgs)
{
	return FAIL_UNSUPPORTED(xgs->logger, "there is no one descriptor of a handle");
}

/* ---- sharing ---- */

static struct mapping *share_make(uint32_t domid, int count, bool writable)
{
	struct kvmchan_pages pages = {.writable = writable};
	struct mapping *mapping;

	if (count <= 0) {
		fail(EINVAL, "%d pages can't be shared", count);
		return NULL;
	}
	pages.peer = daemon_domain(domid);
	pages.pages = (uint32_t)count;
	mapping = pages.peer < 0 ? NULL : mapping_make(pages.pages);
	if (!mapping)
		return NULL;
	if (daemon_share(&pages) == 0 && share_add(mapping, &pages) &&
	    place(mapping->start, mapping->shares, mapping->shares->ref, pages.pages,
		  PROT_READ | PROT_WRITE) == 0) {
		close_memory(mapping->shares);
		return mapping;
	}
	mapping_undo(mapping);
	return NULL;
}

void *xengntshr_share_pages(xengntshr_handle *xgs, uint32_t domid, int count, uint32_t *refs,
			    int writable)
{
	struct mapping *mapping = share_make(domid, count, writable);
	int i;

	if (!mapping)
		return failed(xgs, "xengntshr_share_pages");
	for (i = 0; i < count; i++)
		refs[i] = mapping->shares->ref + (uint32_t)i;
	return mapping_keep(xgs, mapping);
}

void *xengntshr_share_page_notify(xengntshr_handle *xgs, uint32_t domid, uint32_t *ref,
				  int writable, uint32_t notify_offset, uint32_t notify_port)
{
	struct mapping *mapping = NULL;

	if (check_notify(notify_offset, notify_port, true) == 0)
		mapping = share_make(domid, 1, writable);
	if (!mapping)
		return failed(xgs, "xengntshr_share_page_notify");
	*ref = mapping->shares->ref;
	if (set_notify(mapping, *ref, notify_offset, notify_port) < 0) {
		mapping_undo(mapping);
		return failed(xgs, "xengntshr_share_page_notify");
	}
	return mapping_keep(xgs, mapping);
}

int xengntshr_unshare(xengntshr_handle *xgs, void *start_address, uint32_t count)
{
	return mapping_end(xgs, start_address, count);
}

/* ---- mapping ---- */

/* Make a mapping. @domids are @count numbers, or a single one for all if @one. */
static struct mapping *map_make(uint32_t count, const uint32_t *domids, bool one,
				const uint32_t *refs, int prot)
{
	struct mapping *mapping;
	int *domains, result = 0;
	uint32_t i;

	if (!count) {
		fail(EINVAL, "0 pages to map: give how many");
		return NULL;
	}
	domains = calloc(count, sizeof(*domains));
	if (!domains) {
		fail(ENOMEM, "no memory to map %u pages", count);
		return NULL;
	}
	for (i = 0; i < count && result == 0; i++) {
		uint32_t domid = domids[one ? 0 : i];

		/* Ask the daemon only once, although DOMID_SELF may be there often. */
		domains[i] =
		    i && domid == domids[one ? 0 : i - 1] ? domains[i - 1] : daemon_domain(domid);
		result = domains[i] < 0 ? -1 : 0;
	}
	mapping = result < 0 ? NULL : mapping_make(count);
	if (mapping && fill(mapping, domains, refs, prot) < 0) {
		mapping_undo(mapping);
		mapping = NULL;
	}
	free(domains);
	return mapping;
}

void *xengnttab_map_grant_refs(xengnttab_handle *xgt, uint32_t count, uint32_t *domids,
			       uint32_t *refs, int prot)
{
	struct mapping *mapping = map_make(count, domids, false, refs, prot);

	return mapping ? mapping_keep(xgt, mapping) : failed(xgt, "xengnttab_map_grant_refs");
}

void *xengnttab_map_domain_grant_refs(xengnttab_handle *xgt, uint32_t count, uint32_t domid,
				      uint32_t *refs, int prot)
{
	struct mapping *mapping = map_make(count, &domid, true, refs, prot);

	return mapping ? mapping_keep(xgt, mapping)
		       : failed(xgt, "xengnttab_map_domain_grant_refs");
}

void *xengnttab_map_grant_ref(xengnttab_handle *xgt, uint32_t domid, uint32_t ref, int prot)
{
	struct mapping *mapping = map_make(1, &domid, true, &ref, prot);

	return mapping ? mapping_keep(xgt, mapping) : failed(xgt, "xengnttab_map_grant_ref");
}

void *xengnttab_map_grant_ref_notify(xengnttab_handle *xgt, uint32_t domid, uint32_t ref, int prot,
				     uint32_t notify_offset, uint32_t notify_port)
{
	struct mapping *mapping = NULL;

	if (check_notify(notify_offset, notify_port, prot & PROT_WRITE) == 0)
		mapping = map_make(1, &domid, true, &ref, prot);
	if (!mapping)
		return failed(xgt, "xengnttab_map_grant_ref_notify");
	if (set_notify(mapping, ref, notify_offset, notify_port) < 0) {
		mapping_undo(mapping);
		return failed(xgt, "xengnttab_map_grant_ref_notify");
	}
	return mapping_keep(xgt, mapping);
}

int xengnttab_unmap(xengnttab_handle *xgt, void *start_address, uint32_t count)
{
	return mapping_end(xgt, start_address, count);
}

/* ---- what has no use between processes ---- */

int xengnttab_grant_copy(xengnttab_handle *xgt, uint32_t count,
			 struct xengnttab_grant_copy_segment *segs)
{
	(void)count;
	(void)segs;
	return FAIL_UNSUPPORTED(xgt->logger, "map the pages instead");
}

int xengnttab_dmabuf_exp_from_refs(xengnttab_handle *xgt, uint32_t domid, uint32_t flags,
				   uint32_t count, const uint32_t *refs, uint32_t *fd)
{
	(void)domid;
	(void)flags;
	(void)count;
	(void)refs;
	(void)fd;
	return FAIL_UNSUPPORTED(xgt->logger, "there are no dma-bufs");
}

int xengnttab_dmabuf_exp_wait_released(xengnttab_handle *xgt, uint32_t fd, uint32_t wait_to_ms)
{
	(void)fd;
	(void)wait_to_ms;
	return FAIL_UNSUPPORTED(xgt->logger, "there are no dma-bufs");
}

int xengnttab_dmabuf_imp_to_refs(xengnttab_handle *xgt, uint32_t domid, uint32_t fd, uint32_t count,
				 uint32_t *refs)
{
	(void)domid;
	(void)fd;
	(void)count;
	(void)refs;
	return FAIL_UNSUPPORTED(xgt->logger, "there are no dma-bufs");
}

int xengnttab_dmabuf_imp_release(xengnttab_handle *xgt, uint32_t fd)
{
	(void)fd;
	return FAIL_UNSUPPORTED(xgt->logger, "there are no dma-bufs");
}
