# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's main process on a host."""
