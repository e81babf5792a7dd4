# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an administrator runs: findings about a machine, and the preparation of a domain."""
