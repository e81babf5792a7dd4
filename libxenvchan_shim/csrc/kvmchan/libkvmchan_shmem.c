/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libkvmchan's shared memory: pages from the daemon, shared or mapped. A region lasts until it or
 * its handle is closed, or the process ends.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dataplane/error.h"
#include "libkvmchan.h"
#include "ring/page.h"
#include "setup/daemon.h"
#include "setup/peer.h"

struct region {
	struct region *next;
	void *memory;
	size_t size;
	uint32_t peer, id;
	struct connection control; /* the region lasts as long as this */
};

struct libkvmchan_shmem {
	pthread_mutex_t lock; /* of regions */
	struct region *regions;
};

struct libkvmchan_shmem *libkvmchan_shmem_start(void)
{
	struct libkvmchan_shmem *handle;

	/* Fail if no daemon answers. */
	if (daemon_own() < 0)
		return NULL;
	handle = calloc(1, sizeof(*handle));
	if (!handle) {
		fail(ENOMEM, "no memory for a handle of shared memory");
		return NULL;
	}
	pthread_mutex_init(&handle->lock, NULL);
	return handle;
}

static void end_region(struct region *region)
{
	if (region->memory != MAP_FAILED)
		munmap(region->memory, region->size);
	daemon_close(&region->control);
	free(region);
}

void libkvmchan_shmem_end(struct libkvmchan_shmem *handle)
{
	int error = errno;

	if (!handle)
		return;
	while (handle->regions) {
		struct region *region = handle->regions;

		handle->regions = region->next;
		end_region(region);
	}
	pthread_mutex_destroy(&handle->lock);
	free(handle);
	errno = error;
}

/* Ask the daemon for pages with @ask, map them, and add them to the handle. */
static struct region *new_region(struct libkvmchan_shmem *handle, struct kvmchan_pages *pages,
				 int (*ask)(struct kvmchan_pages *))
{
	struct region *region = calloc(1, sizeof(*region));
	int error;

	if (!region) {
		fail(ENOMEM, "no memory for a region");
		return NULL;
	}
	if (ask(pages) < 0) {
		free(region);
		return NULL;
	}
	*region = (struct region){
	    .size = (size_t)pages->pages * PAGE,
	    .peer = (uint32_t)pages->peer,
	    .id = (uint32_t)pages->ref,
	    .control = connection_take(pages->control_fd),
	};
	region->memory = mmap(NULL, region->size, PROT_READ | PROT_WRITE, MAP_SHARED,
			      pages->memory_fd, (off_t)pages->offset);
	error = errno;
	close(pages->memory_fd);
	if (region->memory == MAP_FAILED) {
		end_region(region);
		fail(error, "%u shared pages could not be mapped", pages->pages);
		return NULL;
	}
	pthread_mutex_lock(&handle->lock);
	region->next = handle->regions;
	handle->regions = region;
	pthread_mutex_unlock(&handle->lock);
	return region;
}

void *libkvmchan_shmem_region_create(struct libkvmchan_shmem *handle, uint32_t client_dom,
				     uint32_t page_count, uint32_t *region_id_out)
{
	struct kvmchan_pages pages = {.peer = (int)client_dom, .pages = page_count, .writable = 1};
	struct region *region;

	if (check_domain(client_dom) < 0)
		return NULL;
	if (page_count == 0) {
		fail(EINVAL, "no pages to share: give how many");
		return NULL;
	}
	region = new_region(handle, &pages, daemon_share);
	if (!region)
		return NULL;
	*region_id_out = region->id;
	return region->memory;
}

void *libkvmchan_shmem_region_connect(struct libkvmchan_shmem *handle, uint32_t server_dom,
				      uint32_t region_id)
{
	struct kvmchan_pages pages = {.peer = (int)server_dom, .ref = region_id, .writable = 1};
	struct region *region;

	if (check_domain(server_dom) < 0)
		return NULL;
	region = new_region(handle, &pages, daemon_map);
	return region ? region->memory : NULL;
}

/* End the region at @memory, or if that is NULL the latest one with @peer's number @id. Returns -1
 * if there is none. */
static int close_region(struct libkvmchan_shmem *handle, const void *memory, uint32_t peer,
			uint32_t id)
{
	struct region **at, *found;

	pthread_mutex_lock(&handle->lock);
	for (at = &handle->regions; (found = *at); at = &found->next)
		if (memory ? found->memory == memory : found->peer == peer && found->id == id)
			break;
	if (found)
		*at = found->next;
	pthread_mutex_unlock(&handle->lock);
	if (!found)
		return -1;
	end_region(found);
	return 0;
}

int libkvmchan_shmem_region_close(struct libkvmchan_shmem *handle, void *ptr)
{
	if (!ptr || close_region(handle, ptr, 0, 0) < 0)
		return fail(EINVAL, "no shared region of this handle is at %p", ptr);
	return 0;
}

int libkvmchan_shmem_region_close_by_id(struct libkvmchan_shmem *handle, uint32_t peer_dom,
					uint32_t region_id)
{
	if (close_region(handle, NULL, peer_dom, region_id) < 0)
		return fail(EINVAL, "this handle has no region %u with domain %u", region_id,
			    peer_dom);
	return 0;
}
