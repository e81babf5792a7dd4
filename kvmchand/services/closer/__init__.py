# SPDX-License-Identifier: LGPL-2.1-or-later
"""The closer process, and main's side of it."""
