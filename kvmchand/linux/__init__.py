# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel interfaces that Python's standard library lacks. Imports nothing of ours."""
