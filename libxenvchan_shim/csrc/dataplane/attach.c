/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An end's set-up and take-down on memory that the daemon granted. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "dataplane/end.h"
#include "dataplane/error.h"
#include "dataplane/way.h"
#include "ring/atomics.h"
#include "ring/page.h"

#define ORDER_IN_PAGE_MAX 11
#define ORDER_MAX 30

/*
 * Where each ring's indexes are: in the page's grants, which are unused here, with a cache line
 * boundary between cons and prod. In Xen's place they would lie beside each other and the live and
 * notify bytes, and one cache line would move between the two ends at every call. There the page
 * shows the indexes as of the last request for an event (way_show).
 */
#define LEFT_INDEXES 252
#define RIGHT_INDEXES 508
#define BETWEEN_LINES(offset) (((offset) + sizeof(uint32_t)) % 128 == 0)

_Static_assert(BETWEEN_LINES(LEFT_INDEXES) && BETWEEN_LINES(RIGHT_INDEXES), "one end's line each");
_Static_assert(sizeof(struct ring_shared) == 8, "Xen's ABI");

_Static_assert(offsetof(struct vchan_interface, left) == 0, "Xen's ABI");
_Static_assert(offsetof(struct vchan_interface, right) == 8, "Xen's ABI");
_Static_assert(offsetof(struct vchan_interface, left_order) == 16, "Xen's ABI");
_Static_assert(offsetof(struct vchan_interface, right_order) == 18, "Xen's ABI");
_Static_assert(offsetof(struct vchan_interface, cli_live) == 20, "Xen's ABI");
_Static_assert(offsetof(struct vchan_interface, srv_live) == 21, "Xen's ABI");
_Static_assert(offsetof(struct vchan_interface, cli_notify) == 22, "Xen's ABI");
_Static_assert(offsetof(struct vchan_interface, srv_notify) == 23, "Xen's ABI");
_Static_assert(offsetof(struct vchan_interface, grants) == 24, "Xen's ABI");
#ifdef __LP64__
_Static_assert(offsetof(struct libxenvchan, ring) == 8, "Xen's ABI");
_Static_assert(offsetof(struct libxenvchan, event) == 16, "Xen's ABI");
_Static_assert(offsetof(struct libxenvchan, event_port) == 24, "Xen's ABI");
_Static_assert(offsetof(struct libxenvchan, read) == 32, "Xen's ABI");
_Static_assert(offsetof(struct libxenvchan, write) == 56, "Xen's ABI");
_Static_assert(offsetof(struct libxenvchan, xs_path) == 80, "Xen's ABI");
_Static_assert(sizeof(struct libxenvchan) == 88, "Xen's ABI");
#endif

/* Return where a ring of @order starts. A ring with pages of its own lies at @after_page. */
static size_t ring_offset(uint32_t order, size_t after_page)
{
	return order > ORDER_IN_PAGE_MAX ? after_page : (size_t)1 << order;
}

static size_t ring_pages(uint32_t order)
{
	return order > ORDER_IN_PAGE_MAX ? (size_t)1 << order : 0;
}

/* Check that @size bytes of a file can be mapped at @offset. */
static int check_offset(const char *what, uint64_t offset, size_t size)
{
	if (offset % PAGE || offset > (uint64_t)INT64_MAX - size)
		return fail(EINVAL, "the daemon granted %s at %llu, an offset that mmap refuses",
			    what, (unsigned long long)offset);
	return 0;
}

