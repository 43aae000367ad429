"""An interval that holds the k-th smallest of many entries with overwhelming probability, from a sample of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def evenly(flat: Sequence[Tensor], stride: int, start: int = 0) -> Any:
    """Every stride-th entry of flat tensors as if they were one, from position `start` < stride on; a NumPy array.

    Of float32, or float64 where the tensors are: the order of all floating types is kept.
    """
    parts = []
    for part in flat:
        parts.append(part[start::stride])
        start = (start - len(part)) % stride
    if not parts:
        return np.empty(0, np.float32)
    return torch.cat(parts).to(wide(flat[0].dtype)).cpu().numpy()


def bracket(sample: Any, k: int, total: int) -> tuple[float, float]:
    """Ends, both in, of an interval for the k-th smallest (1-based) of `total` entries; infinite where unbounded."""
    ordered = np.sort(sample)
    position = k / total * len(ordered)
    # Five standard deviations of a binomial count, and what rounding can shift.
    slack = 5 * math.sqrt(position * (1 - k / total)) + 2
    first, last = int(position - slack), int(position + slack)
    return (
        float(ordered[first]) if first >= 0 else -math.inf,
        float(ordered[last]) if last < len(ordered) else math.inf,
    )


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which NumPy compares entries of a floating type: it is slow at float16 and has no bfloat16."""
    return torch.float64 if dtype == torch.float64 else torch.float32
