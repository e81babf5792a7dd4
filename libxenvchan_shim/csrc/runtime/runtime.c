/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "runtime/runtime.h"

#include <errno.h>
#include <stdio.h>

#include "runtime/interpreter.h"

/* Return what a function of Python's returned as ours do. */
static int as_errno(int returned, char *sentence, int room)
{
	if (returned == 0) {
		snprintf(sentence, (size_t)room, "the embedded Python failed");
		return EIO;
	}
	return returned < 0 ? 0 : returned;
}

static int encode(const struct kvmchan_request *request, struct kvmchan_packet *packet,
		  char *sentence, int room)
{
	return as_errno(kvmchan_python_encode(request, packet, sentence, room), sentence, room);
}

static int decode(uint32_t what, const struct kvmchan_received *received,
		  struct kvmchan_answer *answer, char *sentence, int room)
{
	return as_errno(kvmchan_python_decode(what, received, answer, sentence, room), sentence,
			room);
}

__attribute__((visibility("default"))) const struct kvmchan_runtime kvmchan_runtime = {
    .version = KVMCHAN_RUNTIME_VERSION,
    .state = interpreter_state,
    .start = interpreter_start,
    .encode = encode,
    .decode = decode,
};
