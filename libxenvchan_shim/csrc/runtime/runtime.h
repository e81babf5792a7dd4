/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a runtime exports: the file with Python in it, kvmchan-python<version>.so, which our
 * libraries load when they first need the daemon (setup/loader.c). It is part of the same build.
 */
#ifndef KVMCHAN_RUNTIME_H
#define KVMCHAN_RUNTIME_H

#include "runtime/call.h"

/* Changes with anything below or in call.h. */
#define KVMCHAN_RUNTIME_VERSION 2

/* All return 0, or an errno with the sentence in @sentence, which has @room bytes. All may be called
 * from any thread whose stack has KVMCHAN_RUNTIME_STACK bytes. */
struct kvmchan_runtime {
	uint32_t version; /* KVMCHAN_RUNTIME_VERSION */
	/* Start Python in this process, once. The two of call.h need it. */
	int (*start)(char *sentence, int room);
	int (*ask)(const struct kvmchan_request *request, char *sentence, int room);
	int (*answer)(uint32_t what, int control_fd, struct kvmchan_answer *answer, char *sentence,
		      int room);
};

#define KVMCHAN_RUNTIME_STACK (1024 * 1024)
#define KVMCHAN_RUNTIME_SYMBOL "kvmchan_runtime"

#endif
