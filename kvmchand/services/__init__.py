# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's service processes, one folder each.

`process.py` is the process, its neighbours are main's side of it.
"""
