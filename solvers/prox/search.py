"""The strength at which a regularizer zeroes a wanted fraction of the entries, for any regularizer: by search.

The more strength, the more zeros: the number of zeros of prox(a, step * strength) does not decrease. A bracket around
the last strength is widened until it holds the wanted one, then halved on a logarithmic scale. Separable regularizers
are searched on a sample of the entries, the others by one correction a step from what the last prox did, and both on
all entries where the strength must be exact. For weighted l1 there is a closed form: `SparsityController`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from argprune.solvers.prox.optimizer import ProximalOptimizer
from argprune.solvers.prox.reweighting import Scaled
from argprune.solvers.sampling import stride_of
from argprune.solvers.shards import totals

_SAMPLE = 1 << 11
# From strength 1 the first search may have far to go; a float holds no more than this.
_LIMIT = 1e30
_HALVINGS = 12
_EXACT_HALVINGS = 40


class StrengthSearch:
    """Gives a `ProximalOptimizer` strengths that make a fraction `target()` of every weight zero.

    target: the sparsity wanted after the coming prox, in [0, 1); called once a step. exact: says whether the coming
    strength is searched on all entries; the zeros are then at most the wanted number, and short of it only where
    entries vanish together.
    """

    def __init__(self, target: Callable[[], float], exact: Callable[[], bool]) -> None:
        self._target, self._exact = target, exact
        self.last: list[float] = []

    def __call__(self, optimizer: ProximalOptimizer) -> list[float]:
        """The strengths for the coming prox. Raises ValueError where none zeroes enough."""
        target, count = self._target(), len(optimizer.weights)
        before = self.last if len(self.last) == count else [0.0] * count
        if target == 0:
            self.last = [0.0] * count
        else:
            self.last = [self._search(optimizer, i, target, before[i]) for i in range(count)]
        return self.last

    def _search(self, optimizer: ProximalOptimizer, index: int, target: float, start: float) -> float:
        exact, weight = self._exact(), optimizer.weights[index]
        w, step, regularizer = _problem(optimizer, index, exact)
        [searched] = totals([weight], [w.numel()])
        zeros = math.floor(target * searched + 1e-9)
        # At a learning rate of 0 no strength zeroes anything, and the prox is the identity.
        if zeros == 0 or optimizer.constant_step(index) == 0:
            return start
        separable = bool(getattr(regularizer, "separable", False))

        def enough(strength: float) -> bool:
            # Beyond `zeros` where exact, so that the lower end of the bracket zeroes no more than wanted.
            [found] = totals([weight], [_zeros(regularizer, w, step * strength) if w.numel() else 0])
            return found > zeros if exact else found >= zeros

        if not separable and not exact and start:
            return start * (1.02 if not enough(start) else 1 / 1.02)
        low, high = _bracket(enough, start if start > 1 / _LIMIT else 1.0, weight.name)
        for _ in range(_EXACT_HALVINGS if exact else _HALVINGS):
            if high / low < 1 + 1e-7:
                break
            middle = math.sqrt(low * high)
            low, high = (low, middle) if enough(middle) else (middle, high)
        return low if exact else high


def _problem(optimizer: ProximalOptimizer, index: int, exact: bool) -> tuple[Tensor, float | Tensor, Any]:
    """The coming prox problem of a weight, or of a sample of its entries where they are not tied."""
    weight, regularizer = optimizer.weights[index], optimizer.regularizers[index]
    w = weight.parameter.detach()
    stride = stride_of(weight.numel, _SAMPLE)
    if exact or stride == 1 or not getattr(regularizer, "separable", False):
        return w, optimizer.prox_step(index), regularizer
    start = weight.first_of(stride)
    # Only those that know of other rows take a start.
    whence = (stride,) if start == 0 else (stride, start)
    sampled = regularizer.sampled(*whence) if hasattr(regularizer, "sampled") else regularizer
    return w.flatten()[start::stride], optimizer.prox_step(index, stride, start), sampled


def _zeros(regularizer: Any, w: Tensor, step: float | Tensor) -> int:
    """How many entries the prox makes zero."""
    if isinstance(regularizer, Scaled):
        return _zeros(regularizer.regularizer, w / regularizer.scale, step / regularizer.scale**2)
    if hasattr(regularizer, "zeros"):
        return int(regularizer.zeros(w, step))
    return int((regularizer.prox(w, step) == 0).sum())


def _bracket(enough: Callable[[float], bool], start: float, name: str) -> tuple[float, float]:
    """A strength that zeroes too little and one that zeroes enough."""
    factor = 1.1
    if enough(start):
        high, low = start, start / factor
        while enough(low):
            factor = factor**2
            high, low = low, low / factor
            if low < 1 / _LIMIT:
                return low, high
        return low, high
    low, high = start, start * factor
    while not enough(high):
        factor = factor**2
        low, high = high, min(high * factor, _LIMIT)
        if low >= _LIMIT:
            raise ValueError(
                f"{name or 'a weight'}: no strength of this regularizer makes enough entries zero. "
                "Choose one with a kink or a jump at 0, such as l1, mcp or l0."
            )
    return low, high
