/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Prints the layout of every public structure of libxenvchan. Compiled with Xen's headers and with
 * ours, for a test to compare: a program compiled with either must find the same bytes. */
#include <libxenvchan.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define SIZE(type) printf(#type " size %zu\n", sizeof(type))
#define FIELD(type, field)                                                                         \
	printf(#type " " #field " at %zu size %zu\n", offsetof(type, field),                       \
	       sizeof(((type *)0)->field))
/* A bit-field has no offset: set it alone and see where it went. */
#define BIT(field)                                                                                 \
	do {                                                                                       \
		memset(&vchan, 0, sizeof(vchan));                                                  \
		vchan.field = ones;                                                                \
		show_bits(#field, vchan.field);                                                    \
	} while (0)

static struct libxenvchan vchan;
/* What the compiler can't see through: comparing an unsigned field with 0 draws a warning. */
static volatile int ones = -1;

static void show_bits(const char *field, int value)
{
	const unsigned char *bytes = (const unsigned char *)&vchan;

	printf("struct libxenvchan %s %s", field, value < 0 ? "signed" : "unsigned");
	for (size_t i = 0; i < sizeof(vchan); i++)
		if (bytes[i])
			printf(" at %zu mask 0x%02x", i, bytes[i]);
	printf("\n");
}

int main(void)
{
	SIZE(struct libxenvchan);
	FIELD(struct libxenvchan, gntshr);
	FIELD(struct libxenvchan, gnttab);
	FIELD(struct libxenvchan, ring);
	FIELD(struct libxenvchan, event);
	FIELD(struct libxenvchan, event_port);
	BIT(is_server);
	BIT(server_persist);
	BIT(blocking);
	FIELD(struct libxenvchan, read);
	FIELD(struct libxenvchan, write);
	FIELD(struct libxenvchan, xs_path);

	SIZE(struct libxenvchan_ring);
	FIELD(struct libxenvchan_ring, shr);
	FIELD(struct libxenvchan_ring, buffer);
	FIELD(struct libxenvchan_ring, order);

	SIZE(struct ring_shared);
	FIELD(struct ring_shared, cons);
	FIELD(struct ring_shared, prod);

	SIZE(struct vchan_interface);
	FIELD(struct vchan_interface, left);
	FIELD(struct vchan_interface, right);
	FIELD(struct vchan_interface, left_order);
	FIELD(struct vchan_interface, right_order);
	FIELD(struct vchan_interface, cli_live);
	FIELD(struct vchan_interface, srv_live);
	FIELD(struct vchan_interface, cli_notify);
	FIELD(struct vchan_interface, srv_notify);
	printf("struct vchan_interface grants at %zu of %zu each\n",
	       offsetof(struct vchan_interface, grants),
	       sizeof(((struct vchan_interface *)0)->grants[0]));

	printf("VCHAN_NOTIFY_WRITE %d\n", VCHAN_NOTIFY_WRITE);
	printf("VCHAN_NOTIFY_READ %d\n", VCHAN_NOTIFY_READ);
	return 0;
}
