/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A call has two short steps in Python, undisturbed and where there is room: it asks, and it takes
 * the answer. In between the caller waits on its own thread, where its program's signals and
 * cancellation reach it as in any other wait.
 */
#include "setup/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "dataplane/error.h"
#include "setup/apart.h"
#include "setup/choice.h"
#include "setup/environment.h"
#include "setup/wire.h"

/* Milliseconds in which a daemon answers that has nothing else to wait for. */
#define SOON 2
#define SENTENCE 480

struct call {
	struct kvmchan_request request;
	struct kvmchan_answer answer;
	struct packet_fds fds; /* of the answer */
	int control_fd;	       /* the connection; -1 if there is none */
	bool is_asked;	       /* and not yet answered */
	bool takes_soon;       /* the answer, if it comes soon after the question */
	enum place place;
	int error;
	char sentence[SENTENCE];
	/* While it waits: where on its thread's stack, and the call in whose wait a signal's
	 * handler made this one. */
	const void *frame;
	struct call *outer;
};

static const struct kvmchan_grant nothing = {
    .region_fd = -1, .event_fd = -1, .notify_fd = -1, .control_fd = -1};

/* ---- calls that are left by siglongjmp(), pthread_cancel() or a thread's end ---- */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Thread_local struct call *waiting;
static pthread_key_t at_end; /* has `waiting` freed when the thread ends */
static bool has_key;

static void call_free(struct call *call)
{
	close_fds(&call->fds);
	if (call->control_fd >= 0)
		close(call->control_fd);
	free(call);
}

/* Free a call that was left, and return the one around it. */
static struct call *forget(struct call *call)
{
	struct call *outer = call->outer;

	call_free(call);
	return outer;
}

/* Free the calls of a thread that has ended. */
static void forget_all(void *waits)
{
	struct call *call = waits;

	while (call)
		call = forget(call);
}

static void make_key(void)
{
	/* Another libc's keys have the same numbers as ours, and the same place for the values. */
	has_key = !is_in_own_namespace() && pthread_key_create(&at_end, forget_all) == 0;
}

static void set_waiting(struct call *call)
{
	waiting = call;
	pthread_once(&once, make_key);
	if (has_key)
		pthread_setspecific(at_end, call);
}

/* Free the calls of this thread whose frame is gone, and return the one that still waits, if a
 * handler of a signal interrupted it to call us. */
static struct call *forget_left(const void *frame)
{
	while (waiting && (const char *)waiting->frame <= (const char *)frame)
		set_waiting(forget(waiting));
	return waiting;
}

/* ---- the steps ---- */

/* Takes ownership of @control_fd, also when it fails. */
static struct call *call_new(int control_fd)
{
	struct call *call = calloc(1, sizeof(*call));

	if (!call) {
		if (control_fd >= 0)
			close(control_fd);
		fail(ENOMEM, "no memory to talk to the daemon");
		return NULL;
	}
	call->control_fd = control_fd;
	return call;
}

static void judge(struct call *call, const struct kvmchan_runtime *runtime,
		  const struct kvmchan_received *received)
{
	call->error =
	    runtime->decode(call->request.what, received, &call->answer, call->sentence, SENTENCE);
}

/* The daemon takes back a grant that nobody reads, since who asked for it may have left; it gives
 * the place to another, and ends the connection. If this is such a grant, be there to ask again, on
 * another connection by the same number. */
static void refuse_taken_back(struct call *call)
{
	char byte;
	int fd;

	if (call->error || call->answer.again || call->request.what != KVMCHAN_CONNECT ||
	    recv(call->control_fd, &byte, sizeof(byte), MSG_PEEK | MSG_DONTWAIT) != 0)
		return;
	close_fds(&call->fds);
	fd = connect_daemon(setting_runtime_dir(), setting_domain());
	if (fd < 0 || dup3(fd, call->control_fd, O_CLOEXEC) < 0) {
		call->error = errno;
		snprintf(call->sentence, SENTENCE, "no connection to kvmchand can be made: %s",
			 strerror(errno));
	}
	if (fd >= 0)
		close(fd);
	call->answer.again = 1;
}

