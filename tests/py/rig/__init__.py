# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests share: daemons, clients, guests and hosts that do as they are told, and proof that
nothing is left over.
"""
