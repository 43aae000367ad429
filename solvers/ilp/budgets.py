"""Budgets on what is kept, as users state them: sum_i a_i z_i <= b, with a weight a_i for each entry or group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

Weights = float | Tensor | Sequence[float | Tensor]
Budgets = Mapping[str, tuple[Weights, float]]


@dataclass(frozen=True, eq=False)
class Knapsack:
    """One budget: a weight for each item, a number where all items of a tensor weigh the same, and the limit."""

    name: str
    weights: tuple[float | Tensor, ...]
    limit: float


def as_knapsacks(
    budgets: Budgets, numbers: Sequence[int], costs: Sequence[Tensor], grouped: bool
) -> tuple[Knapsack, ...]:
    """The budgets, checked. numbers: of items in each tensor. Raises ValueError for shapes, weights and limits."""
    if not isinstance(budgets, Mapping) or not budgets:
        raise ValueError(f"Selection: budgets {budgets!r}; give at least one, as {{'flops': (weights, limit)}}.")
    result = []
    for name, budget in budgets.items():
        if not isinstance(budget, tuple) or len(budget) != 2:
            raise ValueError(f"Selection: budget {name!r} is a {type(budget).__name__}; give (weights, limit).")
        weights, limit = budget
        if not _is_number(limit) or not 0 <= limit < math.inf:
            raise ValueError(f"Selection: budget {name!r} has the limit {limit}; give a finite number >= 0.")
        parts = [weights] * len(costs) if _is_number(weights) else [weights] if isinstance(weights, Tensor) else weights
        if not isinstance(parts, Sequence) or len(parts) != len(costs):
            given = f"{len(parts)} weights" if isinstance(parts, Sequence) else f"weights {parts!r}"
            raise ValueError(
                f"Selection: budget {name!r} has {given}; give a number, or a number or tensor for each of the "
                f"{len(costs)} tensors of costs."
            )
        shapes = [(number,) if grouped else tuple(cost.shape) for number, cost in zip(numbers, costs, strict=True)]
        checked = [
            _weight(f"budget {name!r}, tensor {index}", part, shape, costs[index])
            for index, (part, shape) in enumerate(zip(parts, shapes, strict=True))
        ]
        result.append(Knapsack(name, tuple(checked), float(limit)))
    return tuple(result)


def _weight(where: str, weight: object, shape: tuple[int, ...], cost: Tensor) -> float | Tensor:
    if isinstance(weight, Tensor):
        if tuple(weight.shape) != shape or weight.device != cost.device or weight.is_complex():
            raise ValueError(
                f"Selection: {where}: {weight.dtype} weights of shape {tuple(weight.shape)} on {weight.device}; "
                f"give a number or real ones of shape {shape} on {cost.device}."
            )
        weight = weight.detach()
        if weight.numel() and not (bool((weight >= 0).all()) and bool(weight.isfinite().all())):
            raise ValueError(f"Selection: {where}: a weight is negative, infinite or NaN; give finite ones >= 0.")
        return weight
    if not _is_number(weight) or not 0 <= float(weight) < math.inf:  # type: ignore[arg-type]
        raise ValueError(f"Selection: {where}: weight {weight!r}; give a finite number >= 0, or a tensor.")
    return float(weight)  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
