/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Ends whose events pass a guest's border: on eventfds, and by a device's doorbell. Their memory is
 * a slice of what others have slices of too, their waits also end with the daemon, and what they
 * write to and read from must still be what it was.
 */
#include "rig/harness.h"

#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kvmchan.h"

/* The device: a page that is BAR 0 where a test has a doorbell, a page of somebody else's, our
 * slice, and again a page of somebody else's. */
#define SLICE (2 * PAGE)
#define SLICE_SIZE (3 * PAGE)
#define DEVICE_SIZE (SLICE + SLICE_SIZE + PAGE)
#define OTHERS 0xa5
/* The client writes into a ring in the page, the server into one with pages of its own. */
#define LEFT_ORDER 10
#define RIGHT_ORDER 13
#define LEFT (1u << LEFT_ORDER)
#define RIGHT (1u << RIGHT_ORDER)
#define BULK (1u << 20)

static uint8_t out[BULK], in[BULK];

/* ---- a channel on a device ---- */

struct device {
	/* Whose sockets are the eventfds that the ends wait on. */
	struct channel channel;
	/* By end, the server's first: the daemon's side of the control connection, -1 when it is
	 * gone; and the numbers in the grant. */
	int daemon[2];
	int control[2], notify[2];
};

static int make_eventfd(unsigned int count)
{
	int fd = eventfd(count, EFD_CLOEXEC | EFD_NONBLOCK);

	check(fd >= 0);
	return fd;
}

static void device_make(struct device *device)
{
	static uint8_t others[DEVICE_SIZE];

	*device = (struct device){.daemon = {-1, -1}};
	device->channel.left = LEFT_ORDER;
	device->channel.right = RIGHT_ORDER;
	device->channel.region = memfd_create("kvmchan", MFD_CLOEXEC);
	check(device->channel.region >= 0);
	memset(others, OTHERS, sizeof(others));
	memset(others + SLICE, 0, SLICE_SIZE);
	equal(pwrite(device->channel.region, others, DEVICE_SIZE, 0), DEVICE_SIZE);
	page_initialize(device->channel.region, SLICE, LEFT_ORDER, RIGHT_ORDER);
	device->channel.server_socket = make_eventfd(0);
	device->channel.client_socket = make_eventfd(0);
}

/* Of an end on eventfds. */
static struct kvmchan_grant device_grant(struct device *device, bool server)
{
	struct kvmchan_grant grant = channel_grant(&device->channel, server);
	int sockets[2];

	equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
	device->daemon[!server] = sockets[1];
	grant.events = KVMCHAN_EVENTS_EVENTFD;
	grant.offset = SLICE;
	grant.control_fd = device->control[!server] = sockets[0];
	grant.notify_fd = device->notify[!server] =
	    duplicate(server ? device->channel.client_socket : device->channel.server_socket);
	return grant;
}

static struct libxenvchan *attached(const struct kvmchan_grant *grant)
{
	struct libxenvchan *end = kvmchan_attach(grant);

	if (!end)
		test_fail(__FILE__, __LINE__, "no end: %s", kvmchan_last_error());
	return end;
}

static void device_open(struct device *device)
{
	struct kvmchan_grant server, client;

	device_make(device);
	server = device_grant(device, true);
	device->channel.server = attached(&server);
	client = device_grant(device, false);
	device->channel.client = attached(&client);
	take_events(device->channel.server);
}

static void hang_up(struct device *device, bool server)
{
	equal(close(device->daemon[!server]), 0);
	device->daemon[!server] = -1;
}

static void device_close(struct device *device)
{
	int end;

	channel_close(&device->channel);
	for (end = 0; end < 2; end++)
		if (device->daemon[end] >= 0)
			close(device->daemon[end]);
}

static void client_puts(struct device *device, uint64_t position, uint32_t count)
{
	pattern_fill(1, position, out, count);
	equal(libxenvchan_send(device->channel.client, out, count), count);
}

static void server_gets(struct device *device, uint64_t position, uint32_t count)
{
	memset(in, 0, count);
	equal(libxenvchan_recv(device->channel.server, in, count), count);
	pattern_check(1, position, in, count);
}

