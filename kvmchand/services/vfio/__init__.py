# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest's ivshmem functions, driven through VFIO."""
