/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A guest without an operating system, which drives ivshmem-doorbell devices and ends of vchans on
 * them. README.md has the lines that it exchanges with a test on COM1. */
#include <string.h>

#include "ring/atomics.h"
#include "ring/ring.h"

typedef uint32_t u32;

/* The processor's vectors. Each device has OWN of them, and the last is for all further ones. */
enum { TIMER = 0x20, SERIAL, FIRST_OWN = 0x30, OWN = 24, DEVICES = 8, SPURIOUS = 0xFF };
enum { LOCAL_APIC = 0xFEE00000, IO_APIC = 0xFEC00000, COM1 = 0x3F8, IVSHMEM = 0x11101AF4 };

/* cpu.S has these. Interrupts come nowhere else. */
u32 wait_for_interrupt(void), inb(u32 port), inl(u32 port);
void outb(u32 port, u32 value), outl(u32 port, u32 value);

static u32 readl(u32 address) { return *(volatile u32 *)address; }
static void writel(u32 address, u32 value) { *(volatile u32 *)address = value; }
static u32 at_most(u32 most, u32 value) { return value < most ? value : most; }

static void put(char byte)
{
	while (!(inb(COM1 + 5) & 0x20))
		;
	outb(COM1, (u32)byte);
}

static void say_numbers(const char *word, const u32 *numbers, u32 count)
{
	while (*word)
		put(*word++);
	for (u32 i = 0; i < 8 * count; i++) {
		if (i % 8 == 0)
			put(' ');
		put("0123456789abcdef"[numbers[i / 8] >> (28 - i % 8 * 4) & 15]);
	}
	put('\n');
}
#define say(word, ...) say_numbers(word, (u32[]){__VA_ARGS__}, sizeof((u32[]){__VA_ARGS__}) / 4)

void on_exception(u32 vector, u32 top, u32 next) { say("trap", vector, top, next); }

/* ---- PCI ---- */

static u32 buses[32], bridges[32], bus_count = 1; /* bridges[i] leads to buses[i] */

static struct device {
	u32 function;	      /* its place in the configuration space; 0: there is none */
	u32 selector;	      /* its bus, in the hot-plug registers, plus 1; 0: not known */
	u32 base[3], size[3]; /* its BARs: registers, MSI-X's table, memory */
	u32 msix;	      /* its capability */
} devices[DEVICES];

static u32 pci_read(u32 function, u32 offset)
{
	outl(0xCF8, 1u << 31 | function | offset);
	return inl(0xCFC);
}

static void pci_write(u32 function, u32 offset, u32 value)
{
	outl(0xCF8, 1u << 31 | function | offset);
	outl(0xCFC, value);
}

static void find_buses(void)
{
	for (u32 i = 0; i < 256 * bus_count; i++) {
		u32 function = buses[i / 256] << 16 | i % 256 << 8;
		u32 secondary = pci_read(function, 0x18) >> 8 & 0xFF;

		if ((pci_read(function, 0x0C) >> 16 & 0x7F) != 1 || !secondary || bus_count == 32)
			continue;
		pci_write(function, 4, 6); /* memory accesses and interrupts may pass */
		bridges[bus_count] = function;
		buses[bus_count++] = secondary;
	}
}

static bool is_taken(u32 base, u32 size)
{
	for (const struct device *device = devices; device < devices + DEVICES; device++)
		for (u32 i = 0; device->function && i < 3; i++)
			if (base < device->base[i] + device->size[i] &&
			    device->base[i] < base + size)
				return true;
	return false;
}

/* Return free memory in the window that this register of a bridge describes; 0 if there is none. */
static u32 find_room(u32 bridge, u32 window, u32 size)
{
	u32 bounds = bridge ? pci_read(bridge, window) : 0xEFF0E000; /* free on the root bus */
	u32 first = (bounds & 0xFFF0) << 16, last = bounds | 0xFFFFF;

	if (bridge && window == 0x24 && (pci_read(bridge, 0x28) || pci_read(bridge, 0x2C)))
		return 0; /* above 4 GiB */
	for (u32 base = (first + size - 1) & -size; base && base + size - 1 <= last; base += size)
		if (!is_taken(base, size))
			return base;
	return 0;
}

/* Give memory to the BARs that firmware gave none. Without room, the device is none of ours. */
static void place(struct device *device, u32 bridge)
{
	u32 function = device->function;

	pci_write(function, 4, 0);
	for (u32 bar = 0; bar < 3; bar++) {
		u32 offset = 0x10 + 4 * bar, base = pci_read(function, offset) & -16u;

		pci_write(function, offset, ~0u);
		device->size[bar] = -(pci_read(function, offset) & -16u);
		if (bar == 2 && (!base || pci_read(function, 0x1C)))
			base = find_room(bridge, 0x24, device->size[bar]);
		if (!base)
			base = find_room(bridge, 0x20, device->size[bar]);
		if (!base) {
			say("noroom", function, bar, device->size[bar]);
			device->function = 0;
			return;
		}
		pci_write(function, offset, device->base[bar] = base);
	}
	pci_write(function, 0x1C, 0);
	pci_write(function, 4, 0x406); /* memory, MSI-X, no INTx */
}