/* A call of the server's that has to wait, and does. */
static void server_blocks(struct device *device, struct call *call, enum call_kind kind)
{
	static uint8_t scratch[2];

	if (kind == SEND || kind == WRITE)
		equal(libxenvchan_write(device->channel.server, out, BULK), RIGHT);
	set_blocking(device->channel.server, true);
	*call =
	    (struct call){.kind = kind, .end = device->channel.server, .data = scratch, .size = 2};
	call_start(call);
	call_until_asleep(call);
}

static uint64_t count_of(int fd)
{
	eventfd_t count = 0;

	return eventfd_read(fd, &count) == 0 ? count : 0;
}

/* ---- data and events ---- */

static void data_passes_each_way(void)
{
	struct device device;

	device_open(&device);
	equal(libxenvchan_is_open(device.channel.server), 1);
	equal(libxenvchan_is_open(device.channel.client), 1);
	client_puts(&device, 0, LEFT);
	server_gets(&device, 0, LEFT);
	pattern_fill(2, 0, out, RIGHT);
	equal(libxenvchan_send(device.channel.server, out, RIGHT), RIGHT);
	equal(libxenvchan_recv(device.channel.client, in, RIGHT), RIGHT);
	pattern_check(2, 0, in, RIGHT);
	device_close(&device);
}

static void each_blocked_call_is_woken(void)
{
	struct device device;
	int kind;

	for (kind = SEND; kind <= WAIT; kind++) {
		struct call call;

		test_context("%s", call_name(kind));
		device_open(&device);
		server_blocks(&device, &call, kind);
		if (kind == SEND || kind == WRITE)
			equal(libxenvchan_recv(device.channel.client, in, 2), 2);
		else
			client_puts(&device, 0, 2);
		equal(call_end(&call), kind == WAIT ? 0 : 2);
		device_close(&device);
	}
}

static void much_passes_between_two_threads(void)
{
	struct device device;
	int server;

	device_open(&device);
	set_blocking(device.channel.server, true);
	set_blocking(device.channel.client, true);
	for (server = 0; server < 2; server++) {
		struct libxenvchan *from = server ? device.channel.server : device.channel.client;
		struct libxenvchan *to = server ? device.channel.client : device.channel.server;
		struct call call = {.kind = WRITE, .end = from, .data = out, .size = BULK};
		uint64_t seed = 1;
		uint32_t done = 0;

		test_context("server %d", server);
		pattern_fill(1, 0, out, BULK);
		call_start(&call);
		while (done < BULK) {
			uint32_t most = 1 + (uint32_t)random_below(&seed, 3000);
			int count = libxenvchan_read(to, in + done,
						     most < BULK - done ? most : BULK - done);

			check(count > 0);
			done += (uint32_t)count;
		}
		equal(call_end(&call), BULK);
		pattern_check(1, 0, in, BULK);
	}
	device_close(&device);
}

static void the_descriptor_to_select_on_is_the_eventfd(void)
{
	struct kvmchan_grant grant;
	struct device device;

	device_make(&device);
	grant = device_grant(&device, true);
	device.channel.server = attached(&grant);
	equal(libxenvchan_fd_for_select(device.channel.server), grant.event_fd);
	check(!readable(device.channel.server));
	grant = device_grant(&device, false);
	device.channel.client = attached(&grant); /* and says so */
	check(readable(device.channel.server));
	equal(libxenvchan_wait(device.channel.server), 0);
	check(!readable(device.channel.server));
	client_puts(&device, 0, 1);
	equal(libxenvchan_wait(device.channel.server), 0);
	client_puts(&device, 1, 1); /* which nobody asked to be told of */
	check(!readable(device.channel.server));
	end_close(&device.channel.client);
	check(readable(device.channel.server));
	equal(libxenvchan_is_open(device.channel.server), 0);
	device_close(&device);
}

/* ---- eventfds that several ends share ---- */

