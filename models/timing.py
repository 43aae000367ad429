"""How long modules take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

# A candidate that takes this many times the best one's time after its warm-up is not timed further.
HOPELESS = 3.0


def median_seconds(candidates: Mapping[str, nn.Module], x: Tensor, repetitions: int) -> dict[str, float]:
    """Median seconds of each candidate on `x`, in turns after a warm-up; the first one is always among them."""
    warm = {}
    for kind, module in candidates.items():
        timed(module, x)
        warm[kind] = min(timed(module, x), timed(module, x))
    first, limit = next(iter(candidates)), HOPELESS * min(warm.values())
    times: dict[str, list[float]] = {kind: [] for kind in candidates if kind == first or warm[kind] <= limit}
    for _ in range(repetitions):
        for kind, values in times.items():
            values.append(timed(candidates[kind], x))
    return {kind: statistics.median(values) for kind, values in times.items()}


def timed(module: nn.Module, x: Tensor) -> float:
    """Seconds that one call takes, its device work included."""
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    module(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
