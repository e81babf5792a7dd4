# SPDX-License-Identifier: LGPL-2.1-or-later
"""The xenstore that programs connect to."""