/* Two devices whose servers' ends wait for one eventfd. */
static void sharing_open(struct device devices[2])
{
	int each;

	for (each = 0; each < 2; each++) {
		struct device *device = &devices[each];
		struct kvmchan_grant grant;

		device_make(device);
		if (each) {
			close(device->channel.server_socket);
			device->channel.server_socket = duplicate(devices[0].channel.server_socket);
		}
		grant = device_grant(device, true);
		close(grant.event_fd);
		grant.event_fd = share_event(device->channel.server_socket);
		grant.events = KVMCHAN_EVENTS_SHARED_EVENTFD;
		device->channel.server = attached(&grant);
		grant = device_grant(device, false);
		device->channel.client = attached(&grant);
	}
	for (each = 0; each < 2; each++)
		take_events(devices[each].channel.server);
}

static void ends_that_share_an_eventfd_each_get_every_event(void)
{
	struct device devices[2];
	int each, turn;

	sharing_open(devices);
	for (turn = 0; turn < 4; turn++) {
		if (turn == 3)
			end_close(&devices[0].channel.client);
		else
			equal(eventfd_write(devices[0].channel.server_socket, 1), 0);
		for (each = 0; each < 2; each++) {
			test_context("turn %d, end %d", turn, each);
			check(readable(devices[each].channel.server));
			equal(libxenvchan_wait(devices[each].channel.server), 0);
			check(!readable(devices[each].channel.server));
		}
	}
	equal(libxenvchan_is_open(devices[0].channel.server), 0);
	equal(libxenvchan_is_open(devices[1].channel.server), 1);
	for (each = 0; each < 2; each++)
		device_close(&devices[each]);
}

static void a_call_waits_on_through_another_ends_events(void)
{
	struct device devices[2];
	struct call call;
	int each, turn;

	sharing_open(devices);
	server_blocks(&devices[0], &call, READ);
	for (turn = 0; turn < 3; turn++) {
		equal(eventfd_write(devices[1].channel.server_socket, 1), 0);
		equal(libxenvchan_wait(devices[1].channel.server), 0);
		call_until_asleep(&call);
	}
	client_puts(&devices[0], 0, 2);
	equal(call_end(&call), 2);
	for (each = 0; each < 2; each++)
		device_close(&devices[each]);
}

static void a_full_counter_holds_nobody_up(void)
{
	struct device device;

	device_open(&device);
	equal(eventfd_write(device.channel.server_socket, ULLONG_MAX - 1), 0);
	equal(libxenvchan_data_ready(device.channel.server), 0);
	errno = 1234;
	client_puts(&device, 0, 1);
	equal(errno, 1234);
	equal(libxenvchan_wait(device.channel.server), 0);
	check(!readable(device.channel.server));
	device_close(&device);
}

static void a_signal_ends_a_wait(void)
{
	struct device device;
	struct call call;

	signals_go(0);
	device_open(&device);
	server_blocks(&device, &call, RECV);
	while (!call_is_done(&call)) {
		pthread_kill(call.thread, SIGUSR1);
		sched_yield();
	}
	call_fails(&call, EINTR);
	equal(libxenvchan_is_open(device.channel.server), 1);
	device_close(&device);
}

static void a_signal_with_sa_restart_ends_nothing(void)
{
	struct device device;
	struct call call;
	int round;

	signals_go(SA_RESTART);
	device_open(&device);
	server_blocks(&device, &call, WAIT);
	for (round = 0; round < 20; round++) {
		call_until_asleep(&call);
		pthread_kill(call.thread, SIGUSR1);
	}
	call_until_asleep(&call);
	client_puts(&device, 0, 2);
	equal(call_end(&call), 0);
	device_close(&device);
}

/* ---- the slice ---- */

static void check_others(const struct device *device)
{
	static uint8_t bytes[DEVICE_SIZE];
	uint32_t index;

	equal(pread(device->channel.region, bytes, DEVICE_SIZE, 0), DEVICE_SIZE);
	for (index = 0; index < DEVICE_SIZE; index++)
		if ((index < SLICE || index >= SLICE + SLICE_SIZE) && bytes[index] != OTHERS)
			test_fail(__FILE__, __LINE__, "byte %u of others is %u", index,
				  bytes[index]);
}

static void memory_beside_the_slice_is_not_touched(void)
{
	struct device device;

	device_open(&device);
	pattern_fill(2, 0, out, RIGHT);
	equal(libxenvchan_send(device.channel.server, out, RIGHT), RIGHT);
	client_puts(&device, 0, LEFT);
	server_gets(&device, 0, LEFT);
	check_others(&device);
	/* The rings are where they belong in the slice. */
	equal(pread(device.channel.region, in, RIGHT, SLICE + PAGE), RIGHT);
	pattern_check(2, 0, in, RIGHT);
	end_close(&device.channel.client);
	end_close(&device.channel.server);
	check_others(&device);
	device_close(&device);
}

