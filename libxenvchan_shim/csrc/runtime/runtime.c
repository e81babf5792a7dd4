/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "runtime/runtime.h"

#include "runtime/interpreter.h"

__attribute__((visibility("default"))) const struct kvmchan_runtime kvmchan_runtime = {
    .version = KVMCHAN_RUNTIME_VERSION,
    .start = interpreter_start,
    .ask = kvmchan_python_ask,
    .answer = kvmchan_python_answer,
};
