# SPDX-License-Identifier: LGPL-2.1-or-later
"""A xenstore: its tree, permissions, quotas, transactions and watches.

Pure: it does no I/O, and imports only errors and ids.
"""
