/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program for Xen that does what its stdin says, a line of answer for each line: one process of a
 * domain, with event channels, shared pages and what libxenctrl knows of them. Compiled with Xen's
 * headers, linked with Xen's libraries. A failure is answered with the name of its errno.
 *
 *	evtchn                       another handle, which the next commands use; its number
 *	use HANDLE                   ok
 *	bind DOMAIN, join DOMAIN PORT    the port
 *	notify|unmask|unbind PORT    ok
 *	pending                      the port; waits
 *	nonblock                     ok: from now on pending fails where it would wait
 *	ready                        whether the handle's descriptor is readable
 *	evtchn_close                 ok
 *	share DOMAIN COUNT WRITABLE  the references; the pages are the current ones, as for all
 *below share_notify DOMAIN OFFSET PORT        the reference map PROT DOMAIN:REF ...      ok
 *	map_notify PROT DOMAIN REF OFFSET PORT ok
 *	peek OFFSET, poke OFFSET VALUE         the byte
 *	unshare|unmap|munmap|gntshr_close|gnttab_close    ok
 *	status DOMAIN PORT           closed, unbound DOMAIN, interdomain DOMAIN PORT
 *	domains FIRST MOST           those that libxenctrl tells of
 *	server|client DOMAIN PATH    the event channel of the vchan
 *	vchan_notify|vchan_pending|vchan_unbind    by the vchan's own handle
 *	is_open                      as libxenvchan says it
 *	open                         as Qubes' libvchan asks: waiting, connected, disconnected
 *	lose                         ok: what that does at a client whose server it finds gone
 *	recv|send COUNT              calls, and then what the blocking call returns
 *	vchan_close                  ok
 *	fork                         a child closes what it inherited; ok
 *	fds                          how many descriptors are open
 */
#define XC_WANT_COMPAT_EVTCHN_API
#define XC_WANT_COMPAT_GNTTAB_API
/* First, as it asks the others for more. */
#include <xenctrl.h>

#include <fcntl.h>
#include <libxenvchan.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <xenevtchn.h>
#include <xengnttab.h>

#include "../rig/descriptors.h"
#include "../rig/program.h"

#define HANDLES 8
#define PAGES 1024
#define PAGE 4096

static xenevtchn_handle *handles[HANDLES], *xce;
static xengntshr_handle *xgs;
static xengnttab_handle *xgt;
static xc_interface *xch;
static struct libxenvchan *vchan;
static unsigned char *pages;
static uint32_t count;

static void answer(int result)
{
	if (result < 0)
		printf("%s\n", strerrorname_np(errno));
	else
		printf("%d\n", result);
}

static void answer_ok(int result)
{
	if (result == 0)
		printf("ok\n");
	else
		answer(result);
}

static int is(const char *command, const char *name) { return strcmp(command, name) == 0; }

static long number(void) { return strtol(strtok(NULL, " "), NULL, 0); }

/* ---- event channels ---- */

static void do_evtchn(void)
{
	int i = 0;

	while (handles[i])
		i++;
	handles[i] = xce = xenevtchn_open(NULL, 0);
	EXPECT(xce);
	printf("%d\n", i);
}

static int is_readable(int fd)
{
	struct pollfd polled = {.fd = fd, .events = POLLIN};

	return poll(&polled, 1, 0);
}

static void do_evtchn_close(void)
{
	int i = 0;

	while (handles[i] != xce)
		i++;
	handles[i] = NULL;
	answer_ok(xenevtchn_close(xce));
	xce = NULL;
}

static int event_channels(const char *command)
{
	long first;

	if (is(command, "evtchn"))
		do_evtchn();
	else if (is(command, "use")) {
		xce = handles[number()];
		printf("ok\n");
	} else if (is(command, "bind"))
		answer(xenevtchn_bind_unbound_port(xce, number()));
	else if (is(command, "join")) {
		first = number();
		answer(xenevtchn_bind_interdomain(xce, first, number()));
	} else if (is(command, "notify"))
		answer_ok(xenevtchn_notify(xce, number()));
	else if (is(command, "unmask"))
		answer_ok(xenevtchn_unmask(xce, number()));
	else if (is(command, "unbind"))
		answer_ok(xenevtchn_unbind(xce, number()));
	else if (is(command, "pending"))
		answer(xenevtchn_pending(xce));
	else if (is(command, "nonblock"))
		answer_ok(fcntl(xenevtchn_fd(xce), F_SETFL, O_NONBLOCK));
	else if (is(command, "ready"))
		answer(is_readable(xenevtchn_fd(xce)));
	else if (is(command, "evtchn_close"))
		do_evtchn_close();
	else
		return 0;
	return 1;
}

/* ---- pages ---- */

static void answer_pages(void *found, int made)
{
	if (!found) {
		answer(-1);
		return;
	}
	pages = found;
	count = made;
	printf("ok\n");
}

