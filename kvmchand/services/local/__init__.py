# SPDX-License-Identifier: LGPL-2.1-or-later
"""The local sockets and the clients on them."""