static void refuses(struct device *device, const struct kvmchan_grant *change, const char *part)
{
	struct kvmchan_grant grant = device_grant(device, true);

	grant.events = change->events;
	grant.offset = change->offset;
	grant.doorbell = change->doorbell;
	errno = 0;
	check(!kvmchan_attach(&grant));
	equal(errno, EINVAL);
	if (!strstr(kvmchan_last_error(), part))
		test_fail(__FILE__, __LINE__, "no '%s' in: %s", part, kvmchan_last_error());
	equal(fcntl(grant.region_fd, F_GETFD), -1);
	equal(fcntl(grant.event_fd, F_GETFD), -1);
	equal(fcntl(grant.notify_fd, F_GETFD), -1);
	equal(fcntl(grant.control_fd, F_GETFD), -1);
	hang_up(device, true);
}

static void offsets_and_kinds_that_cannot_be_are_refused(void)
{
	static const struct {
		struct kvmchan_grant change;
		const char *part;
	} rows[] = {
	    {{.events = KVMCHAN_EVENTS_EVENTFD, .offset = SLICE + 1}, "memory at 8193"},
	    {{.events = KVMCHAN_EVENTS_EVENTFD, .offset = SLICE - 2048}, "memory at 6144"},
	    {{.events = KVMCHAN_EVENTS_SOCKET, .offset = 8}, "memory at 8"},
	    {{.events = KVMCHAN_EVENTS_DOORBELL, .offset = SLICE + 1}, "memory at 8193"},
	    {{.events = KVMCHAN_EVENTS_DOORBELL, .offset = SLICE, .doorbell = 12},
	     "a doorbell at 12"},
	    /* Past what a file offset can say, at the end or at the start. */
	    {{.events = KVMCHAN_EVENTS_EVENTFD, .offset = (uint64_t)1 << 63}, "memory"},
	    {{.events = KVMCHAN_EVENTS_EVENTFD, .offset = UINT64_MAX - PAGE + 1}, "memory"},
	    {{.events = KVMCHAN_EVENTS_DOORBELL, .offset = INT64_MAX - PAGE + 1}, "memory"},
	    {{.events = KVMCHAN_EVENTS_DOORBELL, .doorbell = (uint64_t)1 << 63}, "a doorbell"},
	    {{.events = KVMCHAN_EVENTS_DOORBELL, .doorbell = UINT64_MAX - PAGE + 1}, "a doorbell"},
	    /* A page more than there is. */
	    {{.events = KVMCHAN_EVENTS_EVENTFD, .offset = SLICE + 2 * PAGE}, "need 12288"},
	    {{.events = KVMCHAN_EVENTS_SOCKET, .offset = SLICE + 2 * PAGE}, "need 12288"},
	    {{.events = KVMCHAN_EVENTS_SHARED_DOORBELL + 1, .offset = SLICE}, "kind 5"},
	    {{.events = KVMCHAN_EVENTS_SHARED_EVENTFD, .offset = SLICE + 2 * PAGE}, "need 12288"},
	    {{.events = KVMCHAN_EVENTS_SHARED_DOORBELL, .offset = SLICE, .doorbell = 12},
	     "a doorbell at 12"},
	    {{.events = UINT32_MAX, .offset = SLICE}, "kind 4294967295"},
	};
	struct device device;
	size_t index;

	device_make(&device);
	for (index = 0; index < sizeof(rows) / sizeof(rows[0]); index++) {
		test_context("row %zu", index);
		refuses(&device, &rows[index].change, rows[index].part);
	}
	check_others(&device);
	device_close(&device);
}

static void an_end_without_its_descriptors_is_refused(void)
{
	struct device device;
	int variant;

	device_make(&device);
	for (variant = 0; variant < 2; variant++) {
		struct kvmchan_grant grant = device_grant(&device, true);
		int *missing = variant ? &grant.notify_fd : &grant.event_fd;

		test_context("variant %d", variant);
		close(*missing);
		*missing = -1;
		check(!kvmchan_attach(&grant));
		equal(errno, EBADF);
		check(*kvmchan_last_error());
		hang_up(&device, true);
	}
	device_close(&device);
}