static void do_share(void)
{
	static uint32_t refs[PAGES];
	long domain = number(), wanted = number(), writable = number(), i;
	void *found = xengntshr_share_pages(xgs, domain, wanted, refs, writable);

	if (!found) {
		answer(-1);
		return;
	}
	pages = found;
	count = wanted;
	for (i = 0; i < wanted; i++)
		printf("%u%c", refs[i], i + 1 < wanted ? ' ' : '\n');
}

static void do_share_notify(void)
{
	long domain = number(), offset = number(), port = number();
	uint32_t ref;
	void *found = xengntshr_share_page_notify(xgs, domain, &ref, 1, offset, port);

	if (!found) {
		answer(-1);
		return;
	}
	pages = found;
	count = 1;
	printf("%u\n", ref);
}

static void do_map(void)
{
	static uint32_t domains[PAGES], refs[PAGES];
	int prot = number(), made = 0, same = 1;
	char *word;

	while ((word = strtok(NULL, " :"))) {
		domains[made] = strtoul(word, NULL, 0);
		refs[made] = number();
		same = same && domains[made] == domains[0];
		made++;
	}
	if (made == 1)
		answer_pages(xengnttab_map_grant_ref(xgt, domains[0], refs[0], prot), 1);
	else if (same)
		answer_pages(xengnttab_map_domain_grant_refs(xgt, made, domains[0], refs, prot),
			     made);
	else
		answer_pages(xengnttab_map_grant_refs(xgt, made, domains, refs, prot), made);
}

static void do_map_notify(void)
{
	long prot = number(), domain = number(), ref = number(), offset = number(), port = number();

	answer_pages(xengnttab_map_grant_ref_notify(xgt, domain, ref, prot, offset, port), 1);
}

static int grants(const char *command)
{
	long offset;

	if (is(command, "share"))
		do_share();
	else if (is(command, "share_notify"))
		do_share_notify();
	else if (is(command, "map"))
		do_map();
	else if (is(command, "map_notify"))
		do_map_notify();
	else if (is(command, "peek"))
		printf("%d\n", ((volatile unsigned char *)pages)[number()]);
	else if (is(command, "poke")) {
		offset = number();
		((volatile unsigned char *)pages)[offset] = number();
		printf("%d\n", pages[offset]);
	} else if (is(command, "unshare"))
		answer_ok(xengntshr_unshare(xgs, pages, count));
	else if (is(command, "unmap"))
		answer_ok(xengnttab_unmap(xgt, pages, count));
	else if (is(command, "munmap"))
		answer_ok(munmap(pages, (size_t)count * PAGE));
	else if (is(command, "gntshr_close")) {
		answer_ok(xengntshr_close(xgs));
		xgs = NULL;
	} else if (is(command, "gnttab_close")) {
		answer_ok(xengnttab_close(xgt));
		xgt = NULL;
	} else
		return 0;
	return 1;
}

/* ---- libxenctrl ---- */

static void do_status(void)
{
	xc_evtchn_status_t status = {.dom = number()};

	status.port = number();
	if (xc_evtchn_status(xch, &status) < 0)
		answer(-1);
	else if (status.status == EVTCHNSTAT_closed)
		printf("closed\n");
	else if (status.status == EVTCHNSTAT_unbound)
		printf("unbound %u\n", status.u.unbound.dom);
	else if (status.status == EVTCHNSTAT_interdomain)
		printf("interdomain %u %u\n", status.u.interdomain.dom, status.u.interdomain.port);
}

/* Asks for what is listed in the other way that the release has, and returns how many it finds. */
static int find_domains(long first, long most, const xc_domaininfo_t *list, int listed)
{
	int i;
#if XEN_MINOR >= 18
	xc_domaininfo_t info;

	for (i = 0; i < listed; i++) {
		EXPECT(xc_domain_getinfo_single(xch, list[i].domain, &info) == 0);
		EXPECT(info.domain == list[i].domain && info.flags == list[i].flags);
	}
	return most && listed <= 0 ? xc_domain_getinfo_single(xch, first, NULL) : listed;
#else
	static xc_dominfo_t infos[PAGES];
	int found = xc_domain_getinfo(xch, first, most, infos);

	for (i = 0; i < found && i < listed; i++) {
		EXPECT(infos[i].domid == list[i].domain);
		EXPECT(infos[i].running && !infos[i].dying && infos[i].hvm == (infos[i].domid > 0));
	}
	return found;
#endif
}