/* Take the answer, which has come. */
static void take(struct call *call, const struct kvmchan_runtime *runtime)
{
	struct kvmchan_received received;

	call->is_asked = false;
	receive_packet(call->control_fd, &received, &call->fds);
	judge(call, runtime, &received);
	free((void *)received.data);
	refuse_taken_back(call);
}

static void send_request(struct call *call, const struct kvmchan_runtime *runtime,
			 struct kvmchan_packet *packet)
{
	struct kvmchan_received nothing = {0};

	call->error = runtime->encode(&call->request, packet, call->sentence, SENTENCE);
	if (call->error)
		return;
	nothing.error = send_packet(call->control_fd, packet->data, packet->size);
	call->is_asked = nothing.error == 0;
	if (nothing.error)
		judge(call, runtime, &nothing);
}

static void ask_apart(void *argument)
{
	struct call *call = argument;
	const struct kvmchan_runtime *runtime =
	    runtime_get(call->place, &call->error, call->sentence, SENTENCE);
	struct pollfd answer = {.fd = call->control_fd, .events = POLLIN};
	struct kvmchan_packet packet = {.room = KVMCHAN_REQUEST_ROOM(call->request.path)};

	if (!runtime)
		return;
	packet.data = malloc(packet.room);
	if (packet.data) {
		send_request(call, runtime, &packet);
		free(packet.data);
	} else {
		call->error = ENOMEM;
		strcpy(call->sentence, "no memory to talk to the daemon");
	}
	/* Most answers come at once, and taking them here saves another thread, or a wait. */
	if (call->is_asked && call->takes_soon && poll(&answer, 1, SOON) > 0)
		take(call, runtime);
}

static void answer_apart(void *argument)
{
	struct call *call = argument;
	const struct kvmchan_runtime *runtime =
	    runtime_get(call->place, &call->error, call->sentence, SENTENCE);

	if (runtime)
		take(call, runtime);
}

/* Bytes of stack that a step needs, with a margin: in Python once it has started, and to start a
 * helper process. */
#define INSIDE_STACK (256 * 1024)
#define BESIDE_STACK (64 * 1024)

static int run_at(struct call *call, void (*step)(void *call))
{
	const struct kvmchan_runtime *inside = call->place == INSIDE ? runtime_inside() : NULL;

	if (call->place == BESIDE)
		return run_where_there_is_room(BESIDE_STACK, step, call);
	if (inside && inside->state() == RUNTIME_STARTED)
		return run_where_there_is_room(INSIDE_STACK, step, call);
	/* Python starts on a thread of its own, which it takes for its main one. */
	return run_apart(step, call);
}

static int run(struct call *call, void (*step)(void *call))
{
	int place = runtime_choose();

	if (place < 0)
		return -1;
	call->place = (enum place)place;
	if (run_at(call, step) < 0)
		return -1;
	return call->error ? fail(call->error, "%s", call->sentence) : 0;
}

static int ask(struct call *call)
{
	struct kvmchan_request *request = &call->request;

	request->runtime_dir = setting_runtime_dir();
	request->domain = setting_domain();
	if (!request->path)
		request->path = "";
	if (call->control_fd < 0)
		call->control_fd = connect_daemon(request->runtime_dir, request->domain);
	request->connect_errno = call->control_fd < 0 ? errno : 0;
	return run(call, ask_apart);
}

static int answer(struct call *call) { return run(call, answer_apart); }

static int64_t milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Wait until @fd is readable. Returns 0, or -1 when the time is over. A cancellation point. */
static int wait_readable(int fd, bool has_deadline)
{
	const int64_t end = milliseconds() + DAEMON_DEADLINE;
	struct pollfd answer = {.fd = fd, .events = POLLIN};
	int result;

	do {
		int64_t left = has_deadline ? end - milliseconds() : -1;

		result = poll(&answer, 1, (int)(has_deadline && left < 0 ? 0 : left));
	} while (result < 0 && errno == EINTR);
	return result > 0 ? 0 : -1;
}

