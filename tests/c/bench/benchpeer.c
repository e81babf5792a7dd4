/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Measures one thing per run and prints it as one line of JSON, for tests/bench/bench.py.
 *
 * It is compiled once and run over our libxenvchan or the distribution's, whichever the loader
 * finds. The same streams and ping-pongs over a UNIX socket and over a bare shared-memory ring show
 * what the kernel's way costs, and what the machine could do at best.
 *
 * Both ends come from one process by fork: the parent is the server, which sends the streams and
 * echoes the ping-pongs, the child is the client, which measures and prints. Every call moves
 * one fixed buffer; its first 8 bytes are a sequence number that the receiver checks.
 */
#define _GNU_SOURCE 1

#include <libxenvchan.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PINGPONG_RING 4096UL /* or the message's size, where that is larger */

static const char *path = "data/vchan/bench";
static int domain;
static int cpus[2] = {-1, -1}; /* of server and client */

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "benchpeer: %s: %s\n", what, errno ? strerror(errno) : "failed");
	exit(1);
}

static void *must(void *p, const char *what)
{
	if (!p)
		die(what);
	return p;
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void pin(int cpu)
{
	cpu_set_t set;

	if (cpu < 0)
		return;
	CPU_ZERO(&set);
	CPU_SET((unsigned int)cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
}

static void *page_alloc(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

/*
 * The bare ring: one producer, one consumer, each index on a cache line of its own, no events. It
 * never sleeps, so it is only a fair limit where both ends have a CPU.
 */
struct bare_ring {
	_Alignas(64) _Atomic uint64_t prod;
	_Alignas(64) _Atomic uint64_t cons;
	_Alignas(64) unsigned char data[];
};

/* One end of whatever carries the bytes. */
struct end {
	size_t (*put)(struct end *, const unsigned char *, size_t);
	size_t (*get)(struct end *, unsigned char *, size_t);
	struct libxenvchan *vchan;
	int fd;
	struct bare_ring *in, *out;
	uint64_t ring_size;
};

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

static size_t bare_put(struct end *e, const unsigned char *from, size_t n)
{
	struct bare_ring *r = e->out;
	uint64_t prod = atomic_load_explicit(&r->prod, memory_order_relaxed);
	uint64_t at = prod & (e->ring_size - 1);
	size_t head = n < e->ring_size - at ? n : e->ring_size - at;

	while (e->ring_size - (prod - atomic_load_explicit(&r->cons, memory_order_acquire)) < n)
		relax();
	memcpy(r->data + at, from, head);
	memcpy(r->data, from + head, n - head);
	atomic_store_explicit(&r->prod, prod + n, memory_order_release);
	return n;
}

static size_t bare_get(struct end *e, unsigned char *to, size_t n)
{
	struct bare_ring *r = e->in;
	uint64_t cons = atomic_load_explicit(&r->cons, memory_order_relaxed);
	uint64_t at = cons & (e->ring_size - 1), ready;
	size_t head;

	while (!(ready = atomic_load_explicit(&r->prod, memory_order_acquire) - cons))
		relax();
	n = n < ready ? n : ready;
	head = n < e->ring_size - at ? n : e->ring_size - at;
	memcpy(to, r->data + at, head);
	memcpy(to + head, r->data, n - head);
	atomic_store_explicit(&r->cons, cons + n, memory_order_release);
	return n;
}

static size_t socket_put(struct end *e, const unsigned char *from, size_t n)
{
	ssize_t got = write(e->fd, from, n);

	if (got <= 0)
		die("socket write");
	return (size_t)got;
}

static size_t socket_get(struct end *e, unsigned char *to, size_t n)
{
	ssize_t got = read(e->fd, to, n);

	if (got <= 0)
		die("socket read");
	return (size_t)got;
}

static size_t vchan_put(struct end *e, const unsigned char *from, size_t n)
{
	if (libxenvchan_send(e->vchan, from, n) != (int)n)
		die("libxenvchan_send");
	return n;
}

static size_t vchan_get(struct end *e, unsigned char *to, size_t n)
{
	int got = libxenvchan_read(e->vchan, to, n);

	if (got <= 0)
		die("libxenvchan_read");
	return (size_t)got;
}

static size_t vchan_recv(struct end *e, unsigned char *to, size_t n)
{
	if (libxenvchan_recv(e->vchan, to, n) != (int)n)
		die("libxenvchan_recv");
	return n;
}

static void put_call(struct end *e, unsigned char *buf, size_t n, uint64_t sequence)
{
	if (n >= sizeof(sequence))
		memcpy(buf, &sequence, sizeof(sequence));
	for (size_t done = 0; done < n;)
		done += e->put(e, buf + done, n - done);
}

static void get_call(struct end *e, unsigned char *buf, size_t n, uint64_t sequence)
{
	for (size_t done = 0; done < n;)
		done += e->get(e, buf + done, n - done);
	if (n >= sizeof(sequence) && memcmp(buf, &sequence, sizeof(sequence))) {
		errno = EBADMSG;
		die("sequence number");
	}
}

static unsigned char *call_buffer(size_t n)
{
	unsigned char *buf = must(aligned_alloc(4096, (n + 4095) & ~4095UL), "malloc");

	memset(buf, 0x5a, n);
	return buf;
}

enum carrier { VCHAN, SOCKET, COPY };

struct job {
	const char *mode;
	enum carrier carrier;
	bool pingpong;
	size_t call, ring;
	uint64_t calls;
	uint64_t think_ns; /* that the server works before it answers */
	/* made before the fork */
	int sockets[2], ready[2];
	struct bare_ring *bare[2];
};

static void job_prepare(struct job *job)
{
	if (job->carrier == SOCKET && socketpair(AF_UNIX, SOCK_STREAM, 0, job->sockets))
		die("socketpair");
	for (int i = 0; job->carrier == COPY && i < 2; i++)
		job->bare[i] = page_alloc(sizeof(struct bare_ring) + job->ring);
	/* A server may be slow to come up; its client waits here, not by trying again. */
	if (pipe(job->ready))
		die("pipe");
}

static void vchan_open(struct end *e, const struct job *job, bool server)
{
	/* Of the two rings only one can be of order 10, and the other then is 11. */
	size_t other = job->pingpong ? job->ring : job->ring <= 1024 ? 2048 : 1024;
	int yes = 1; /* in a signed 1-bit field, so not written as a constant */
	char byte = 0;

	e->put = vchan_put;
	e->get = job->pingpong ? vchan_recv : vchan_get;
	if (server) {
		e->vchan = libxenvchan_server_init(NULL, domain, path, other, job->ring);
		must(e->vchan, "libxenvchan_server_init");
		if (write(job->ready[1], &byte, 1) != 1)
			die("pipe");
	} else {
		if (read(job->ready[0], &byte, 1) != 1)
			die("pipe");
		e->vchan = libxenvchan_client_init(NULL, domain, path);
		must(e->vchan, "libxenvchan_client_init");
	}
	e->vchan->blocking = yes;
	if (server && 1UL << e->vchan->write.order != job->ring) {
		errno = 0;
		die("RING must be a size that a vchan ring can have");
	}
}

static void end_open(struct end *e, const struct job *job, bool server)
{
	memset(e, 0, sizeof(*e));
	close(job->ready[!server]);
	switch (job->carrier) {
	case VCHAN:
		vchan_open(e, job, server);
		break;
	case SOCKET:
		close(job->sockets[!server]);
		e->fd = job->sockets[server];
		e->put = socket_put;
		e->get = socket_get;
		break;
	case COPY:
		e->in = job->bare[server];
		e->out = job->bare[!server];
		e->ring_size = job->ring;
		e->put = bare_put;
		e->get = bare_get;
		break;
	}
}

static void think(uint64_t ns)
{
	uint64_t until = ns ? now_ns() + ns : 0;

	while (ns && now_ns() < until)
		;
}

static void serve(const struct job *job)
{
	unsigned char *buf = call_buffer(job->call);
	struct end e;

	end_open(&e, job, true);
	for (uint64_t i = 0; i < job->calls; i++) {
		if (job->pingpong)
			get_call(&e, buf, job->call, i);
		think(job->think_ns);
		put_call(&e, buf, job->call, i);
	}
	while (wait(NULL) > 0 || errno == EINTR)
		;
	libxenvchan_close(e.vchan);
	free(buf);
}

static void measure_stream(const struct job *job, struct end *e, unsigned char *buf)
{
	uint64_t start, ns, bytes = (job->calls - 1) * job->call;

	get_call(e, buf, job->call, 0);
	start = now_ns();
	for (uint64_t i = 1; i < job->calls; i++)
		get_call(e, buf, job->call, i);
	ns = now_ns() - start;
	printf("{\"mode\": \"%s\", \"call\": %zu, ", job->mode, job->call);
	if (job->ring)
		printf("\"ring\": %zu, ", job->ring);
	printf("\"bytes\": %" PRIu64 ", \"seconds\": %.6f, \"bytes_per_second\": %.0f}\n", bytes,
	       (double)ns / 1e9, (double)bytes * 1e9 / (double)ns);
}

/* The processor's time of the end that waits. */
static uint64_t cpu_ns(void)
{
	struct timespec used;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
	return (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
}

static void measure_pingpong(const struct job *job, struct end *e, unsigned char *buf)
{
	uint64_t warm_up = job->calls / 11, start = now_ns(), used = cpu_ns();

	for (uint64_t i = 0; i < job->calls; i++) {
		if (i == warm_up) {
			start = now_ns();
			used = cpu_ns();
		}
		put_call(e, buf, job->call, i);
		get_call(e, buf, job->call, i);
	}
	printf("{\"mode\": \"%s\", \"size\": %zu, \"count\": %" PRIu64
	       ", \"round_trip_ns\": %.1f, \"cpu_ns\": %.1f}\n",
	       job->mode, job->call, job->calls - warm_up,
	       (double)(now_ns() - start) / (double)(job->calls - warm_up),
	       (double)(cpu_ns() - used) / (double)(job->calls - warm_up));
}

static void measure(const struct job *job)
{
	unsigned char *buf = call_buffer(job->call);
	struct end e;

	end_open(&e, job, false);
	if (job->pingpong)
		measure_pingpong(job, &e, buf);
	else
		measure_stream(job, &e, buf);
	libxenvchan_close(e.vchan);
	free(buf);
}

/* Neither end outlives the other: not every libxenvchan tells of a peer that died. */
static void on_child(int sig)
{
	int saved = errno, status;

	(void)sig;
	if (waitpid(-1, &status, WNOHANG) > 0 && status)
		_exit(1);
	errno = saved;
}

static void run(struct job *job)
{
	struct sigaction action = {.sa_handler = on_child, .sa_flags = SA_RESTART};
	pid_t parent = getpid(), child;

	job_prepare(job);
	sigaction(SIGCHLD, &action, NULL);
	child = fork();
	if (child < 0)
		die("fork");
	if (child) {
		pin(cpus[0]);
		serve(job);
		return;
	}
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent)
		_exit(1);
	pin(cpus[1]);
	measure(job);
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void print_times(const char *name, uint64_t *ns, uint64_t count)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < count; i++)
		sum += ns[i];
	qsort(ns, count, sizeof(*ns), compare);
	printf(", \"%s\": {\"median_ns\": %" PRIu64 ", \"mean_ns\": %.0f}", name, ns[count / 2],
	       (double)sum / (double)count);
}

static void measure_setup(uint64_t count)
{
	static const char *const names[] = {"server_init", "client_init", "client_close",
					    "server_close"};
	const uint64_t warm_up = 3;
	struct libxenvchan *server, *client;
	uint64_t *ns[4], t[5];

	for (int call = 0; call < 4; call++)
		ns[call] = must(calloc(count, sizeof(uint64_t)), "malloc");
	for (uint64_t i = 0; i < count + warm_up; i++) {
		t[0] = now_ns();
		server = libxenvchan_server_init(NULL, domain, path, 65536, 65536);
		t[1] = now_ns();
		must(server, "libxenvchan_server_init");
		client = libxenvchan_client_init(NULL, domain, path);
		t[2] = now_ns();
		must(client, "libxenvchan_client_init");
		libxenvchan_close(client);
		t[3] = now_ns();
		libxenvchan_close(server);
		t[4] = now_ns();
		for (int call = 0; call < 4 && i >= warm_up; call++)
			ns[call][i - warm_up] = t[call + 1] - t[call];
	}
	printf("{\"mode\": \"vchan-setup\", \"count\": %" PRIu64, count);
	for (int call = 0; call < 4; call++) {
		print_times(names[call], ns[call], count);
		free(ns[call]);
	}
	printf("}\n");
}

static int usage(void)
{
	fputs("usage: benchpeer [--path PATH] [--domain N] [--cpus SERVER,CLIENT] MODE ...\n"
	      "  vchan-stream|copy-stream CALLSIZE TOTALBYTES RING\n"
	      "  socket-stream CALLSIZE TOTALBYTES\n"
	      "  vchan-pingpong|socket-pingpong|copy-pingpong SIZE COUNT [THINK_NS]\n"
	      "  vchan-setup COUNT\n",
	      stderr);
	return 2;
}

/* Fills in what the mode's name says. */
static bool job_parse(struct job *job, const char *mode)
{
	static const char *const carriers[] = {"vchan-", "socket-", "copy-"};

	job->mode = mode;
	for (int i = VCHAN; i <= COPY; i++) {
		size_t len = strlen(carriers[i]);

		if (strncmp(mode, carriers[i], len))
			continue;
		job->carrier = (enum carrier)i;
		job->pingpong = !strcmp(mode + len, "pingpong");
		return job->pingpong || !strcmp(mode + len, "stream");
	}
	return false;
}

static uint64_t number(const char *text)
{
	char *end;
	uint64_t n = strtoull(text, &end, 0);

	if (*end || !n)
		exit(usage());
	return n;
}

static int run_mode(int argc, char **argv)
{
	struct job job = {0};
	bool ring_given;

	if (argc == 2 && !strcmp(argv[0], "vchan-setup")) {
		measure_setup(number(argv[1]));
		return 0;
	}
	if (argc < 3 || !job_parse(&job, argv[0]))
		return usage();
	ring_given = !job.pingpong && job.carrier != SOCKET;
	if (argc != (ring_given ? 4 : 3) && !(job.pingpong && argc == 4))
		return usage();
	if (job.pingpong && argc == 4)
		job.think_ns = number(argv[3]);
	job.call = number(argv[1]);
	job.calls = number(argv[2]);
	if (job.pingpong) {
		job.calls += job.calls / 10; /* the warm-up */
		for (job.ring = PINGPONG_RING; job.ring < job.call;)
			job.ring *= 2;
	} else {
		job.calls = job.calls / job.call + 1; /* the first is not counted */
	}
	if (ring_given) {
		job.ring = number(argv[3]);
		if ((job.ring & (job.ring - 1)) || job.call > job.ring)
			return usage();
	}
	run(&job);
	return 0;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {{"path", required_argument, NULL, 'p'},
						{"domain", required_argument, NULL, 'd'},
						{"cpus", required_argument, NULL, 'c'},
						{NULL, 0, NULL, 0}};
	int opt;

	while ((opt = getopt_long(argc, argv, "", options, NULL)) >= 0) {
		if (opt == 'p')
			path = optarg;
		else if (opt == 'd')
			domain = atoi(optarg);
		else if (opt != 'c' || sscanf(optarg, "%d,%d", &cpus[0], &cpus[1]) != 2)
			return usage();
	}
	return run_mode(argc - optind, argv + optind);
}