/* ---- devices ---- */

/* Store a word to a device, by its BAR and the offset there. */
static void store(const u32 *argument)
{
	__sync_synchronize();
	writel(devices[argument[0]].base[argument[1]] + argument[2], argument[3]);
}

static void enable(const u32 *argument)
{
	u32 function = devices[argument[0]].function, msix = devices[argument[0]].msix;

	pci_write(function, msix, (pci_read(function, msix) & 0x3FFFFFFF) | argument[1] << 31);
}

static void add(u32 function, u32 bridge, u32 selector)
{
	u32 i = 0, vector, control, msix = pci_read(function, 0x34) & 0xFC;
	struct device *device = devices;

	for (; device->function; device = &devices[++i])
		if (device->function == function || i == DEVICES - 1)
			return;
	while (((control = pci_read(function, msix)) & 0xFF) != 0x11)
		msix = control >> 8 & 0xFC;
	*device = (struct device){.function = function, .selector = selector, .msix = msix};
	place(device, bridge);
	if (!device->function)
		return;
	pci_write(function, msix, control | 0xC0000000); /* enabled, and all masked meanwhile */
	for (vector = 0; vector <= (control >> 16 & 0x7FF); vector++) {
		u32 entry = device->base[1] + 16 * vector;

		writel(entry, LOCAL_APIC);
		writel(entry + 4, 0);
		writel(entry + 8, FIRST_OWN + OWN * i + at_most(OWN - 1, vector));
		writel(entry + 12, 0);
	}
	enable((u32[]){i, true});
	say("device", i, readl(device->base[0] + 8), vector, device->size[2], function);
}

/* ---- ends of vchans ---- */

enum { NOTIFY_WRITE = 1, NOTIFY_READ = 2, ENDS = 16 };
static struct end {
	uint8_t *page; /* NULL: there is no end */
	struct ring in, out;
	bool serves;
	u32 doorbell[4]; /* arguments of store() that wake the peer */
	u32 send, sent, received, wrong;
} ends[ENDS];

/* Bytes of the page: the client's end's, and the server's behind it. */
static uint8_t *live(const struct end *end, bool server) { return end->page + 20 + server; }
static uint8_t *asked(const struct end *end, bool server) { return end->page + 22 + server; }

/* @ring: where its indexes and its bytes are, and how many these are. */
static struct ring attach_ring(uint8_t *page, const u32 *ring, bool produces)
{
	u32 *cons = (u32 *)(page + ring[0]), *prod = cons + 1, *own = produces ? prod : cons;

	return (struct ring){
	    own, produces ? cons : prod, page + ring[1], ring[2], shared_observe(own), 0, produces};
}

static void attach(const u32 *argument)
{
	struct end *end = &ends[argument[0]];
	bool serves = argument[3];
	uint8_t *page = (uint8_t *)devices[argument[1]].base[2] + argument[2];

	end->in = attach_ring(page, argument + (serves ? 6 : 9), false);
	end->out = attach_ring(page, argument + (serves ? 9 : 6), true);
	end->page = page;
	end->serves = serves;
	memcpy(end->doorbell, (u32[]){argument[1], 0, 12, argument[4]}, sizeof(end->doorbell));
	end->send = argument[5];
	end->sent = end->received = end->wrong = 0;
	if (serves)
		return;
	shared_set_live(live(end, false), 1);
	shared_request_only(asked(end, true), NOTIFY_WRITE);
	store(end->doorbell);
}

static void look(const u32 *argument)
{
	const struct end *end = &ends[argument[0]];

	say("end", argument[0], end->page != NULL, end->received, end->sent, end->wrong);
}

static void hang_up(const u32 *argument)
{
	struct end *end = &ends[argument[0]];

	if (end->page) {
		shared_set_live(live(end, end->serves), 0);
		store(end->doorbell);
		end->page = NULL;
	}
	look(argument);
}

/* A stream's bytes, whose period is a prime, as in tests/py/vm/programs/stream.c. */
static uint8_t pattern(u32 index) { return (uint8_t)(index % 65521 * 2654435761u >> 13); }

/* Move one piece each way. Returns its size, or RING_BROKEN. */
static u32 move(struct end *end)
{
	static uint8_t buffer[16384];
	u32 i, in = ring_look(&end->in), out = ring_look(&end->out);

	if (in == RING_BROKEN || out == RING_BROKEN)
		return RING_BROKEN;
	in = at_most(sizeof(buffer), in);
	ring_get(&end->in, buffer, in);
	for (i = 0; i < in; i++)
		end->wrong += buffer[i] != pattern(end->received++);
	out = at_most(sizeof(buffer), at_most(out, end->send - end->sent));
	for (i = 0; i < out; i++)
		buffer[i] = pattern(end->sent++);
	ring_put(&end->out, buffer, out);
	if ((in && shared_take_request(asked(end, end->serves), NOTIFY_READ)) |
	    (out && shared_take_request(asked(end, end->serves), NOTIFY_WRITE)))
		store(end->doorbell);
	return in + out;
}

