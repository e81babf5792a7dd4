/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* See harness.h. Linux only, as the library is: it reads /proc to learn what is left and who
 * sleeps. */
#include "harness.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kvmchan.h"
#include "watchdog.h"

#if defined(__SANITIZE_THREAD__)
#define ONE_MAPPING 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define ONE_MAPPING 1
#endif
#endif
#ifndef ONE_MAPPING
#define ONE_MAPPING 0
#endif

#define FDS_MAX 1024

/* ---- the library's mappings ---- */

struct mapping {
	ino_t inode;
	off_t offset;
	uint8_t *start; /* guard page, the memory, guard page */
	size_t size;
	unsigned int users; /* 0: a free place */
};

static struct mapping mappings[64];
static pthread_mutex_t mappings_lock = PTHREAD_MUTEX_INITIALIZER;

void *__real_mmap64(void *address, size_t size, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *address, size_t size);
void *__wrap_mmap64(void *address, size_t size, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void *address, size_t size);

static struct mapping *mapping_find(ino_t inode, off_t offset, const uint8_t *memory)
{
	struct mapping *mapping, *free_place = NULL;

	for (mapping = mappings; mapping < mappings + 64; mapping++) {
		if (!mapping->users)
			free_place = mapping;
		else if (memory
			     ? mapping->start + PAGE == memory
			     : ONE_MAPPING && mapping->inode == inode && mapping->offset == offset)
			return mapping;
	}
	return free_place;
}

