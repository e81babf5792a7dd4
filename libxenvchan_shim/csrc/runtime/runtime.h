/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a runtime exports, which our libraries load when they first need the daemon
 * (setup/loader.c). kvmchan-python<version>.so has Python in it; kvmchan-beside.so has a helper
 * process do the same. They are part of the same build as the libraries.
 */
#ifndef KVMCHAN_RUNTIME_H
#define KVMCHAN_RUNTIME_H

#include "runtime/call.h"

/* Changes with anything below or in call.h. */
#define KVMCHAN_RUNTIME_VERSION 2

enum kvmchan_runtime_state {
	RUNTIME_STOPPED,
	RUNTIME_STARTED,
	/* This process can't use it: it was forked without Python's knowledge, or the program has
	 * ended or started the Python that it shares with us. */
	RUNTIME_LOST,
};

/* All but state() return 0, or an errno with the sentence in @sentence, which has @room bytes. All
 * may be called from any thread whose stack has room: see setup/daemon.c. */
struct kvmchan_runtime {
	uint32_t version;			   /* KVMCHAN_RUNTIME_VERSION */
	enum kvmchan_runtime_state (*state)(void); /* NULL if it is not in this process */
	/* Start it, once. The two of call.h need it. */
	int (*start)(char *sentence, int room);
	int (*encode)(const struct kvmchan_request *request, struct kvmchan_packet *packet,
		      char *sentence, int room);
	int (*decode)(uint32_t what, const struct kvmchan_received *received,
		      struct kvmchan_answer *answer, char *sentence, int room);
};

#define KVMCHAN_RUNTIME_SYMBOL "kvmchan_runtime"

#endif
