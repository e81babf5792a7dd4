# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's service processes, one module each; none imports another."""
