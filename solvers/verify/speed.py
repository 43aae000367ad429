"""How fast a prox is and what memory it takes, against a copy of the same bytes in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from argprune.solvers.verify.report import Speed

ENTRIES = 1 << 20
_ROWS = 1 << 11


def measure_speed(operator: Any, entries: int = ENTRIES, repetitions: int = 5) -> Speed | None:
    """Speed on a (2048, entries / 2048) float32 matrix; None where the operator does not take it.

    Bytes counted: every entry read and written once, as a copy does.
    """
    w = torch.randn(_ROWS, entries // _ROWS, generator=torch.Generator().manual_seed(0))
    in_place = getattr(operator, "prox_", None)
    try:
        operator.prox(w, 0.5)
    except (ValueError, TypeError, RuntimeError):
        return None
    target = torch.empty_like(w)
    if in_place is None:
        own = _median(lambda: operator.prox(w, 0.5), repetitions)
        copy = _median(lambda: w.clone(), repetitions)
    else:
        # The input must be fresh every time; the copy that refreshes it is not counted.
        own = _median(lambda: in_place(target, 0.5), repetitions, before=lambda: target.copy_(w))
        copy = _median(lambda: target.copy_(w), repetitions)
    bytes_moved = 2 * w.numel() * w.element_size()
    return Speed(w.numel(), bytes_moved / own / 1e9, own / copy, _peak_bytes(operator, w) / w.numel())


def _median(action: Callable[[], object], repetitions: int, before: Callable[[], object] | None = None) -> float:
    seconds = []
    for turn in range(repetitions + 1):
        if before is not None:
            before()
        start = time.perf_counter()
        action()
        if turn:
            seconds.append(time.perf_counter() - start)
        elif time.perf_counter() - start > 1:
            # One slow call says enough.
            return time.perf_counter() - start
    return statistics.median(seconds)


def _peak_bytes(operator: Any, w: Tensor) -> int:
    """The most that the allocator handed out and had not got back during one prox."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        result = operator.prox(w, 0.5)
    del result
    now = peak = 0
    for event in trace.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak
