/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* libxengnttab's mappings, without a daemon: what lies where, and what is left. */
#include "rig/harness.h"

#include <dirent.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "rig/fakedaemon.h"
#include "xen/libxengnttab.h"

#define SELF 0x7ff0
#define NONE UINT32_MAX

static xengntshr_handle *xgs;
static xengnttab_handle *xgt;

static void begin(void)
{
	xgs = xengntshr_open(NULL, 0);
	xgt = xengnttab_open(NULL, 0);
	check(xgs && xgt);
}

static void finish(void)
{
	equal(xengnttab_close(xgt), 0);
	equal(xengntshr_close(xgs), 0);
	equal(fake_connections(), 0);
	fake_end();
}

/* @count pages whose first bytes count up from @first. */
static uint8_t *shared(int count, uint32_t *refs, uint8_t first)
{
	uint8_t *pages = xengntshr_share_pages(xgs, SELF, count, refs, 1);
	int i;

	check(pages);
	for (i = 0; i < count; i++) {
		equal(refs[i], refs[0] + (uint32_t)i);
		equal(pages[i * PAGE], 0);
		pages[i * PAGE] = (uint8_t)(first + i);
	}
	return pages;
}

#define null_with(call, expected)                                                                  \
	do {                                                                                       \
		errno = 0;                                                                         \
		check((call) == NULL);                                                             \
		equal(errno, expected);                                                            \
	} while (0)

static void any_order_of_pages_is_mapped(void)
{
	uint32_t refs[5], more[3], wanted[64];
	uint8_t *one, *other, *mapped, expected[64];
	uint64_t random = 1;

	begin();
	one = shared(5, refs, 10);
	other = shared(3, more, 20);
	for (int round = 0; round < 200; round++) {
		uint32_t count = 1 + (uint32_t)random_below(&random, 64), i;

		for (i = 0; i < count; i++) {
			uint32_t page = (uint32_t)random_below(&random, 8);

			/* Often the next one of the same share. */
			if (i && random_below(&random, 2) && expected[i - 1] != 14 &&
			    expected[i - 1] != 22)
				page = expected[i - 1] + 1u - (expected[i - 1] < 20 ? 10 : 15);
			wanted[i] = page < 5 ? refs[page] : more[page - 5];
			expected[i] = (uint8_t)(page < 5 ? 10 + page : 15 + page);
		}
		mapped = xengnttab_map_domain_grant_refs(xgt, count, SELF, wanted,
							 PROT_READ | PROT_WRITE);
		check(mapped);
		check(fake_connections() <= 4);
		for (i = 0; i < count; i++)
			equal(mapped[i * PAGE], expected[i]);
		mapped[PAGE - 1] = (uint8_t)round;
		equal((expected[0] < 20 ? one + (expected[0] - 10) * PAGE
					: other + (expected[0] - 20) * PAGE)[PAGE - 1],
		      (uint8_t)round);
		equal(xengnttab_unmap(xgt, mapped, count), 0);
	}
	equal(xengntshr_unshare(xgs, one, 5), 0);
	equal(xengntshr_unshare(xgs, other, 3), 0);
	finish();
}

static int count_fds(void)
{
	DIR *directory = opendir("/proc/self/fd");
	int count = 0;

	check(directory);
	while (readdir(directory))
		count++;
	closedir(directory);
	return count;
}

static void a_mapping_holds_a_connection_and_no_other_descriptor(void)
{
	uint32_t refs[4];
	int before;

	begin();
	before = count_fds();
	shared(4, refs, 1);
	/* The daemon's own are in this process too: the memory, and its end of the connection. */
	equal(count_fds(), before + 3);
	check(xengnttab_map_domain_grant_refs(xgt, 4, SELF, refs, PROT_READ));
	equal(count_fds(), before + 5);
	finish();
}

static void a_failure_undoes_all(void)
{
	uint32_t refs[2], more[2], wanted[4], domains[4] = {SELF, 0, 0, SELF};
	int i;

	begin();
	shared(2, refs, 1);
	shared(2, more, 3);
	memcpy(wanted, refs, sizeof(refs));
	memcpy(wanted + 2, more, sizeof(more));
	for (i = 0; i < 2; i++) {
		fake_requests_left = i;
		null_with(xengnttab_map_grant_refs(xgt, 4, domains, wanted, PROT_READ), EIO);
		equal(fake_connections(), 2);
	}
	fake_requests_left = 0;
	null_with(xengntshr_share_pages(xgs, SELF, 2, refs, 1), EIO);
	fake_requests_left = 1;
	null_with(xengntshr_share_page_notify(xgs, SELF, refs, 1, 0, 2), EIO);
	fake_requests_left = 1;
	null_with(xengnttab_map_grant_ref_notify(xgt, SELF, more[0], PROT_READ, NONE, 2), EIO);
	fake_requests_left = -1;
	equal(fake_connections(), 2);
	wanted[3] = 5;
	null_with(xengnttab_map_grant_refs(xgt, 4, domains, wanted, PROT_READ), ENOENT);
	domains[1] = 99;
	null_with(xengnttab_map_grant_refs(xgt, 4, domains, wanted, PROT_READ), EINVAL);
	equal(fake_connections(), 2);
	finish();
}

