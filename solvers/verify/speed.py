"""How fast a prox is and what memory it takes, against a copy of the same bytes in the same run."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from argprune.solvers.verify.report import Speed

ENTRIES = 1 << 20
_FEW = 1 << 12


def measure_speed(operator: Any, entries: int = ENTRIES, repetitions: int = 5) -> Speed | None:
    """Speed on a float32 matrix of `entries` (a power of two), or of fewer where those would take more than a second.

    Bytes counted: every entry read and written once, as a copy does. None where the operator does not take the matrix.
    """
    in_place = getattr(operator, "prox_", None)
    try:
        operator.prox(_matrix(_FEW), 0.5)
        start = time.perf_counter()
        operator.prox(_matrix(_FEW), 0.5)
        expected = (time.perf_counter() - start) / _FEW
        while entries > _FEW and entries * expected > 1:
            entries //= 2
        w = _matrix(entries)
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


def _matrix(entries: int) -> Tensor:
    rows = 1 << (entries.bit_length() // 2)
    return torch.randn(rows, entries // rows, generator=torch.Generator().manual_seed(0))


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


class _Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes of tensors made inside that were alive together."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._given = given.untyped_storage()._cdata
        self._tensors: dict[int, int] = {}
        self._now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata != self._given:
                self._track(tensor)
        return result

    def _track(self, tensor: Tensor) -> None:
        # Views and in-place results share a storage, which lives as long as any of them.
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        if self._tensors.setdefault(storage._cdata, 0) == 0:
            self._now += size
            self.peak = max(self.peak, self._now)
        self._tensors[storage._cdata] += 1
        weakref.finalize(tensor, self._drop, storage._cdata, size)

    def _drop(self, key: int, size: int) -> None:
        self._tensors[key] -= 1
        if self._tensors[key] == 0:
            self._now -= size


def _peak_bytes(operator: Any, w: Tensor) -> int:
    """The most memory that one prox held beyond its input, as far as torch's operators show it."""
    with _Peak(w) as memory:
        operator.prox(w, 0.5)
    peak: int = memory.peak
    return peak