static int check_grant(const struct kvmchan_grant *grant, size_t *size)
{
	uint32_t left = grant->left_order, right = grant->right_order;
	bool device = events_have_doorbell(grant->events);
	struct stat status;

	if (grant->events > KVMCHAN_EVENTS_SHARED_DOORBELL)
		return fail(
		    EINVAL,
		    "the daemon granted events of the unknown kind %u: use the same release",
		    grant->events);
	if (left < 10 || right < 10 || left > ORDER_MAX || right > ORDER_MAX ||
	    (left == right && left <= ORDER_IN_PAGE_MAX))
		return fail(EINVAL,
			    "the daemon granted rings of orders %u and %u, which are invalid", left,
			    right);
	*size = PAGE + ring_pages(left) + ring_pages(right);
	if (check_offset("memory", grant->offset, *size) < 0 ||
	    (device && check_offset("a doorbell", grant->doorbell, PAGE) < 0))
		return -1;
	if (fstat(grant->region_fd, &status) < 0)
		return fail(errno, "the channel's memory could not be examined");
	/* A device has no size. mmap fails on what lies outside of it. */
	if (!device && (status.st_size < 0 || (uint64_t)status.st_size < grant->offset + *size))
		return fail(EINVAL,
			    "the daemon granted %lld bytes of memory for rings that need %zu, "
			    "from byte %llu on",
			    (long long)status.st_size, *size, (unsigned long long)grant->offset);
	return 0;
}

static void vchan_lay_out(struct vchan *v, const struct kvmchan_grant *grant)
{
	struct vchan_interface *page = v->page;
	uint8_t *base = (uint8_t *)page;
	struct ring_shared *left_indexes = (struct ring_shared *)(base + LEFT_INDEXES);
	struct ring_shared *right_indexes = (struct ring_shared *)(base + RIGHT_INDEXES);
	struct ring left = {
	    .buffer = base + ring_offset(grant->left_order, PAGE),
	    .size = 1u << grant->left_order,
	};
	struct ring right = {
	    .buffer = base + ring_offset(grant->right_order, PAGE + ring_pages(grant->left_order)),
	    .size = 1u << grant->right_order,
	};
	bool server = grant->is_server;

	/* left: the client writes, the server reads. */
	left.produces = !server;
	left.own_index = server ? &left_indexes->cons : &left_indexes->prod;
	left.peer_index = server ? &left_indexes->prod : &left_indexes->cons;
	right.produces = server;
	right.own_index = server ? &right_indexes->prod : &right_indexes->cons;
	right.peer_index = server ? &right_indexes->cons : &right_indexes->prod;

	v->in.ring = server ? left : right;
	v->in.shown = server ? &page->left.cons : &page->right.cons;
	v->in.asks = VCHAN_NOTIFY_WRITE;
	v->out.ring = server ? right : left;
	v->out.shown = server ? &page->right.prod : &page->left.prod;
	v->out.asks = VCHAN_NOTIFY_READ;
	v->own_live = server ? &page->srv_live : &page->cli_live;
	v->peer_live = server ? &page->cli_live : &page->srv_live;
	v->ask = server ? &page->cli_notify : &page->srv_notify;
	v->asked = server ? &page->srv_notify : &page->cli_notify;

	v->ctrl.ring = page;
	v->ctrl.is_server = server ? -1 : 0;
	v->ctrl.event = &v->event.handle;
	v->ctrl.event_port = grant_port(grant);
	v->ctrl.read.shr = server ? left_indexes : right_indexes;
	v->ctrl.read.order = (int)(server ? grant->left_order : grant->right_order);
	v->ctrl.read.buffer = v->in.ring.buffer;
	v->ctrl.write.shr = server ? right_indexes : left_indexes;
	v->ctrl.write.order = (int)(server ? grant->right_order : grant->left_order);
	v->ctrl.write.buffer = v->out.ring.buffer;
}

/* As on Xen, only a server's end has its path. */
static int set_path(struct vchan *v, const struct kvmchan_grant *grant)
{
	v->ctrl.xs_path = strndup(grant->path, sizeof(grant->path));
	return v->ctrl.xs_path ? 0 : fail(ENOMEM, "no memory for a vchan");
}

/* Start from the indexes in the page: a client goes on where the one before it stopped, a server
 * has zeroed memory. */
