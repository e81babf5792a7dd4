# SPDX-License-Identifier: LGPL-2.1-or-later
"""Channels and shared pages: the rules, the memory, and main's part in setting them up."""
