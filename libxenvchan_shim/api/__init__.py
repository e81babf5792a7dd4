# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Python API. Programs import it by the name kvmchan."""
