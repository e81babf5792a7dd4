/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Stand-in for libxengnttab.so.1, so that a distribution's libxenvchan runs without Xen.
 *
 * Each share call makes one file, grant-<owner>-<region>-<peer>, that both ends map. A grant
 * reference is the region's number and a page in it. The file goes when it is unshared or when the
 * handle closes; what a peer has mapped stays valid, as on Xen.
 */
#define _GNU_SOURCE 1

#include "standin.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xengnttab.h>

#define PAGE 4096UL
#define PAGE_BITS 12 /* of a reference: more pages than libxenvchan ever shares at once */

struct mapping {
	struct mapping *next;
	void *addr;
	uint8_t *clear; /* set to 0 when unmapped, or NULL */
	int notify_fd;	/* told when unmapped, or -1 */
	char *path;	/* of the file to remove, NULL on the side that did not make it */
};

struct xengntdev_handle {
	struct mapping *first;
};

static struct xengntdev_handle *handle_open(void)
{
	return standin_dir() ? calloc(1, sizeof(struct xengntdev_handle)) : NULL;
}

/* Ends what the mapping holds but leaves the memory mapped. */
static void mapping_free(struct mapping *m)
{
	if (m->path)
		unlink(m->path);
	if (m->notify_fd >= 0)
		close(m->notify_fd);
	free(m->path);
	free(m);
}

/* libxenvchan unmaps its rings with plain munmap: what is left in the list is not ours to unmap. */
static int handle_close(struct xengntdev_handle *h)
{
	struct mapping *m;

	if (!h)
		return 0;
	while ((m = h->first)) {
		h->first = m->next;
		mapping_free(m);
	}
	free(h);
	return 0;
}

/* Maps pages of an open file and remembers it. Consumes path, also on failure. */
static struct mapping *mapping_add(struct xengntdev_handle *h, int fd, unsigned long page,
				   unsigned long count, int prot, char *path)
{
	struct mapping *m = calloc(1, sizeof(*m));

	if (!m) {
		free(path);
		return NULL;
	}
	m->notify_fd = -1;
	m->path = path;
	m->addr = mmap(NULL, count * PAGE, prot, MAP_SHARED, fd, (off_t)(page * PAGE));
	if (m->addr == MAP_FAILED) {
		mapping_free(m);
		return NULL;
	}
	m->next = h->first;
	h->first = m;
	return m;
}

static int mapping_remove(struct xengntdev_handle *h, void *addr, uint32_t count)
{
	struct mapping **link, *m;
	const uint64_t one = 1;
	int rc = 0;

	for (link = &h->first; (m = *link) && m->addr != addr; link = &m->next)
		;
	if (!m) {
		errno = EINVAL;
		return -1;
	}
	*link = m->next;
	if (m->clear)
		*m->clear = 0;
	if (m->notify_fd >= 0 && write(m->notify_fd, &one, sizeof(one)) != sizeof(one))
		rc = -1;
	if (munmap(addr, count * PAGE))
		rc = -1;
	mapping_free(m);
	return rc;
}

/* The port's own fd may be closed before the page is unmapped, so a duplicate is kept. */
static int set_notify(struct mapping *m, uint32_t domid, uint32_t offset, evtchn_port_t port)
{
	char path[PATH_MAX];
	int pid, wait_fd, notify_fd, found;
	FILE *f;

	if (offset != UINT32_MAX) {
		if (offset >= PAGE) {
			errno = EINVAL;
			return -1;
		}
		m->clear = (uint8_t *)m->addr + offset;
	}
	if (port == UINT32_MAX)
		return 0;
	if (standin_name(path, "evtchn", standin_domid(), port, domid))
		return -1;
	f = fopen(path, "re");
	if (!f)
		return -1;
	found = fscanf(f, "%d %d %d", &pid, &wait_fd, &notify_fd);
	fclose(f);
	if (found != 3 || pid != getpid()) {
		errno = EINVAL;
		return -1;
	}
	m->notify_fd = fcntl(notify_fd, F_DUPFD_CLOEXEC, 0);
	return m->notify_fd < 0 ? -1 : 0;
}