static void *mapping_make(struct mapping *mapping, size_t size, int protection, int flags, int fd,
			  off_t offset)
{
	mapping->start = __real_mmap64(NULL, size + 2 * (size_t)PAGE, PROT_NONE,
				       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	check(mapping->start != MAP_FAILED);
	mapping->size = size;
	return __real_mmap64(mapping->start + PAGE, size, protection, flags | MAP_FIXED, fd,
			     offset);
}

void *__wrap_mmap64(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
	struct mapping *mapping;
	struct stat status;
	int error;

	/* ThreadSanitizer would take that for a write, but another thread's access meets either
	 * the old memory or the new. */
	if (address)
		return (void *)syscall(SYS_mmap, address, size, protection, flags, fd, offset);
	if (fd < 0 || fstat(fd, &status) < 0)
		return __real_mmap64(address, size, protection, flags, fd, offset);
	pthread_mutex_lock(&mappings_lock);
	mapping = mapping_find(status.st_ino, offset, NULL);
	check(mapping);
	if (!mapping->users &&
	    mapping_make(mapping, size, protection, flags, fd, offset) == MAP_FAILED) {
		error = errno;
		__real_munmap(mapping->start, size + 2 * (size_t)PAGE);
		pthread_mutex_unlock(&mappings_lock);
		errno = error;
		return MAP_FAILED;
	}
	if (!mapping->users++) {
		mapping->inode = status.st_ino;
		mapping->offset = offset;
	}
	equal(size, mapping->size);
	pthread_mutex_unlock(&mappings_lock);
	return mapping->start + PAGE;
}

int __wrap_munmap(void *address, size_t size)
{
	struct mapping *mapping;
	int result = 0;

	pthread_mutex_lock(&mappings_lock);
	mapping = mapping_find(0, 0, address);
	if (!mapping || !mapping->users) {
		result = __real_munmap(address, size);
	} else {
		equal(size, mapping->size);
		if (!--mapping->users)
			result = __real_munmap(mapping->start, size + 2 * (size_t)PAGE);
	}
	pthread_mutex_unlock(&mappings_lock);
	return result;
}

/* ---- the runner ---- */

static struct watched *watched;

void test_fail(const char *file, int line, const char *format, ...)
{
	va_list arguments;

	fflush(stdout);
	fprintf(stderr, "%s:%d: in %s%s%s: ", file, line, watched->name,
		*watched->context ? ", " : "", watched->context);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	_exit(1);
}

void test_context(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(watched->context, sizeof(watched->context), format, arguments);
	va_end(arguments);
}

void check_true(const char *file, int line, const char *text, bool value)
{
	if (!value)
		test_fail(file, line, "not so: %s (errno: %s)", text, strerror(errno));
}

void check_equal(const char *file, int line, const char *text, long long actual, long long expected)
{
	if (actual != expected)
		test_fail(file, line, "%s is %lld, not %lld (errno: %s; %s)", text, actual,
			  expected, strerror(errno), kvmchan_last_error());
}

static void check_failure(const char *file, int line, const char *text, long long actual, int error,
			  const char *sentence, int expected)
{
	if (actual != -1 || error != expected)
		test_fail(file, line, "%s is %lld (%s), not -1 (%s)", text, actual, strerror(error),
			  strerror(expected));
	if (!*sentence)
		test_fail(file, line, "%s fails without a sentence", text);
}

void check_fails(const char *file, int line, const char *text, long long actual, int error,
		 int expected)
{
	check_failure(file, line, text, actual, error, kvmchan_last_error(), expected);
}

void check_call_fails(const char *file, int line, struct call *call, int expected)
{
	int result = call_end(call);

	check_failure(file, line, call_name(call->kind), result, call->error, call->sentence,
		      expected);
}

static void fds_list(bool fds[FDS_MAX])
{
	DIR *folder = opendir("/proc/self/fd");
	struct dirent *entry;

	check(folder);
	memset(fds, 0, FDS_MAX * sizeof(fds[0]));
	while ((entry = readdir(folder))) {
		int fd = atoi(entry->d_name);

		if (entry->d_name[0] != '.' && fd != dirfd(folder) && fd < FDS_MAX)
			fds[fd] = true;
	}
	closedir(folder);
}

static void check_fds(const bool before[FDS_MAX])
{
	bool after[FDS_MAX];
	int fd;

	fds_list(after);
	for (fd = 0; fd < FDS_MAX; fd++)
		if (after[fd] != before[fd])
			test_fail(__FILE__, __LINE__, "descriptor %d was %s", fd,
				  after[fd] ? "left open" : "closed, which was not the test's");
}

static void check_maps(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[512];

	check(maps);
	while (fgets(line, sizeof(line), maps))
		if (strstr(line, "kvmchan") && strstr(line, "memfd"))
			test_fail(__FILE__, __LINE__, "a mapping is left: %s", line);
	fclose(maps);
}

static void run_one(const struct test *test)
{
	bool fds[FDS_MAX];

	printf("%s\n", test->name);
	snprintf(watched->name, sizeof(watched->name), "%s", test->name);
	*watched->context = '\0';
	unsetenv("KVMCHAN_SPIN_US");
	unsetenv("KVMCHAN_DEBUG");
	fds_list(fds);
	watchdog_begin();
	test->run();
	signal(SIGUSR1, SIG_DFL);
	check_fds(fds);
	check_maps();
	equal(waitpid(-1, NULL, WNOHANG), -1);
	equal(errno, ECHILD);
}

static bool picked(const char *name, int argc, char **argv)
{
	int index;

	for (index = 1; index < argc; index++)
		if (strcmp(argv[index], name) == 0)
			return true;
	return argc < 2;
}

int run_tests(const struct test *tests, size_t count, int argc, char **argv)
{
	size_t index, done = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	watched = watchdog_fork();
	for (index = 0; index < count; index++) {
		if (!picked(tests[index].name, argc, argv))
			continue;
		run_one(&tests[index]);
		done++;
	}
	printf("%zu tests, nothing left over\n", done);
	return done ? 0 : 2;
}

/* ---- bytes that can be told ---- */

uint64_t random_next(uint64_t *state)
{
	uint64_t mixed = *state += 0x9e3779b97f4a7c15u;

	mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9u;
	mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebu;
	return mixed ^ mixed >> 31;
}

uint64_t random_below(uint64_t *state, uint64_t limit) { return random_next(state) % limit; }

/* One byte: a hash of where it is, so that a byte out of its place shows. */
static uint8_t pattern_byte(uint64_t stream, uint64_t position)
{
	return (uint8_t)(((position + stream * 0x51ed27) * 0x9e3779b97f4a7c15u) >> 37);
}

void pattern_fill(uint64_t stream, uint64_t position, void *data, size_t size)
{
	uint8_t *bytes = data;
	size_t index;

	for (index = 0; index < size; index++)
		bytes[index] = pattern_byte(stream, position + index);
}

void pattern_check(uint64_t stream, uint64_t position, const void *data, size_t size)
{
	const uint8_t *bytes = data;
	size_t index;

	for (index = 0; index < size; index++)
		if (bytes[index] != pattern_byte(stream, position + index))
			test_fail(__FILE__, __LINE__, "byte %llu of stream %llu is %u, not %u",
				  (unsigned long long)(position + index),
				  (unsigned long long)stream, bytes[index],
				  pattern_byte(stream, position + index));
}

/* ---- channels ---- */

static size_t own_pages(uint32_t order) { return order < 12 ? 0 : (size_t)1 << order; }

/* What the daemon writes before anyone connects (kvmchand/channels/page.py). */
void page_initialize(int region, off_t offset, uint32_t left, uint32_t right)
{
	struct vchan_interface header = {
	    .left_order = (uint16_t)left,
	    .right_order = (uint16_t)right,
	    .cli_live = 2,
	    .srv_live = 1,
	    .cli_notify = VCHAN_NOTIFY_WRITE,
	};

	equal(pwrite(region, &header, sizeof(header), offset), (ssize_t)sizeof(header));
}

void channel_make(struct channel *channel, uint32_t left, uint32_t right)
{
	int sockets[2];

	*channel = (struct channel){.left = left, .right = right};
	channel->region = memfd_create("kvmchan", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	check(channel->region >= 0);
	equal(ftruncate(channel->region, (off_t)(PAGE + own_pages(left) + own_pages(right))), 0);
	page_initialize(channel->region, 0, left, right);
	equal(fcntl(channel->region, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
	equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), 0);
	channel->server_socket = sockets[0];
	channel->client_socket = sockets[1];
}

int duplicate(int fd)
{
	int other = fcntl(fd, F_DUPFD_CLOEXEC, 0);

	check(other >= 0);
	return other;
}

int share_event(int event)
{
	struct epoll_event wanted = {.events = EPOLLIN | EPOLLET};
	int fd = epoll_create1(EPOLL_CLOEXEC);

	check(fd >= 0);
	equal(epoll_ctl(fd, EPOLL_CTL_ADD, event, &wanted), 0);
	return fd;
}

struct kvmchan_grant channel_grant(const struct channel *channel, bool server)
{
	return (struct kvmchan_grant){
	    .region_fd = duplicate(channel->region),
	    .event_fd = duplicate(server ? channel->server_socket : channel->client_socket),
	    .notify_fd = -1,
	    .control_fd = -1,
	    .is_server = server,
	    .channel = 4,
	    .left_order = channel->left,
	    .right_order = channel->right,
	};
}

static struct libxenvchan *attach(const struct channel *channel, bool server)
{
	struct kvmchan_grant grant = channel_grant(channel, server);
	struct libxenvchan *end = kvmchan_attach(&grant);

	if (!end)
		test_fail(__FILE__, __LINE__, "no %s: %s", server ? "server" : "client",
			  kvmchan_last_error());
	return end;
}

void channel_attach_server(struct channel *channel) { channel->server = attach(channel, true); }

void channel_attach_client(struct channel *channel) { channel->client = attach(channel, false); }

void channel_open(struct channel *channel, uint32_t left, uint32_t right)
{
	channel_make(channel, left, right);
	channel_attach_server(channel);
	channel_attach_client(channel);
}

void channel_preset(struct channel *channel, uint32_t left, uint32_t right)
{
	struct libxenvchan *server = attach(channel, true);

	*server->read.shr = (struct ring_shared){.cons = left, .prod = left};
	*server->write.shr = (struct ring_shared){.cons = right, .prod = right};
	kvmchan_detach(server);
}

void end_close(struct libxenvchan **end)
{
	kvmchan_hang_up(*end);
	kvmchan_detach(*end);
	*end = NULL;
}

static void end_dies(struct libxenvchan **end, int socket)
{
	struct vchan_interface *page = (*end)->ring;

	__atomic_store_n((*end)->is_server ? &page->srv_live : &page->cli_live, 0,
			 __ATOMIC_SEQ_CST);
	kvmchan_detach(*end);
	*end = NULL;
	equal(send(socket, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL), 1);
}

void channel_server_dies(struct channel *channel)
{
	end_dies(&channel->server, channel->server_socket);
}

void channel_client_dies(struct channel *channel)
{
	end_dies(&channel->client, channel->client_socket);
}

static void give_up(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void channel_orphan(struct channel *channel)
{
	give_up(&channel->server_socket);
	give_up(&channel->client_socket);
}

void channel_close(struct channel *channel)
{
	if (channel->client)
		end_close(&channel->client);
	if (channel->server)
		end_close(&channel->server);
	channel_orphan(channel);
	give_up(&channel->region);
}

void set_blocking(struct libxenvchan *end, bool on) { end->blocking = on ? -1 : 0; }

uint32_t ring_size_in(const struct libxenvchan *end) { return 1u << end->read.order; }

uint32_t ring_size_out(const struct libxenvchan *end) { return 1u << end->write.order; }

static bool poll_end(const struct libxenvchan *end, int timeout)
{
	struct pollfd poller = {
	    .fd = libxenvchan_fd_for_select((struct libxenvchan *)end),
	    .events = POLLIN,
	};
	int count;

	do
		count = poll(&poller, 1, timeout);
	while (count < 0 && errno == EINTR);
	check(count >= 0);
	return count;
}

bool readable(const struct libxenvchan *end) { return poll_end(end, 0); }

void until_readable(struct libxenvchan *end) { poll_end(end, -1); }

void take_events(struct libxenvchan *end)
{
	while (readable(end))
		equal(libxenvchan_wait(end), 0);
}

uint8_t peek(const uint8_t *byte) { return __atomic_load_n(byte, __ATOMIC_SEQ_CST); }

/* ---- calls ---- */

const char *call_name(enum call_kind kind)
{
	static const char *const names[CALL_KINDS] = {"send", "write", "recv", "read", "wait"};

	return names[kind];
}

int call_now(enum call_kind kind, struct libxenvchan *end, void *data, size_t size)
{
	switch (kind) {
	case SEND:
		return libxenvchan_send(end, data, size);
	case WRITE:
		return libxenvchan_write(end, data, size);
	case RECV:
		return libxenvchan_recv(end, data, size);
	case READ:
		return libxenvchan_read(end, data, size);
	case WAIT:
		break;
	}
	return libxenvchan_wait(end);
}

static void *call_run(void *argument)
{
	struct call *call = argument;

	__atomic_store_n(&call->id, gettid(), __ATOMIC_SEQ_CST);
	errno = 0;
	call->result = call_now(call->kind, call->end, call->data, call->size);
	call->error = errno;
	snprintf(call->sentence, sizeof(call->sentence), "%s", kvmchan_last_error());
	__atomic_store_n(&call->done, true, __ATOMIC_SEQ_CST);
	return NULL;
}

void call_start(struct call *call)
{
	call->id = 0;
	call->done = false;
	thread_start(&call->thread, call_run, call);
}

bool call_is_done(struct call *call) { return __atomic_load_n(&call->done, __ATOMIC_SEQ_CST); }

void call_until_asleep(struct call *call)
{
	pid_t id;

	while (!(id = __atomic_load_n(&call->id, __ATOMIC_SEQ_CST)))
		sched_yield();
	while (task_state(getpid(), id) != 'S') {
		if (call_is_done(call))
			test_fail(__FILE__, __LINE__, "%s returned %d (%s), though it had to wait",
				  call_name(call->kind), call->result, strerror(call->error));
		sched_yield();
	}
}

int call_end(struct call *call)
{
	thread_end(call->thread);
	errno = call->error;
	return call->result;
}

/* ---- waits for what another thread writes into memory ---- */

/* Tens of microseconds, as ThreadSanitizer makes each look slower: about what a peer needs to wake
 * up and do its part. */
#define LOOKS (ONE_MAPPING ? 200 : 2000)

bool looked_enough(unsigned int *looks) { return ++*looks % LOOKS == 0; }

void bell_make(struct bell *bell)
{
	bell->fd = eventfd(0, EFD_CLOEXEC);
	check(bell->fd >= 0);
}

void bell_end(struct bell *bell) { equal(close(bell->fd), 0); }

void bell_ring(const struct bell *bell) { equal(eventfd_write(bell->fd, 1), 0); }

void bell_await(const struct bell *bell)
{
	eventfd_t rings;

	equal(eventfd_read(bell->fd, &rings), 0);
}

/* ---- signals ---- */

int signals_came;

static void on_signal(int number)
{
	(void)number;
	__atomic_fetch_add(&signals_came, 1, __ATOMIC_RELAXED);
}

void signals_go(int flags)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = flags};

	signals_came = 0;
	equal(sigaction(SIGUSR1, &action, NULL), 0);
}

/* ---- threads and processes ---- */

void thread_start(pthread_t *thread, void *(*run)(void *), void *argument)
{
	equal(pthread_create(thread, NULL, run, argument), 0);
}

void thread_end(pthread_t thread) { equal(pthread_join(thread, NULL), 0); }

pid_t child_start(void (*run)(void *), void *argument)
{
	pid_t child;

	fflush(stdout);
	child = fork();
	check(child >= 0);
	if (child)
		return child;
	watchdog_forked();
	run(argument);
	_exit(0);
}

void child_until_asleep(pid_t child)
{
	char state;

	while ((state = task_state(child, child)) != 'S') {
		if (!state || state == 'Z')
			test_fail(__FILE__, __LINE__, "the child ended, though it had to wait");
		sched_yield();
	}
}

void child_end(pid_t child)
{
	int status;

	equal(waitpid(child, &status, 0), child);
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		test_fail(__FILE__, __LINE__, "the child ended with %s %d",
			  WIFEXITED(status) ? "status" : "signal",
			  WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
}
