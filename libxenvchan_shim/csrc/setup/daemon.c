/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "setup/daemon.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#include "dataplane/error.h"
#include "setup/environment.h"
#include "setup/interpreter.h"

#define SENTENCE 480
#define NO_SENTENCE "the embedded Python failed"

/* What each call has: the error that Python returned, and room for its sentence. */
struct call {
	int error;
	char sentence[SENTENCE];
};

/* Fill in @where unless it is NULL, and start the interpreter. Returns 0, or -1 with errno. */
static int begin(struct call *call, struct kvmchan_where *where)
{
	strcpy(call->sentence, NO_SENTENCE);
	if (where)
		*where = here();
	return interpreter_start();
}

/* Return 0, or -1 with errno and the sentence. If cffi could not run a function it returned 0, but
 * left no answer. */
static int end(struct call *call, bool answered)
{
	if (!call->error && !answered)
		call->error = EIO;
	return call->error ? fail(call->error, "%s", call->sentence) : 0;
}

/* The two arguments that every Python function has last. */
#define SENTENCE_OF(call) (call).sentence, sizeof((call).sentence)

static const struct kvmchan_grant nothing = {
    .region_fd = -1, .event_fd = -1, .notify_fd = -1, .control_fd = -1};

int daemon_open(struct kvmchan_request *request, struct kvmchan_grant *grant)
{
	struct call call;

	*grant = nothing;
	grant->is_server = request->what == KVMCHAN_OFFER || request->what == KVMCHAN_BIND;
	if (begin(&call, &request->where) < 0)
		return -1;
	call.error = kvmchan_python_open(request, grant, SENTENCE_OF(call));
	return end(&call, grant->event_fd >= 0);
}

int daemon_ask(struct kvmchan_request *request, int *control_fd)
{
	struct call call;

	*control_fd = -1;
	if (begin(&call, &request->where) < 0)
		return -1;
	call.error = kvmchan_python_ask(request, control_fd, SENTENCE_OF(call));
	return end(&call, *control_fd >= 0);
}

int daemon_answer(int control_fd, struct kvmchan_grant *grant)
{
	struct call call;

	*grant = nothing;
	if (begin(&call, NULL) < 0)
		return -1;
	call.error = kvmchan_python_answer(control_fd, grant, SENTENCE_OF(call));
	return end(&call, grant->event_fd >= 0);
}

static int get_pages(struct kvmchan_pages *pages,
		     int (*get)(struct kvmchan_pages *pages, char *sentence, int room))
{
	struct call call;

	pages->memory_fd = pages->control_fd = -1;
	if (begin(&call, &pages->where) < 0)
		return -1;
	call.error = get(pages, SENTENCE_OF(call));
	return end(&call, pages->memory_fd >= 0);
}

int daemon_share(struct kvmchan_pages *pages) { return get_pages(pages, kvmchan_python_share); }

int daemon_map(struct kvmchan_pages *pages) { return get_pages(pages, kvmchan_python_map); }

int daemon_notify(int control_fd, uint64_t offset, bool clears, uint64_t port)
{
	struct call call;

	if (begin(&call, NULL) < 0)
		return -1;
	call.error = kvmchan_python_notify(control_fd, offset, clears, port, SENTENCE_OF(call));
	return end(&call, true);
}

int daemon_port(struct kvmchan_port *port)
{
	struct call call;

	port->state = -1;
	if (begin(&call, &port->where) < 0)
		return -1;
	call.error = kvmchan_python_port(port, SENTENCE_OF(call));
	return end(&call, port->state >= 0);
}

int daemon_domains(struct kvmchan_domains *domains)
{
	struct call call;

	domains->own = -1;
	if (begin(&call, &domains->where) < 0)
		return -1;
	call.error = kvmchan_python_domains(domains, SENTENCE_OF(call));
	return end(&call, domains->own >= 0);
}

void daemon_close(struct connection *connection)
{
	/* If the program has closed it, the daemon finds out by itself. */
	int error = errno, fd = connection_steal(connection);

	if (fd >= 0)
		kvmchan_python_close(fd);
	errno = error;
}

int daemon_own(void)
{
	int none;
	struct kvmchan_domains domains = {.numbers = &none};

	return daemon_domains(&domains) < 0 ? -1 : domains.own;
}

int daemon_domain(uint32_t domain)
{
	if (domain == DOMAIN_SELF)
		return daemon_own();
	if (domain > INT_MAX)
		return fail(EINVAL, "%u is no domain's number", domain);
	return (int)domain;
}
