# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's main process in a guest."""