static void do_domains(void)
{
	static xc_domaininfo_t list[PAGES];
	long first = number(), most = number();
	int listed = xc_domain_getinfolist(xch, first, most, list);
	int found = find_domains(first, most, list, listed), i;

	if (found < 0) {
		EXPECT(errno != ESRCH || listed == 0);
		answer(-1);
		return;
	}
	EXPECT(listed == found);
	for (i = 0; i < found; i++) {
		EXPECT(list[i].flags & XEN_DOMINF_running && !(list[i].flags & XEN_DOMINF_dying));
		EXPECT(!(list[i].flags & XEN_DOMINF_hvm_guest) == (list[i].domain == 0));
		printf("%u ", list[i].domain);
	}
	printf(found ? "\n" : "none\n");
}

/* ---- vchans ---- */

static void opened(struct libxenvchan *made)
{
	if (!made) {
		answer(-1);
		return;
	}
	vchan = made;
	printf("%u\n", vchan->event_port);
}

/* From now on libxenvchan takes the server for gone, too. */
static void lose_server(void) { vchan->ring->srv_live = 0; }

/* Where libxenvchan says that all is well, the domain's end is looked for. */
static const char *qubes_state(void)
{
	xc_evtchn_status_t status = {.dom = DOMID_SELF, .port = vchan->event_port};

	switch (libxenvchan_is_open(vchan)) {
	case 2:
		return "waiting";
	case 0:
		return "disconnected";
	}
	EXPECT(xc_evtchn_status(xch, &status) == 0);
	if (status.status == EVTCHNSTAT_interdomain)
		return "connected";
	if (!vchan->is_server)
		lose_server();
	return "disconnected";
}

static void transfer(int (*call)(struct libxenvchan *vchan, void *data, size_t size))
{
	static char data[PAGE];

	vchan->blocking = 1;
	say("calls");
	printf("%d\n", call(vchan, data, number()));
}

static int send_to(struct libxenvchan *to, void *data, size_t size)
{
	return libxenvchan_send(to, data, size);
}

static int vchans(const char *command)
{
	long domain;

	if (is(command, "server")) {
		domain = number();
		opened(libxenvchan_server_init(NULL, domain, strtok(NULL, ""), 1024, 1024));
	} else if (is(command, "client")) {
		domain = number();
		opened(libxenvchan_client_init(NULL, domain, strtok(NULL, "")));
	} else if (is(command, "vchan_notify"))
		answer_ok(xc_evtchn_notify(vchan->event, vchan->event_port));
	else if (is(command, "vchan_pending")) {
		EXPECT(xenevtchn_fd(vchan->event) == libxenvchan_fd_for_select(vchan));
		domain = xenevtchn_pending(vchan->event);
		EXPECT(domain < 0 || xenevtchn_unmask(vchan->event, domain) == 0);
		answer(domain);
	} else if (is(command, "vchan_unbind"))
		answer_ok(xenevtchn_unbind(vchan->event, vchan->event_port));
	else if (is(command, "is_open"))
		answer(libxenvchan_is_open(vchan));
	else if (is(command, "lose")) {
		lose_server();
		printf("ok\n");
	} else if (is(command, "recv"))
		transfer(libxenvchan_recv);
	else if (is(command, "send"))
		transfer(send_to);
	else if (is(command, "open"))
		printf("%s\n", qubes_state());
	else if (is(command, "vchan_close")) {
		libxenvchan_close(vchan);
		printf("ok\n");
	} else
		return 0;
	return 1;
}

/* ---- processes ---- */

static void on_signal(int signal_number) { (void)signal_number; }

static void do_fork(void)
{
	pid_t child;
	int status, i;

	fflush(stdout);
	child = fork();
	EXPECT(child >= 0);
	if (child == 0) {
		for (i = 0; i < HANDLES; i++)
			EXPECT(xenevtchn_close(handles[i]) == 0);
		EXPECT(xengntshr_close(xgs) == 0 && xengnttab_close(xgt) == 0);
		_exit(0);
	}
	EXPECT(waitpid(child, &status, 0) == child && status == 0);
	printf("ok\n");
}

int main(void)
{
	char *line = NULL;
	size_t room = 0;
	ssize_t length;

	signal(SIGUSR1, on_signal); /* with SA_RESTART */
	xgs = xengntshr_open(NULL, 0);
	xgt = xengnttab_open(NULL, 0);
	xch = xc_interface_open(NULL, NULL, 0);
	EXPECT(xgs && xgt && xch);
	EXPECT(xengnttab_set_max_grants(xgt, PAGES) == 0);
	while ((length = getline(&line, &room, stdin)) > 0) {
		const char *command;

		line[length - 1] = '\0';
		command = strtok(line, " ");
		errno = 0;
		if (is(command, "fork"))
			do_fork();
		else if (is(command, "fds"))
			printf("%d\n", count_fds());
		else if (is(command, "status"))
			do_status();
		else if (is(command, "domains"))
			do_domains();
		else
			EXPECT(event_channels(command) || grants(command) || vchans(command));
		fflush(stdout);
	}
	free(line);
	EXPECT(xc_interface_close(xch) == 0);
	return 0;
}