/* A handler may leave here, or call us. */
static int wait_answer(struct call *call, struct call *outer)
{
	int result, depth;

	call->frame = &result;
	call->outer = outer;
	set_waiting(call);
	depth = undisturbed_pause();
	result = wait_readable(call->control_fd, !call->request.waits);
	undisturbed_resume(depth);
	set_waiting(outer);
	return result < 0
		   ? fail(ETIMEDOUT, "kvmchand did not answer within %d s", DAEMON_DEADLINE / 1000)
		   : 0;
}

/* Return whether the answer is to ask again, and prepare for that. */
static bool is_to_ask_again(struct call *call)
{
	bool again = call->answer.again;

	call->answer.again = 0;
	return again;
}

static int get_answer(struct call *call, struct call *outer)
{
	call->takes_soon = true;
	do {
		if (ask(call) < 0)
			return -1;
		if (call->is_asked && (wait_answer(call, outer) < 0 || answer(call) < 0))
			return -1;
	} while (is_to_ask_again(call));
	return 0;
}

/* Make a call of @request on @control_fd, which it takes, or on a new connection if that is -1.
 * Returns it with the answer, for call_free(); NULL if it failed. */
static struct call *make_call_on(int control_fd, const struct kvmchan_request *request)
{
	struct call *outer, *call;
	int error;

	undisturbed_begin();
	outer = forget_left(&outer);
	call = call_new(control_fd);
	if (call) {
		call->request = *request;
		if (get_answer(call, outer) < 0) {
			error = errno;
			call_free(call);
			call = NULL;
			errno = error;
		}
	}
	undisturbed_end();
	return call;
}

static struct call *make_call(const struct kvmchan_request *request)
{
	return make_call_on(-1, request);
}

/* Return the call's connection, which the caller then owns. */
static int steal_connection(struct call *call)
{
	int fd = call->control_fd;

	call->control_fd = -1;
	return fd;
}

/* ---- opening ---- */

static void take_grant(struct call *call, bool is_server, struct kvmchan_grant *grant)
{
	*grant = call->answer.grant;
	grant->region_fd = take_fd(&call->fds);
	grant->event_fd = take_fd(&call->fds);
	grant->notify_fd = take_fd(&call->fds);
	grant->is_server = is_server;
	grant->control_fd = steal_connection(call);
	call_free(call);
}

int daemon_open(struct kvmchan_request *request, struct kvmchan_grant *grant)
{
	struct call *call = make_call(request);

	*grant = nothing;
	if (!call)
		return -1;
	take_grant(call, request->what == KVMCHAN_OFFER || request->what == KVMCHAN_BIND, grant);
	return 0;
}

static int ask_only(struct kvmchan_request *request, int *control_fd)
{
	struct call *call = call_new(*control_fd);
	int result;

	*control_fd = -1;
	if (!call)
		return -1;
	call->request = *request;
	result = ask(call);
	if (result == 0)
		*control_fd = steal_connection(call);
	call_free(call);
	return result;
}

int daemon_ask(struct kvmchan_request *request, int *control_fd)
{
	int result;

	undisturbed_begin();
	result = ask_only(request, control_fd);
	undisturbed_end();
	return result;
}

static int answer_only(int *control_fd, struct kvmchan_grant *grant)
{
	struct call *call = call_new(*control_fd);

	*grant = nothing;
	*control_fd = -1;
	if (!call)
		return -1;
	call->request.what = KVMCHAN_CONNECT;
	if (answer(call) < 0) {
		call_free(call);
		return -1;
	}
	if (!is_to_ask_again(call)) {
		take_grant(call, false, grant);
		return 0;
	}
	*control_fd = steal_connection(call);
	call_free(call);
	return 1;
}

