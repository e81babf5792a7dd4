# SPDX-License-Identifier: LGPL-2.1-or-later
"""The control channel between a host's daemon and a guest's."""
