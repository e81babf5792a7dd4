/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The beginning of our libraries' handles, which tells each library what another has made: a
 * program may give libxenvchan's ctrl->event to libxenevtchn or libxenctrl. All libraries in a
 * process are of one build.
 */
#ifndef KVMCHAN_HANDLE_H
#define KVMCHAN_HANDLE_H

enum handle_kind {
	HANDLE_VCHAN = 1, /* struct event: a vchan's own event channel */
	HANDLE_PORTS,	  /* struct ports: what xenevtchn_open() makes */
};

struct xenevtchn_handle {
	enum handle_kind kind;
};

#endif
