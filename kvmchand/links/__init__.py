# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's guests, and the devices that channels between domains share."""
