/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The size of a page, the unit of all memory that domains share: Xen's, on every machine. */
#ifndef KVMCHAN_PAGE_H
#define KVMCHAN_PAGE_H

#define PAGE 4096u

#endif