/* A VFIO device has a size of 0, as this one has. */
static void a_devices_size_is_not_asked(void)
{
	struct kvmchan_grant grant = {
	    .event_fd = make_eventfd(0),
	    .notify_fd = -1,
	    .control_fd = -1,
	    .is_server = 1,
	    .left_order = LEFT_ORDER,
	    .right_order = RIGHT_ORDER,
	    .events = KVMCHAN_EVENTS_DOORBELL,
	    .offset = SLICE,
	};
	struct libxenvchan *end;

	grant.region_fd = open("/dev/zero", O_RDWR | O_CLOEXEC);
	check(grant.region_fd >= 0);
	end = attached(&grant);
	equal(libxenvchan_send(end, out, 0), -1); /* nobody has made a page there */
	equal(errno, EPIPE);
	kvmchan_detach(end);
}

/* ---- the doorbell ---- */

#define DOORBELL_VALUE 0x00020003u

/* Asserts that BAR 0 has @value where the doorbell is, and nothing elsewhere; and clears it. */
static void check_doorbell(const struct device *device, uint32_t value)
{
	static const uint8_t nothing[PAGE];
	uint8_t page[PAGE], expected[PAGE] = {0};
	uint32_t index;

	for (index = 0; index < 4; index++) /* little-endian, as the device is */
		expected[12 + index] = (uint8_t)(value >> 8 * index);
	equal(pread(device->channel.region, page, PAGE, 0), PAGE);
	for (index = 0; index < PAGE; index++)
		if (page[index] != expected[index])
			test_fail(__FILE__, __LINE__, "byte %u of BAR 0 is %u", index, page[index]);
	equal(pwrite(device->channel.region, nothing, PAGE, 0), PAGE);
}

static void a_doorbell_is_rung_and_nothing_else_of_the_device_changes(void)
{
	static const uint8_t nothing[PAGE];
	struct kvmchan_grant grant;
	struct device device;
	uint8_t page[PAGE];

	device_make(&device);
	equal(pwrite(device.channel.region, nothing, PAGE, 0), PAGE);
	grant = device_grant(&device, true);
	device.channel.server = attached(&grant);
	grant = device_grant(&device, false);
	equal(close(grant.notify_fd), 0);
	grant.notify_fd = -1;
	grant.events = KVMCHAN_EVENTS_DOORBELL;
	grant.doorbell = 0;
	grant.doorbell_value = DOORBELL_VALUE;
	device.channel.client = attached(&grant);
	check_doorbell(&device, DOORBELL_VALUE);
	/* Asked for, sent; not asked for, not sent. */
	equal(libxenvchan_data_ready(device.channel.server), 0);
	client_puts(&device, 0, 10);
	check_doorbell(&device, DOORBELL_VALUE);
	client_puts(&device, 10, 10);
	check_doorbell(&device, 0);
	server_gets(&device, 0, 20);
	/* The other way it is an eventfd. */
	equal(libxenvchan_data_ready(device.channel.client), 0);
	equal(libxenvchan_send(device.channel.server, "x", 1), 1);
	equal(libxenvchan_wait(device.channel.client), 0);
	end_close(&device.channel.client);
	check_doorbell(&device, DOORBELL_VALUE);
	equal(libxenvchan_is_open(device.channel.server), 0);
	equal(pread(device.channel.region, page, PAGE, PAGE), PAGE);
	equal(page[0], OTHERS);
	equal(memcmp(page, page + 1, PAGE - 1), 0);
	device_close(&device);
}

/* ---- the daemon's end ---- */

static void the_daemons_end_ends_each_blocked_call(void)
{
	struct device device;
	int kind, shut;

	for (kind = SEND; kind <= WAIT; kind++)
		for (shut = 0; shut < 2; shut++) {
			struct call call;

			test_context("%s, shut %d", call_name(kind), shut);
			device_open(&device);
			server_blocks(&device, &call, kind);
			if (shut)
				equal(shutdown(device.daemon[0], SHUT_WR), 0);
			else
				hang_up(&device, true);
			call_fails(&call, EPIPE);
			equal(libxenvchan_is_open(device.channel.server), 0);
			/* The other end's daemon is there. */
			equal(libxenvchan_is_open(device.channel.client), 1);
			device_close(&device);
		}
}

