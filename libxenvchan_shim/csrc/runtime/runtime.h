/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a runtime exports: the file with Python in it, kvmchan-python<version>.so, which our
 * libraries load when they first need the daemon (setup/loader.c). It is part of the same build.
 */
#ifndef KVMCHAN_RUNTIME_H
#define KVMCHAN_RUNTIME_H

#include "runtime/call.h"

/* Changes with anything below or in call.h. */
#define KVMCHAN_RUNTIME_VERSION 1

struct kvmchan_runtime {
	uint32_t version; /* KVMCHAN_RUNTIME_VERSION */
	/* Start Python in this process, once. Returns as the two of call.h, which need it. All may
	 * be called from any thread whose stack has KVMCHAN_RUNTIME_STACK bytes. */
	int (*start)(char *sentence, int room);
	int (*ask)(const struct kvmchan_request *request, int32_t *control_fd, char *sentence,
		   int room);
	int (*answer)(uint32_t what, int control_fd, struct kvmchan_answer *answer, char *sentence,
		      int room);
};

#define KVMCHAN_RUNTIME_STACK (1024 * 1024)
#define KVMCHAN_RUNTIME_SYMBOL "kvmchan_runtime"

#endif