static void pages_to_be_read_are_not_mapped_to_be_written(void)
{
	uint32_t refs[1];

	begin();
	check(xengntshr_share_pages(xgs, SELF, 1, refs, 0));
	null_with(xengnttab_map_grant_ref(xgt, SELF, refs[0], PROT_READ | PROT_WRITE), EACCES);
	check(xengnttab_map_grant_ref(xgt, SELF, refs[0], PROT_READ));
	finish();
}

static void counts_that_cannot_be(void)
{
	uint32_t refs[1] = {0};

	begin();
	null_with(xengntshr_share_pages(xgs, SELF, 0, refs, 1), EINVAL);
	null_with(xengntshr_share_pages(xgs, SELF, INT_MIN, refs, 1), EINVAL);
	null_with(xengnttab_map_grant_refs(xgt, 0, refs, refs, PROT_READ), EINVAL);
	null_with(xengnttab_map_domain_grant_refs(xgt, 0, SELF, refs, PROT_READ), EINVAL);
	finish();
}

static void what_is_unmapped_was_mapped_so(void)
{
	uint32_t refs[3];
	uint8_t *pages, *mapped;
	unsigned char resident;

	begin();
	pages = shared(3, refs, 1);
	mapped = xengnttab_map_domain_grant_refs(xgt, 3, SELF, refs, PROT_READ);
	check(mapped);
	fails(xengnttab_unmap(xgt, mapped, 2), EINVAL);
	fails(xengnttab_unmap(xgt, mapped + PAGE, 2), EINVAL);
	fails(xengnttab_unmap(xgt, pages, 3), EINVAL);
	fails(xengntshr_unshare(xgs, mapped, 3), EINVAL);
	equal(mapped[2 * PAGE], 3);
	equal(xengnttab_unmap(xgt, mapped, 3), 0);
	check(mincore(mapped, PAGE, &resident) < 0 && errno == ENOMEM);
	fails(xengnttab_unmap(xgt, mapped, 3), EINVAL);
	equal(xengntshr_unshare(xgs, pages, 3), 0);
	finish();
}

/* As Xen's own libxenvchan does. */
static void a_program_may_unmap_by_itself(void)
{
	uint32_t refs[3], again[3];
	uint8_t *pages, *mapped;

	begin();
	pages = shared(3, refs, 1);
	check(munmap(pages, (size_t)3 * PAGE) == 0);
	/* Most likely at the same place; then it is the younger one that is meant. */
	mapped = shared(3, again, 4);
	equal(fake_connections(), 2);
	equal(xengntshr_unshare(xgs, mapped, 3), 0);
	equal(fake_connections(), 1);
	finish();
}

static void a_closed_handles_pages_stay(void)
{
	uint32_t refs[1];
	uint8_t *pages, *mapped;

	begin();
	pages = shared(1, refs, 1);
	mapped = xengnttab_map_grant_ref(xgt, SELF, refs[0], PROT_READ);
	check(mapped);
	finish();
	pages[0] = 77;
	equal(mapped[0], 77);
	check(munmap(pages, PAGE) == 0 && munmap(mapped, PAGE) == 0);
}

static uint8_t *pages_of_parent, *mapped_by_parent;

static void undo_what_was_inherited(void *unused)
{
	(void)unused;
	equal(xengnttab_unmap(xgt, mapped_by_parent, 2), 0);
	equal(xengntshr_unshare(xgs, pages_of_parent, 2), 0);
	equal(xengnttab_close(xgt), 0);
	equal(xengntshr_close(xgs), 0);
	fake_end();
}

