/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A client that waits for its server as Qubes' libvchan for Xen does, by libxenstore and
 * libxenctrl:
 *
 *	qubes_wait DOMAIN PORT
 *
 * It says "waits", and then "gives up" where that domain is not there; or "connected", sends
 * "hello" and goes on to its end when the test says so.
 */
#include <xenctrl.h>

#include <libxenvchan.h>
#include <stdlib.h>
#include <xenstore.h>

#include "../rig/program.h"

static struct xs_handle *xs;
static char server[128], node[160];

static char *read_node(const char *path)
{
	unsigned int length;

	return xs_read(xs, XBT_NULL, path, &length);
}

/* The server's path has our number in it, which on Xen is another after a migration. */
static void find_server(int domain, int port)
{
	char *own = read_node("domid");

	if (*node)
		EXPECT(xs_unwatch(xs, node, node));
	EXPECT(own && atoi(own) != domain);
	snprintf(server, sizeof(server), "/local/domain/%d/data/vchan/%s/%d", domain, own, port);
	snprintf(node, sizeof(node), "%s/event-channel", server);
	EXPECT(xs_watch(xs, node, node));
	free(own);
}

/* 1: it lives; 0: it is dying, or another was found; else -1. */
static int look_for_domain(xc_interface *xch, int domain)
{
#if XEN_MINOR >= 18
	xc_domaininfo_t info;

	if (xc_domain_getinfo_single(xch, domain, &info))
		return -1;
	return !(info.flags & XEN_DOMINF_dying);
#else
	xc_dominfo_t info;

	if (xc_domain_getinfo(xch, domain, 1, &info) != 1)
		return -1;
	return info.domid == (uint32_t)domain && !info.dying;
#endif
}

static bool is_alive(xc_interface *xch, int domain)
{
	xc_evtchn_status_t status = {.dom = domain, .port = -1};
	int found = look_for_domain(xch, domain);

	if (found >= 0)
		return found;
	/* Who may not ask for domains learns it from a port that can't be. */
	return errno != ESRCH && !(xc_evtchn_status(xch, &status) < 0 && errno == ESRCH);
}

static bool wait_for_server(xc_interface *xch, int domain, int port)
{
	unsigned int count;

	EXPECT(xs_watch(xs, "domid", "domid") && xs_watch(xs, "@releaseDomain", "release"));
	for (;;) {
		char **event = xs_read_watch(xs, &count), *value;

		EXPECT(event);
		if (strcmp(event[XS_WATCH_TOKEN], "domid") == 0 || !*node)
			find_server(domain, port);
		free(event);
		value = read_node(node);
		free(value);
		if (value)
			return true;
		if (!is_alive(xch, domain))
			return false;
	}
}

int main(int argc, char **argv)
{
	xc_interface *xch = xc_interface_open(NULL, NULL, 0);
	struct libxenvchan *vchan;
	char hello[] = "hello";
	bool is_there;

	EXPECT(argc == 3 && xch);
	xs = xs_open(0);
	EXPECT(xs);
	say("waits");
	is_there = wait_for_server(xch, atoi(argv[1]), atoi(argv[2]));
	xs_close(xs);
	if (is_there) {
		vchan = libxenvchan_client_init(NULL, atoi(argv[1]), server);
		EXPECT(vchan);
		vchan->blocking = 1;
		EXPECT(libxenvchan_send(vchan, hello, 5) == 5);
		say("connected");
		await_gate();
		libxenvchan_close(vchan);
	} else
		say("gives up");
	EXPECT(xc_interface_close(xch) == 0);
	return 0;
}
