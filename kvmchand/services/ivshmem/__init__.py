# SPDX-License-Identifier: LGPL-2.1-or-later
"""The server that gives QEMU its ivshmem devices."""