/* On Xen a child has but mappings of its own, and the share lasts as long as one. */
static void a_childs_unmapping_is_not_the_parents(void)
{
	uint32_t refs[2];

	begin();
	pages_of_parent = shared(2, refs, 1);
	mapped_by_parent = xengnttab_map_domain_grant_refs(xgt, 2, SELF, refs, PROT_READ);
	check(mapped_by_parent);
	child_end(child_start(undo_what_was_inherited, NULL));
	equal(fake_connections(), 2);
	equal(mapped_by_parent[PAGE], 2);
	equal(xengnttab_unmap(xgt, mapped_by_parent, 2), 0);
	equal(xengntshr_unshare(xgs, pages_of_parent, 2), 0);
	finish();
}

static void notices_are_of_the_page_that_was_mapped(void)
{
	uint32_t refs[3], one;
	uint8_t *mapped;

	begin();
	shared(3, refs, 1);
	mapped = xengnttab_map_grant_ref_notify(xgt, SELF, refs[2], PROT_READ | PROT_WRITE, 21, 6);
	check(mapped);
	equal(mapped[0], 3);
	equal(fake_notice.offset, 2 * PAGE + 21);
	equal(fake_notice.port, 6);
	equal(fake_notice.clears, 1);
	check(xengntshr_share_page_notify(xgs, SELF, &one, 0, NONE, 8));
	equal(fake_notice.port, 8);
	equal(fake_notice.clears, 0);
	check(xengntshr_share_page_notify(xgs, SELF, &one, 0, PAGE - 1, NONE));
	equal(fake_notice.offset, PAGE - 1);
	equal(fake_notice.port, 0);
	equal(fake_notice.clears, 1);
	null_with(xengntshr_share_page_notify(xgs, SELF, &one, 0, PAGE, NONE), EINVAL);
	null_with(xengntshr_share_page_notify(xgs, SELF, &one, 0, 0, 0), EINVAL);
	null_with(xengnttab_map_grant_ref_notify(xgt, SELF, refs[0], PROT_READ, 0, NONE), EINVAL);
	fake_notice.port = 99;
	check(xengnttab_map_grant_ref_notify(xgt, SELF, refs[0], PROT_READ, NONE, NONE));
	equal(fake_notice.port, 99);
	finish();
}

static void *share_often(void *unused)
{
	(void)unused;
	for (int i = 0; i < 20; i++) {
		uint32_t refs[2];
		uint8_t *pages = xengntshr_share_pages(xgs, SELF, 2, refs, 1);
		uint8_t *mapped =
		    xengnttab_map_domain_grant_refs(xgt, 2, SELF, refs, PROT_READ | PROT_WRITE);

		check(pages && mapped);
		mapped[0] = (uint8_t)i;
		equal(pages[0], i);
		equal(xengnttab_unmap(xgt, mapped, 2), 0);
		equal(xengntshr_unshare(xgs, pages, 2), 0);
	}
	return NULL;
}

static void threads_share_a_handle(void)
{
	pthread_t threads[3];
	int i;

	begin();
	for (i = 0; i < 3; i++)
		thread_start(&threads[i], share_often, NULL);
	for (i = 0; i < 3; i++)
		thread_end(threads[i]);
	finish();
}

static void what_is_not_there(void)
{
	uint32_t refs[1] = {0}, fd;

	begin();
	equal(xengnttab_set_max_grants(xgt, 10), 0);
	fails(xengnttab_fd(xgt), ENOSYS);
	fails(xengntshr_fd(xgs), ENOSYS);
	fails(xengnttab_grant_copy(xgt, 0, NULL), ENOSYS);
	fails(xengnttab_dmabuf_exp_from_refs(xgt, 0, 0, 1, refs, &fd), ENOSYS);
	fails(xengnttab_dmabuf_exp_wait_released(xgt, 0, 0), ENOSYS);
	fails(xengnttab_dmabuf_imp_to_refs(xgt, 0, 0, 1, refs), ENOSYS);
	fails(xengnttab_dmabuf_imp_release(xgt, 0), ENOSYS);
	equal(xengnttab_close(NULL), 0);
	equal(xengntshr_close(NULL), 0);
	finish();
}

static const struct test tests[] = {
    TEST(any_order_of_pages_is_mapped),
    TEST(a_mapping_holds_a_connection_and_no_other_descriptor),
    TEST(a_failure_undoes_all),
    TEST(pages_to_be_read_are_not_mapped_to_be_written),
    TEST(counts_that_cannot_be),
    TEST(what_is_unmapped_was_mapped_so),
    TEST(a_program_may_unmap_by_itself),
    TEST(a_closed_handles_pages_stay),
    TEST(a_childs_unmapping_is_not_the_parents),
    TEST(notices_are_of_the_page_that_was_mapped),
    TEST(threads_share_a_handle),
    TEST(what_is_not_there),
};

TEST_MAIN(tests)
