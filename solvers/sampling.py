"""Samples of the entries of large weights."""

from __future__ import annotations


def stride_of(total: int, size: int) -> int:
    """The distance at which about `size` of `total` entries are met; odd, so as to meet all columns of even rows."""
    return max(1, total // size) | 1
