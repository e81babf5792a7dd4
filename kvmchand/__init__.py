# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon that sets up vchans between domains, and what its clients share with it."""

VERSION = "0.1.0"
