/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The environment's settings: where the daemon is, as which domain we act, where Python runs. */
#ifndef KVMCHAN_ENVIRONMENT_H
#define KVMCHAN_ENVIRONMENT_H

/*
 * Return a setting's value; "" if it is unset, or the program has raised rights. Valid until the
 * environment changes. A relative folder is in the one that the program was started in: it may have
 * changed to another since.
 */
const char *setting_runtime_dir(void);
const char *setting_domain(void);
/* Where Python is to run: inside, beside or "". */
const char *setting_runtime(void);

#endif
