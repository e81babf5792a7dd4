/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "setup/daemon.h"

#include <errno.h>
#include <limits.h>

#include "dataplane/error.h"
#include "setup/environment.h"
#include "setup/interpreter.h"

#define SENTENCE 480
#define NO_SENTENCE "the embedded Python failed"

/* Where cffi could not run a function it returned 0, and nothing was @answered. */
static int result_of(int error, const char *sentence, bool answered)
{
	if (!error && !answered)
		error = EIO;
	return error ? fail(error, "%s", sentence) : 0;
}

static const struct kvmchan_opened nothing = {
    .region_fd = -1, .event_fd = -1, .notify_fd = -1, .control_fd = -1};

int daemon_open(struct kvmchan_request *request, struct kvmchan_opened *opened)
{
	char sentence[SENTENCE] = NO_SENTENCE;
	int error;

	*opened = nothing;
	request->where = here();
	if (interpreter_start() < 0)
		return -1;
	error = kvmchan_python_open(request, opened, sentence, sizeof(sentence));
	return result_of(error, sentence, opened->event_fd >= 0);
}

int daemon_ask(struct kvmchan_request *request, int *control_fd)
{
	char sentence[SENTENCE] = NO_SENTENCE;
	int error;

	*control_fd = -1;
	request->where = here();
	if (interpreter_start() < 0)
		return -1;
	error = kvmchan_python_ask(request, control_fd, sentence, sizeof(sentence));
	return result_of(error, sentence, *control_fd >= 0);
}

int daemon_answer(int control_fd, struct kvmchan_opened *opened)
{
	char sentence[SENTENCE] = NO_SENTENCE;
	int error;

	*opened = nothing;
	error = kvmchan_python_answer(control_fd, opened, sentence, sizeof(sentence));
	return result_of(error, sentence, opened->event_fd >= 0);
}

static int get_pages(struct kvmchan_pages *pages,
		     int (*get)(struct kvmchan_pages *pages, char *sentence, int room))
{
	char sentence[SENTENCE] = NO_SENTENCE;
	int error;

	pages->memory_fd = pages->control_fd = -1;
	pages->where = here();
	if (interpreter_start() < 0)
		return -1;
	error = get(pages, sentence, sizeof(sentence));
	return result_of(error, sentence, pages->memory_fd >= 0);
}

int daemon_share(struct kvmchan_pages *pages) { return get_pages(pages, kvmchan_python_share); }

int daemon_map(struct kvmchan_pages *pages) { return get_pages(pages, kvmchan_python_map); }

int daemon_notify(int control_fd, uint64_t offset, bool clears, uint64_t port)
{
	char sentence[SENTENCE] = NO_SENTENCE;
	int error =
	    kvmchan_python_notify(control_fd, offset, clears, port, sentence, sizeof(sentence));

	return result_of(error, sentence, true);
}

int daemon_port(struct kvmchan_port *port)
{
	char sentence[SENTENCE] = NO_SENTENCE;
	int error;

	port->where = here();
	port->state = -1;
	if (interpreter_start() < 0)
		return -1;
	error = kvmchan_python_port(port, sentence, sizeof(sentence));
	return result_of(error, sentence, port->state >= 0);
}

int daemon_domains(struct kvmchan_domains *domains)
{
	char sentence[SENTENCE] = NO_SENTENCE;
	int error;

	domains->where = here();
	domains->own = -1;
	if (interpreter_start() < 0)
		return -1;
	error = kvmchan_python_domains(domains, sentence, sizeof(sentence));
	return result_of(error, sentence, domains->own >= 0);
}

void daemon_close(struct connection *connection)
{
	/* Where the program has closed it, the daemon finds out by itself. */
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
