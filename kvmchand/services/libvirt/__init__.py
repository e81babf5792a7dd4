# SPDX-License-Identifier: LGPL-2.1-or-later
"""Domains that come and go, and devices plugged into them, through libvirt."""