static void a_server_is_there_for_others_when_a_client_has_lost_its_daemon(void)
{
	struct kvmchan_grant grant;
	struct device device;

	device_open(&device);
	hang_up(&device, false);
	take_events(device.channel.client);
	equal(libxenvchan_wait(device.channel.client), -1);
	equal(libxenvchan_is_open(device.channel.client), 0);
	end_close(&device.channel.client);
	equal(libxenvchan_is_open(device.channel.server), 0);
	grant = device_grant(&device, false);
	device.channel.client = attached(&grant);
	equal(libxenvchan_is_open(device.channel.client), 1);
	equal(libxenvchan_is_open(device.channel.server), 1);
	client_puts(&device, 0, 100);
	server_gets(&device, 0, 100);
	device_close(&device);
}

static void what_was_written_before_the_daemons_end_stays_readable(void)
{
	struct device device;
	struct call call;

	device_open(&device);
	client_puts(&device, 0, 100);
	set_blocking(device.channel.server, true);
	call = (struct call){.kind = RECV, .end = device.channel.server, .data = in, .size = 101};
	call_start(&call);
	call_until_asleep(&call);
	hang_up(&device, true);
	call_fails(&call, EPIPE);
	equal(libxenvchan_is_open(device.channel.server), 0);
	equal(libxenvchan_data_ready(device.channel.server), 100);
	server_gets(&device, 0, 60);
	equal(libxenvchan_read(device.channel.server, in, 100), 40);
	pattern_check(1, 60, in, 40);
	fails(libxenvchan_read(device.channel.server, in, 1), EPIPE);
	fails(libxenvchan_send(device.channel.server, out, 1), EPIPE);
	fails(libxenvchan_wait(device.channel.server), EPIPE);
	device_close(&device);
}

/* The last event of all comes with data, for a call that would otherwise have to wait once more. */
static void the_last_event_is_taken_first(void)
{
	struct device device;

	device_open(&device);
	set_blocking(device.channel.server, true);
	client_puts(&device, 0, 10);
	hang_up(&device, true);
	server_gets(&device, 0, 10);
	fails(libxenvchan_recv(device.channel.server, in, 1), EPIPE);
	device_close(&device);
}

/* A program that only polls is woken by who writes to its eventfd when the daemon goes. */
static void a_poller_learns_of_the_daemons_end(void)
{
	struct device device;
	int spin;

	for (spin = 0; spin < 2; spin++) {
		test_context("spin %d", spin);
		if (spin)
			setenv("KVMCHAN_SPIN_US", "1000000", 1);
		device_open(&device);
		hang_up(&device, true);
		equal(eventfd_write(device.channel.server_socket, 1), 0);
		until_readable(device.channel.server);
		equal(libxenvchan_wait(device.channel.server), 0);
		equal(libxenvchan_is_open(device.channel.server), 0);
		check(!readable(device.channel.server));
		fails(libxenvchan_wait(device.channel.server), EPIPE);
		device_close(&device);
	}
}

/* ---- what a program does to descriptors that it did not open ---- */

/* A read end that has hung up, which is no reason for anything here. */
static int make_hung_up_pipe(void)
{
	int fds[2];

	equal(pipe2(fds, O_CLOEXEC), 0);
	close(fds[1]);
	return fds[0];
}

/* Makes @fd's number that of what @other is, which is taken. */
static void reuse(int fd, int other)
{
	equal(dup3(other, fd, O_CLOEXEC), fd);
	close(other);
}

static void without_its_control_connection_an_end_lives_by_its_events(void)
{
	struct device device;
	int variant;

	for (variant = 0; variant < 2; variant++) {
		struct call call;

		test_context("variant %d", variant);
		device_open(&device);
		if (variant)
			reuse(device.control[0], make_hung_up_pipe());
		else
			close(device.control[0]);
		server_blocks(&device, &call, RECV);
		hang_up(&device, true);
		client_puts(&device, 0, 1);
		call_until_asleep(&call);
		client_puts(&device, 1, 1);
		equal(call_end(&call), 2);
		equal(libxenvchan_is_open(device.channel.server), 1);
		equal(kvmchan_steal_control(device.channel.server), -1);
		device_close(&device);
		if (variant)
			equal(close(device.control[0]), 0);
	}
}