/* Move all there is. Before the last look, ask for events, and look whether the peer is there. */
static void turn(u32 i)
{
	struct end *end = &ends[i];
	u32 moved, alive = shared_live(live(end, !end->serves));

	shared_request(asked(end, !end->serves), NOTIFY_WRITE | NOTIFY_READ);
	while ((moved = move(end)) && moved != RING_BROKEN)
		;
	if (moved || !alive)
		hang_up(&i);
}

/* ---- hot-plug ---- */

static enum { OBEDIENT, EAGER, STUBBORN, CARELESS } policy;
static u32 hotplug; /* QEMU's registers */

static void appear(u32 selector, u32 slots)
{
	for (u32 i = 0; i < 32 * bus_count; i++) {
		u32 function = buses[i / 32] << 16 | i % 32 << 11;

		if (slots >> i % 32 & 1 && pci_read(function, 0) == IVSHMEM)
			add(function, bridges[i / 32], selector);
	}
}

static void remove(u32 i)
{
	if (policy != CARELESS) {
		enable((u32[]){i, false});
		pci_write(devices[i].function, 4, 0);
	}
	for (struct end *end = ends; end < ends + ENDS; end++)
		if (end->doorbell[0] == i)
			end->page = NULL;
	devices[i].function = 0;
	say("gone", i);
}

static void poll_hotplug(void)
{
	for (u32 selector = 0; selector < 16; selector++) {
		u32 up, down;

		outl(hotplug + 16, selector);
		up = inl(hotplug);
		down = inl(hotplug + 4);
		if (up)
			appear(selector + 1, up);
		down &= policy == STUBBORN ? 0 : -down; /* one after the other */
		for (u32 i = 0; i < DEVICES; i++)
			if (devices[i].function && down >> (devices[i].function >> 11 & 31) & 1 &&
			    (devices[i].selector == selector + 1 || !devices[i].selector))
				remove(i);
		outl(hotplug + 8, down);
	}
}

static void set_policy(const u32 *argument)
{
	policy = argument[0];
	writel(LOCAL_APIC + 0x380, policy == EAGER ? 1000000 : 20000000); /* ns until a tick */
}

/* By the first letter of their words. */
static void (*const commands[128])(const u32 *argument) = {
    ['s'] = store,  ['e'] = enable, ['p'] = set_policy,
    ['a'] = attach, ['l'] = look,   ['c'] = hang_up,
};

static void hear(char byte)
{
	static u32 count, argument[16];
	static char verb;

	if (byte == '\n') {
		commands[verb & 127](argument + 1);
		say("done");
		verb = 0;
	} else if (!verb) {
		verb = byte;
		count = 0;
	} else if (byte == ' ') {
		argument[++count] = 0;
	} else {
		argument[count] = argument[count] << 4 | ((byte & 15) + (byte >> 6) * 9);
	}
}

void main(void)
{
	say("start");
	outb(0x21, 0xFF); /* none through the old controllers */
	writel(LOCAL_APIC + 0xF0, 0x100 | SPURIOUS);
	writel(LOCAL_APIC + 0x80, 0);
	writel(LOCAL_APIC + 0x3E0, 0xB); /* counts ns, with QEMU */
	writel(LOCAL_APIC + 0x320, 1 << 17 | TIMER);
	set_policy((u32[]){OBEDIENT});
	writel(IO_APIC, 0x10 + 2 * 4); /* line 4 */
	writel(IO_APIC + 16, SERIAL);
	outb(COM1 + 2, 7); /* with a FIFO, and an interrupt for each byte */
	outb(COM1 + 4, 0xB);
	outb(COM1 + 1, 1);
	find_buses();
	hotplug = pci_read(0, 0) == 0x12378086 ? 0xAE00 : 0xCC0; /* of pc, and of q35 */
	appear(0, ~0u);
	say("ready");
	for (;;) {
		u32 vector = wait_for_interrupt(), own = vector - FIRST_OWN;

		if (own < OWN * DEVICES)
			say("irq", own / OWN, own % OWN);
		while (vector == SERIAL && inb(COM1 + 5) & 1)
			hear((char)inb(COM1));
		if (vector == TIMER)
			poll_hotplug();
		if (vector != SPURIOUS)
			writel(LOCAL_APIC + 0xB0, 0);
		for (u32 i = 0; i < ENDS; i++)
			if (ends[i].page)
				turn(i);
	}
}