static int vchan_resume(struct vchan *v)
{
	struct ring *in = &v->in.ring, *out = &v->out.ring;

	in->own = shared_observe(in->own_index);
	out->own = shared_observe(out->own_index);
	if (ring_look(in) == RING_BROKEN || ring_look(out) == RING_BROKEN)
		return fail(EPROTO, "the server's ring indexes are impossible");
	return 0;
}

/* Take a client's place in the page. The daemon wrote the server's part before anyone could
 * connect.
 */
static void vchan_arrive(struct vchan *v, const struct kvmchan_grant *grant)
{
	if (grant->is_server)
		return;
	shared_set_live(v->own_live, 1);
	shared_request_only(v->ask, VCHAN_NOTIFY_WRITE);
	event_send(&v->event);
}

struct libxenvchan *kvmchan_attach(const struct kvmchan_grant *grant)
{
	struct vchan *v = aligned_alloc(_Alignof(struct vchan), sizeof(*v));
	int error;

	if (!v) {
		fail(ENOMEM, "no memory for a vchan");
		goto undo;
	}
	memset(v, 0, sizeof(*v));
	event_take_over(&v->event, grant);
	if (check_grant(grant, &v->size) < 0 || event_prepare(&v->event, grant) < 0)
		goto undo;
	v->page = mmap(NULL, v->size, PROT_READ | PROT_WRITE, MAP_SHARED, grant->region_fd,
		       (off_t)grant->offset);
	if (v->page == MAP_FAILED) {
		v->page = NULL;
		fail(errno, "%zu bytes of the channel's memory could not be mapped", v->size);
		goto undo;
	}
	vchan_lay_out(v, grant);
	if (grant->is_server && set_path(v, grant) < 0)
		goto undo;
	spin_init(&v->spin);
	v->in.spin = v->out.spin = v->spin;
	if (vchan_resume(v) < 0 || vchan_let_move(v) < 0)
		goto undo;
	close(grant->region_fd);
	vchan_arrive(v, grant);
	return &v->ctrl;
undo:
	error = errno;
	close(grant->region_fd);
	if (v) {
		kvmchan_detach(&v->ctrl);
	} else {
		close(grant->event_fd);
		close(grant->notify_fd);
		close(grant->control_fd);
	}
	errno = error;
	return NULL;
}

void kvmchan_hang_up(struct libxenvchan *ctrl)
{
	struct vchan *v = vchan_of(ctrl);

	vchan_stay(v);
	way_show(&v->in);
	way_show(&v->out);
	shared_set_live(v->own_live, 0);
	event_send(&v->event);
}

int kvmchan_make_wakeable(struct libxenvchan *ctrl)
{
	return event_make_wakeable(&vchan_of(ctrl)->event) < 0 ? -errno : 0;
}

void kvmchan_shut(struct libxenvchan *ctrl)
{
	struct vchan *v = vchan_of(ctrl);

	vchan_lose(v);
	event_shut(&v->event);
}

int kvmchan_steal_control(struct libxenvchan *ctrl)
{
	return event_steal_control(&vchan_of(ctrl)->event);
}

void kvmchan_close_descriptors(struct libxenvchan *ctrl) { event_end(&vchan_of(ctrl)->event); }

void kvmchan_forget(struct libxenvchan *ctrl)
{
	struct vchan *v = vchan_of(ctrl);

	/* Without the lock, which a thread of the parent's may have held. */
	atomic_store(&v->state, LOST);
	event_end(&v->event);
	/* If there is no memory, the child keeps the mapping. */
	(void)mmap(v->page, v->size, PROT_READ | PROT_WRITE,
		   MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

void kvmchan_detach(struct libxenvchan *ctrl)
{
	struct vchan *v = vchan_of(ctrl);

	if (v->page)
		munmap(v->page, v->size);
	event_end(&v->event);
	free(v->ctrl.xs_path);
	free(v);
}