int daemon_answer(int *control_fd, struct kvmchan_grant *grant)
{
	int result;

	undisturbed_begin();
	result = answer_only(control_fd, grant);
	undisturbed_end();
	return result;
}

/* ---- pages ---- */

static int get_pages(struct kvmchan_pages *pages, uint32_t what)
{
	struct call *call = make_call(&(struct kvmchan_request){
	    .what = what,
	    .peer = pages->peer,
	    .ref = pages->ref,
	    .pages = pages->pages,
	    .writable = pages->writable,
	});

	pages->memory_fd = pages->control_fd = -1;
	if (!call)
		return -1;
	pages->memory_fd = take_fd(&call->fds);
	pages->control_fd = steal_connection(call);
	pages->ref = call->answer.ref;
	pages->pages = call->answer.pages;
	pages->offset = call->answer.offset;
	call_free(call);
	return 0;
}

int daemon_share(struct kvmchan_pages *pages) { return get_pages(pages, KVMCHAN_SHARE); }

int daemon_map(struct kvmchan_pages *pages) { return get_pages(pages, KVMCHAN_MAP); }

int daemon_notify(int control_fd, uint64_t offset, bool clears, uint64_t port)
{
	const struct kvmchan_request request = {
	    .what = KVMCHAN_NOTIFY,
	    .offset = offset,
	    .clears = clears,
	    .port = port,
	};
	int fd = fcntl(control_fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	struct call *call;

	if (fd < 0)
		return fail(errno, "no descriptor for a call to the daemon: %s", strerror(errno));
	call = make_call_on(fd, &request);
	if (!call)
		return -1;
	call_free(call);
	return 0;
}

/* ---- questions ---- */

int daemon_port(struct kvmchan_port *port)
{
	struct call *call = make_call(&(struct kvmchan_request){
	    .what = KVMCHAN_PORT,
	    .peer = port->of,
	    .port = port->port,
	});

	if (!call)
		return -1;
	port->state = call->answer.state;
	port->peer = call->answer.peer;
	port->peer_port = call->answer.peer_port;
	call_free(call);
	return 0;
}

/* Add one answer's domains to those that were found. Returns whether there may be more. */
static bool add_domains(struct kvmchan_domains *domains, const struct kvmchan_answer *answer)
{
	int i;

	domains->own = answer->own;
	for (i = 0; i < answer->count && domains->count < domains->most; i++)
		domains->numbers[domains->count++] = answer->numbers[i];
	if (!answer->more || !answer->count || domains->count >= domains->most)
		return false;
	return domains->numbers[domains->count - 1] < INT_MAX;
}

int daemon_domains(struct kvmchan_domains *domains)
{
	struct kvmchan_request request = {.what = KVMCHAN_DOMAINS, .first = domains->first};
	bool more;

	domains->own = -1;
	domains->count = 0;
	do {
		struct call *call = make_call(&request);

		if (!call)
			return -1;
		more = add_domains(domains, &call->answer);
		call_free(call);
		if (more)
			request.first = domains->numbers[domains->count - 1] + 1;
	} while (more);
	return 0;
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

/* ---- closing ---- */

/* The daemon ends its side of the connection once it has released everything. An answer that nobody
 * took may come before that; its descriptors are dropped. */
static void hang_up(int fd)
{
	char byte;
	ssize_t got = shutdown(fd, SHUT_WR);

	while (got >= 0 && wait_readable(fd, true) == 0) {
		got = recv(fd, &byte, sizeof(byte), 0);
		if (got == 0)
			break;
	}
	close(fd);
}

void daemon_close(struct connection *connection)
{
	/* If the program has closed it, the daemon finds out by itself. */
	int error = errno, fd = connection_steal(connection), cancels;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancels);
	if (fd >= 0)
		hang_up(fd);
	pthread_setcancelstate(cancels, NULL);
	errno = error;
}
