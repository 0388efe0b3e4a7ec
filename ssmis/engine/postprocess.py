# SPDX-License-Identifier: Apache-2.0
"""Clean-up of label maps; off by default everywhere, and part of the protocol where it is on."""

from ssmis.data.components import largest_component

__all__ = ["largest_component"]
