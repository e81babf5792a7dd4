# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every process of the daemon is built on."""
