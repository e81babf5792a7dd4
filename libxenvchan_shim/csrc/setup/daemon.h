/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What C asks of the daemon, through the embedded Python, which the first call starts. Every
 * function may be called from any thread, and blocks until the daemon has answered, but for
 * daemon_ask(). Those that return an int return 0 or a number, or -1 with errno and the sentence.
 * Of a structure that they take, they fill in `where`; descriptors that they return in it are the
 * caller's to close.
 */
#ifndef KVMCHAN_DAEMON_H
#define KVMCHAN_DAEMON_H

#include <stdbool.h>

#include "dataplane/connection.h"
#include "setup/embed.h"

/* Open an end of a vchan or of an event channel. */
int daemon_open(struct kvmchan_request *request, struct kvmchan_grant *grant);
/* Send the request and return at once: *@control_fd is readable when the answer has come. */
int daemon_ask(struct kvmchan_request *request, int *control_fd);
/* Wait for the answer to daemon_ask(). Takes ownership of @control_fd. */
int daemon_answer(int control_fd, struct kvmchan_grant *grant);

/* Share pages with another domain. */
int daemon_share(struct kvmchan_pages *pages);
/* Map pages that another domain shares. */
int daemon_map(struct kvmchan_pages *pages);
/* Say what the daemon shall do at the end of these pages: see kvmchan_python_notify(). */
int daemon_notify(int control_fd, uint64_t offset, bool clears, uint64_t port);

/* Ask what an event channel is. */
int daemon_port(struct kvmchan_port *port);
/* Ask which domains exist. */
int daemon_domains(struct kvmchan_domains *domains);

/* End what the connection holds, and return when the daemon has released it. Keeps errno. */
void daemon_close(struct connection *connection);

/* Return our own domain's number. */
int daemon_own(void);
/* Xen's DOMID_SELF: the domain that asks. */
#define DOMAIN_SELF 0x7ff0
/* Return the number of @domain, which may be DOMAIN_SELF. */
int daemon_domain(uint32_t domain);

#endif
