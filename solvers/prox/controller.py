"""How strong a penalty must be for a wanted sparsity: the multiplier of the cardinality constraint, found every step.

With R = sum_i factors_i |w_i| and prox steps tau_i, entry i becomes zero iff |a_i| <= strength * tau_i * factors_i,
where a is what the optimizer's step gave. The strength that zeroes a fraction s of the entries is therefore the
s-quantile of |a_i| / (tau_i factors_i). A sample of the entries estimates it at next to no cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from argprune.solvers.ilp import Certificate, solve_sharded
from argprune.solvers.prox.optimizer import ProximalOptimizer
from argprune.solvers.prox.separable import WeightedL1
from argprune.solvers.sampling import stride_of
from argprune.solvers.shards import ShardGroup, group_of

Scope = Literal["matrix", "global"]

_SAMPLE = 1 << 12


class SparsityController:
    """Gives a `ProximalOptimizer` of `WeightedL1` regularizers the strength that makes `target()` of its entries zero.

    target: the sparsity wanted after the coming prox, in [0, 1); called once a step.
    scope: "matrix" (a strength for every weight, each reaches the target) or "global" (one strength for all together).
    exact: says whether the coming strength is computed from all entries rather than from a sample; the number of
    zeros is then the wanted one up to the rounding of a single product.
    """

    def __init__(self, target: Callable[[], float], scope: Scope, exact: Callable[[], bool]) -> None:
        self._target, self._scope, self._exact = target, scope, exact
        self.last: list[float] = []

    def __call__(self, optimizer: ProximalOptimizer) -> Sequence[float]:
        """The strengths for the coming prox."""
        target, exact = self._target(), self._exact()
        count = len(optimizer.weights)
        group = group_of(optimizer.weights)
        quantile = _quantile if group is None else partial(_quantile_of_shards, exact=exact, group=group)
        if target == 0:
            self.last = [0.0] * count
        elif self._scope == "matrix":
            self.last = [quantile([_critical_strength(optimizer, i, exact)], target) for i in range(count)]
        else:
            total = sum(weight.numel for weight in optimizer.weights)
            stride = 1 if exact else stride_of(total, _SAMPLE * count)
            critical = [_critical_strength(optimizer, i, exact, stride) for i in range(count)]
            self.last = [quantile(critical, target)] * count
        return self.last


def _critical_strength(optimizer: ProximalOptimizer, index: int, exact: bool, stride: int | None = None) -> Tensor:
    """The strength at which each (sampled) entry of a weight vanishes."""
    weight, regularizer = optimizer.weights[index], optimizer.regularizers[index]
    w = weight.parameter.detach().flatten()
    assert isinstance(regularizer, WeightedL1), "the quantile rule holds for weighted l1 only"
    if stride is None:
        stride = 1 if exact else stride_of(weight.numel, _SAMPLE)
    start = weight.first_of(stride)
    step, factors = optimizer.prox_step(index, stride, start), regularizer.factors
    unit = step * (factors.flatten()[start::stride] if isinstance(factors, Tensor) else factors)
    return w[start::stride].abs() / (unit * regularizer.strength)


def _quantile(critical: list[Tensor], target: float) -> float:
    """The strength that zeroes a fraction `target` of the entries and, up to rounding, not one more."""
    total = sum(len(c) for c in critical)
    zeros = round(target * total)
    if zeros == 0:
        return 0.0
    return _between(*_neighbours(critical, zeros, total))


def _between(last: float, first: float) -> float:
    # Just below the first entry to survive would do as well; the midpoint is the farthest from a rounding slip.
    strength = last + (first - last) / 2
    # At a learning rate of 0 no strength zeroes anything, and the prox is the identity.
    return strength if strength < float("inf") else 0.0


def _quantile_of_shards(critical: list[Tensor], target: float, exact: bool, group: ShardGroup) -> float:
    """The same where every process has some of the critical strengths; all must call this.

    Samples are put together; all entries stay where they are, and the same two neighbours are found by selection.
    """
    if not exact:
        return _quantile([part.cpu() for parts in group.gather(critical) for part in parts], target)
    [total] = group.add_up([sum(len(c) for c in critical)])
    zeros = round(target * total)
    if zeros == 0:
        return 0.0
    # 0 / 0, at a learning rate of 0, is no number; no strength zeroes that entry, and it sorts last as above.
    found = solve_sharded([c.nan_to_num(nan=torch.inf, posinf=torch.inf) for c in critical], zeros, group.group)
    assert isinstance(found.certificate, Certificate)
    last = found.certificate.nu
    # The margin is half of the way to the first entry to survive.
    return _between(last, 2 * last if zeros == total else last + 2 * found.certificate.margin)


def _neighbours(critical: list[Tensor], zeros: int, total: int) -> tuple[float, float]:
    """The critical strengths of the last entry to vanish and of the first to survive."""
    everything = critical[0] if len(critical) == 1 else torch.cat(critical)
    # Where all shall vanish there is no survivor; anything well above the last will do.
    ranks = [zeros - 1, zeros] if zeros < total else [zeros - 1]
    if everything.device.type == "cpu" and everything.dtype in (torch.float32, torch.float64):
        ordered = np.partition(everything.numpy(), ranks)
        found = [float(ordered[rank]) for rank in ranks]
    else:
        found = [float(everything.kthvalue(rank + 1).values) for rank in ranks]
    return found[0], found[-1] if zeros < total else 2 * found[0]
