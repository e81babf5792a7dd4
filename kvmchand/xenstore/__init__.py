# SPDX-License-Identifier: LGPL-2.1-or-later
"""A xenstore: its tree, permissions, quotas, transactions and watches. Pure: no I/O, and it imports errors and ids only."""
