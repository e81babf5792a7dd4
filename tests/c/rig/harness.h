/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the tests of the data plane share: a runner, channels without a daemon, and calls made by
 * other threads and processes.
 *
 * A test is a function that returns when all is well; the first failed check ends the program.
 * After each test the runner asserts that nothing is left of it: no descriptor, no mapping of a
 * channel, no child.
 *
 * The library's mmap and munmap are wrapped (see harness.c), so that a step outside of a channel's
 * memory hits a guard page, and so that under ThreadSanitizer both ends are at one address, without
 * which it would see two unrelated memories.
 */
#ifndef KVMCHAN_TEST_HARNESS_H
#define KVMCHAN_TEST_HARNESS_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "dataplane/vchan.h"
#include "ring/page.h"

/* ---- the runner ---- */

struct test {
	const char *name;
	void (*run)(void);
};

#define TEST(function)                                                                             \
	{                                                                                          \
#function, function                                                                \
	}
/* A program of tests; names given as arguments pick some of them. */
#define TEST_MAIN(tests)                                                                           \
	int main(int argc, char **argv)                                                            \
	{                                                                                          \
		return run_tests(tests, sizeof(tests) / sizeof((tests)[0]), argc, argv);           \
	}

int run_tests(const struct test *tests, size_t count, int argc, char **argv);

/* Says where and why, and ends the program (a child: with status 1, which child_end() sees). */
_Noreturn void test_fail(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The same for what follows: which round, which variant. Shown by a failure until the test ends. */
void test_context(const char *format, ...) __attribute__((format(printf, 1, 2)));

void check_true(const char *file, int line, const char *text, bool value);
void check_equal(const char *file, int line, const char *text, long long actual,
		 long long expected);
void check_fails(const char *file, int line, const char *text, long long actual, int error,
		 int expected);

#define check(condition) check_true(__FILE__, __LINE__, #condition, condition)
#define equal(actual, expected)                                                                    \
	check_equal(__FILE__, __LINE__, #actual, (long long)(actual), (long long)(expected))
/* -1, this errno, and a sentence to go with it. */
#define fails(call, expected)                                                                      \
	do {                                                                                       \
		long long fails_result;                                                            \
		errno = 0;                                                                         \
		fails_result = (call);                                                             \
		check_fails(__FILE__, __LINE__, #call, fails_result, errno, expected);             \
	} while (0)

/* ---- bytes that can be told ---- */

uint64_t random_next(uint64_t *state);
uint64_t random_below(uint64_t *state, uint64_t limit);
/* The bytes from @position of the endless stream numbered @stream. */
void pattern_fill(uint64_t stream, uint64_t position, void *data, size_t size);
void pattern_check(uint64_t stream, uint64_t position, const void *data, size_t size);

/* ---- channels ---- */

/* A channel, with what the daemon would keep of it. */
struct channel {
	int region;	   /* the memory; -1: given up */
	int server_socket; /* duplicates of the ends' event sockets; -1: given up */
	int client_socket;
	uint32_t left, right; /* orders */
	struct libxenvchan *server, *client;
};

/* Writes what the daemon writes into a channel's page before anyone connects. */
void page_initialize(int region, off_t offset, uint32_t left, uint32_t right);
/* Another descriptor of the same. */
int duplicate(int fd);
/* What the daemon gives an end to wait on where the eventfd @event is not its own for good: an
 * epoll, which the caller closes. */
int share_event(int event);
/* The memory and the sockets, no ends yet. */
void channel_make(struct channel *channel, uint32_t left, uint32_t right);
/* Lets both rings of a channel without ends go on from indexes of the test's choice. */
void channel_preset(struct channel *channel, uint32_t left, uint32_t right);
/* Duplicates of what an end needs, no control connection. */
struct kvmchan_grant channel_grant(const struct channel *channel, bool server);
void channel_attach_server(struct channel *channel);
void channel_attach_client(struct channel *channel);
/* All of it: memory, sockets, both ends. */
void channel_open(struct channel *channel, uint32_t left, uint32_t right);
/* What libxenvchan_close() does when there is no daemon to tell. */
void end_close(struct libxenvchan **end);
/* What the daemon does when an end's process dies. */
void channel_server_dies(struct channel *channel);
void channel_client_dies(struct channel *channel);
/* The daemon's own death: from now on only the ends hold the sockets. */
void channel_orphan(struct channel *channel);
/* Lets go of everything that is still there. */
void channel_close(struct channel *channel);

void set_blocking(struct libxenvchan *end, bool on);
uint32_t ring_size_in(const struct libxenvchan *end);
uint32_t ring_size_out(const struct libxenvchan *end);
/* Whether an event is pending, by the end's fd_for_select. */
bool readable(const struct libxenvchan *end);
/* Takes all pending events. */
void take_events(struct libxenvchan *end);
/* Blocks until an event is pending. */
void until_readable(struct libxenvchan *end);
/* A byte of the shared page as it is now, another thread or process may be writing it. */
uint8_t peek(const uint8_t *byte);

/* ---- calls ---- */

enum call_kind { SEND, WRITE, RECV, READ, WAIT };
#define CALL_KINDS 5

const char *call_name(enum call_kind kind);
int call_now(enum call_kind kind, struct libxenvchan *end, void *data, size_t size);

/* A call in a thread of its own. */
struct call {
	enum call_kind kind;
	struct libxenvchan *end;
	void *data;
	size_t size;
	/* What is below belongs to the functions. */
	int result, error;
	char sentence[256];
	pthread_t thread;
	pid_t id;
	bool done;
};

void call_start(struct call *call);
/* Until the thread sleeps in the kernel; the call must not end before. */
void call_until_asleep(struct call *call);
bool call_is_done(struct call *call);
/* Joins the thread: the call's result, with its errno in this thread's place. */
int call_end(struct call *call);
/* Joins it, and asserts what fails() does. */
#define call_fails(call, expected) check_call_fails(__FILE__, __LINE__, call, expected)
void check_call_fails(const char *file, int line, struct call *call, int expected);

/* ---- waits for what another thread writes into memory ---- */

/*
 * A test that looks for a race looks at memory again and again, so that it is there at the very
 * moment. But while another program has the processors, who never sleeps only keeps its own peer
 * from running, a whole time slice for each round; and sched_yield() is no better. So after as many
 * looks in vain as are worth it, a wait sleeps until it is told.
 */
bool looked_enough(unsigned int *looks);

/* Tells a thread that it may look again. */
struct bell {
	int fd;
};
void bell_make(struct bell *bell);
void bell_end(struct bell *bell);
void bell_ring(const struct bell *bell);
/* Sleeps until it was rung since the last time. */
void bell_await(const struct bell *bell);

/* ---- signals ---- */

/* Until the test ends SIGUSR1 is handled, with these flags of sigaction(): it is counted. */
void signals_go(int flags);
extern int signals_came;

/* ---- threads and processes ---- */

void thread_start(pthread_t *thread, void *(*run)(void *), void *argument);
/* A thread that does not end is a hang, which the watchdog sees. */
void thread_end(pthread_t thread);
/* Runs in a child that dies with us, and ends with status 0 unless a check fails. */
pid_t child_start(void (*run)(void *), void *argument);
void child_until_asleep(pid_t child);
void child_end(pid_t child);

#endif
