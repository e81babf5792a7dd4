# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bytes, messages, descriptors and packets. Knows no rule of the daemon; the shim uses it too."""