/* A mapping whose notification cannot be set up is undone without sending one. */
static void *with_notify(struct xengntdev_handle *h, void *addr, uint32_t domid, uint32_t offset,
			 evtchn_port_t port)
{
	if (!addr)
		return NULL;
	if (set_notify(h->first, domid, offset, port)) {
		h->first->clear = NULL;
		mapping_remove(h, addr, 1);
		return NULL;
	}
	return addr;
}

xengntshr_handle *xengntshr_open(struct xentoollog_logger *logger, unsigned int open_flags)
{
	(void)logger;
	(void)open_flags;
	return handle_open();
}

int xengntshr_close(xengntshr_handle *xgs) { return handle_close(xgs); }

void *xengntshr_share_pages(xengntshr_handle *xgs, uint32_t domid, int count, uint32_t *refs,
			    int writable)
{
	char path[PATH_MAX], *kept;
	struct mapping *m = NULL;
	unsigned int region;
	int fd;

	(void)writable;
	if (count <= 0 || count > 1 << PAGE_BITS) {
		errno = EINVAL;
		return NULL;
	}
	fd = standin_claim(path, "grant", domid, &region);
	if (fd < 0)
		return NULL;
	kept = strdup(path);
	if (!kept || ftruncate(fd, (off_t)((unsigned long)count * PAGE))) {
		unlink(path);
		free(kept);
	} else {
		m = mapping_add(xgs, fd, 0, (unsigned long)count, PROT_READ | PROT_WRITE, kept);
	}
	close(fd);
	if (!m)
		return NULL;
	for (int i = 0; i < count; i++)
		refs[i] = region << PAGE_BITS | (uint32_t)i;
	return m->addr;
}

void *xengntshr_share_page_notify(xengntshr_handle *xgs, uint32_t domid, uint32_t *ref,
				  int writable, uint32_t notify_offset, evtchn_port_t notify_port)
{
	void *addr = xengntshr_share_pages(xgs, domid, 1, ref, writable);

	return with_notify(xgs, addr, domid, notify_offset, notify_port);
}

int xengntshr_unshare(xengntshr_handle *xgs, void *start_address, uint32_t count)
{
	return mapping_remove(xgs, start_address, count);
}

xengnttab_handle *xengnttab_open(struct xentoollog_logger *logger, unsigned int open_flags)
{
	(void)logger;
	(void)open_flags;
	return handle_open();
}

int xengnttab_close(xengnttab_handle *xgt) { return handle_close(xgt); }

void *xengnttab_map_domain_grant_refs(xengnttab_handle *xgt, uint32_t count, uint32_t domid,
				      uint32_t *refs, int prot)
{
	const uint32_t page = refs[0] & ((1U << PAGE_BITS) - 1);
	struct mapping *m = NULL;
	char path[PATH_MAX];
	struct stat st;
	int fd;

	for (uint32_t i = 0; i < count; i++) {
		if (refs[i] != refs[0] + i) {
			errno = EINVAL;
			return NULL;
		}
	}
	if (standin_name(path, "grant", domid, refs[0] >> PAGE_BITS, standin_domid()))
		return NULL;
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	if (!fstat(fd, &st) && (uint64_t)st.st_size >= ((uint64_t)page + count) * PAGE)
		m = mapping_add(xgt, fd, page, count, prot, NULL);
	else
		errno = EINVAL;
	close(fd);
	return m ? m->addr : NULL;
}

void *xengnttab_map_grant_ref_notify(xengnttab_handle *xgt, uint32_t domid, uint32_t ref, int prot,
				     uint32_t notify_offset, evtchn_port_t notify_port)
{
	void *addr = xengnttab_map_domain_grant_refs(xgt, 1, domid, &ref, prot);

	return with_notify(xgt, addr, domid, notify_offset, notify_port);
}

int xengnttab_unmap(xengnttab_handle *xgt, void *start_address, uint32_t count)
{
	return mapping_remove(xgt, start_address, count);
}