static void the_control_connection_can_be_closed_in_a_wait(void)
{
	struct device device;
	struct call call;

	device_open(&device);
	server_blocks(&device, &call, RECV);
	/* Woken by the end of what the number no longer is, it waits on. */
	close(device.control[0]);
	hang_up(&device, true);
	client_puts(&device, 0, 2);
	equal(call_end(&call), 2);
	device_close(&device);
}

enum other_file { A_FILE, AN_EVENTFD, NOTHING };

static void a_reused_number_is_not_notified(void)
{
	struct device device;
	int kind;

	for (kind = A_FILE; kind <= NOTHING; kind++) {
		int notify, other;
		struct stat status;

		test_context("kind %d", kind);
		device_open(&device);
		notify = device.notify[1];
		other = kind == A_FILE ? memfd_create("other", MFD_CLOEXEC) : make_eventfd(0);
		reuse(notify, other);
		if (kind == NOTHING)
			close(notify);
		equal(libxenvchan_data_ready(device.channel.server), 0);
		errno = 1234;
		client_puts(&device, 0, 1);
		equal(errno, 1234);
		check(!readable(device.channel.server));
		end_close(&device.channel.client);
		check(!readable(device.channel.server));
		if (kind == A_FILE) {
			equal(fstat(notify, &status), 0);
			equal(status.st_size, 0);
		} else if (kind == AN_EVENTFD) {
			equal(count_of(notify), 0);
		}
		equal(close(notify), kind == NOTHING ? -1 : 0);
		device_close(&device);
	}
}

static void a_reused_number_is_not_waited_on(void)
{
	struct device device;
	int kind;

	for (kind = A_FILE; kind <= NOTHING; kind++) {
		int fd;

		test_context("kind %d", kind);
		device_open(&device);
		fd = libxenvchan_fd_for_select(device.channel.server);
		if (kind == A_FILE)
			reuse(fd, make_hung_up_pipe());
		else if (kind == AN_EVENTFD)
			reuse(fd, make_eventfd(5));
		else
			close(fd);
		fails(libxenvchan_wait(device.channel.server), EPIPE);
		equal(libxenvchan_is_open(device.channel.server), 0);
		end_close(&device.channel.server);
		if (kind == AN_EVENTFD)
			equal(count_of(fd), 5);
		equal(close(fd), kind == NOTHING ? -1 : 0);
		device_close(&device);
	}
}

static const struct test tests[] = {
    TEST(data_passes_each_way),
    TEST(each_blocked_call_is_woken),
    TEST(much_passes_between_two_threads),
    TEST(the_descriptor_to_select_on_is_the_eventfd),
    TEST(ends_that_share_an_eventfd_each_get_every_event),
    TEST(a_call_waits_on_through_another_ends_events),
    TEST(a_full_counter_holds_nobody_up),
    TEST(a_signal_ends_a_wait),
    TEST(a_signal_with_sa_restart_ends_nothing),
    TEST(memory_beside_the_slice_is_not_touched),
    TEST(offsets_and_kinds_that_cannot_be_are_refused),
    TEST(an_end_without_its_descriptors_is_refused),
    TEST(a_devices_size_is_not_asked),
    TEST(a_doorbell_is_rung_and_nothing_else_of_the_device_changes),
    TEST(the_daemons_end_ends_each_blocked_call),
    TEST(a_server_is_there_for_others_when_a_client_has_lost_its_daemon),
    TEST(what_was_written_before_the_daemons_end_stays_readable),
    TEST(the_last_event_is_taken_first),
    TEST(a_poller_learns_of_the_daemons_end),
    TEST(without_its_control_connection_an_end_lives_by_its_events),
    TEST(the_control_connection_can_be_closed_in_a_wait),
    TEST(a_reused_number_is_not_notified),
    TEST(a_reused_number_is_not_waited_on),
};

TEST_MAIN(tests)
