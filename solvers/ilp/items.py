"""The program that budgets make, over items: entries, or groups that are kept together.

Minimise sum_i c_i z_i over z in {0,1}^n subject to sum_i a_ij z_i <= b_j for every budget j and, where a count is
given, sum_i z_i = k. For prices lambda_j >= 0 of the budgets and nu of the count (0 without one),

    D(lambda, nu) = nu k - lambda . b + sum_i min(0, c_i + lambda . a_i - nu)

is a lower bound, and the largest one is the value of the linear program: the inner problem has integral solutions.
Source: dossier paper-pins-sparsebert, section 6.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from argprune.solvers.ilp.problem import Selection, chunks
from argprune.solvers.ilp.solve import smallest

Floats = NDArray[np.float64]

# Of a limit, what usage may exceed it by: the rounding of sums over millions of items.
ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Items:
    """Costs (n_l,) and weights of the items of each tensor l, limits (J,), and the count or None.

    weights: for each budget, for each tensor, a number or an (n_l,) tensor.
    """

    costs: tuple[Tensor, ...]
    weights: tuple[tuple[float | Tensor, ...], ...]
    limits: Floats
    keep: int | None

    @classmethod
    def of(cls, problem: Selection) -> Items:
        """The items of a problem with budgets: a group costs the sum of its entries, in float64."""
        if not problem.knapsacks:
            raise ValueError("a problem without budgets; give a Selection with budgets.")
        if problem.groups is None:
            costs = [cost.reshape(-1) for cost in problem.tensors]
        else:
            costs = [problem.groups.split(cost).sum(1, dtype=torch.float64) for cost in problem.tensors]
        weights = [
            tuple(weight.reshape(-1) if isinstance(weight, Tensor) else weight for weight in knapsack.weights)
            for knapsack in problem.knapsacks
        ]
        limits = np.array([knapsack.limit for knapsack in problem.knapsacks])
        assert problem.keep is None or isinstance(problem.keep, int)
        return cls(tuple(costs), tuple(weights), limits, problem.keep)

    @property
    def total(self) -> int:
        """How many items there are."""
        return sum(len(cost) for cost in self.costs)

    def magnitude(self) -> float:
        """The sum of the costs' magnitudes."""
        return sum(float(part.abs().sum(dtype=torch.float64)) for cost in self.costs for (part,) in chunks(cost))

    def masks(self, problem: Selection, flags: Sequence[Tensor]) -> list[Tensor]:
        """Flags of the items as masks shaped like the costs."""
        if problem.groups is None:
            return [kept.view(cost.shape) for kept, cost in zip(flags, problem.tensors, strict=True)]
        masks = []
        for kept, cost in zip(flags, problem.tensors, strict=True):
            # Meta tensors have the shapes and no data.
            shape = problem.groups.split(torch.empty(cost.shape, device="meta")).shape
            masks.append(problem.groups.join(kept[:, None].expand(shape), cost.shape).contiguous())
        return masks

    def flags(self, problem: Selection, masks: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Undo `masks`. Raises ValueError for shapes that differ and for groups that are kept in part."""
        given = (masks,) if isinstance(masks, Tensor) else tuple(masks)
        shapes = [tuple(cost.shape) for cost in problem.tensors]
        if [tuple(mask.shape) for mask in given] != shapes or any(mask.dtype != torch.bool for mask in given):
            raise ValueError(
                f"masks: {', '.join(f'{mask.dtype} of shape {tuple(mask.shape)}' for mask in given) or 'none'}; "
                f"give torch.bool of shape {', '.join(map(str, shapes))}."
            )
        if problem.groups is None:
            return [mask.reshape(-1) for mask in given]
        stacks = [problem.groups.split(mask) for mask in given]
        for index, stack in enumerate(stacks):
            if bool((stack.any(1) != stack.all(1)).any()):
                raise ValueError(f"masks: tensor {index} keeps a group in part; keep or prune its entries together.")
        return [stack.any(1) for stack in stacks]

    def split(self, whole: Tensor) -> list[Tensor]:
        """One value for each item, (n,), as a tensor for each tensor of costs, on the costs' device."""
        parts = torch.split(whole, [len(cost) for cost in self.costs])
        return [part.to(cost.device) for part, cost in zip(parts, self.costs, strict=True)]

    def every(self, stride: int) -> Items:
        """Every so many-th item of each tensor, with limits and count in proportion: the problem in small."""
        costs = tuple(cost[::stride] for cost in self.costs)
        weights = tuple(
            tuple(weight[::stride] if isinstance(weight, Tensor) else weight for weight in parts)
            for parts in self.weights
        )
        share = sum(len(cost) for cost in costs) / self.total
        return Items(costs, weights, self.limits * share, None if self.keep is None else round(self.keep * share))

    def fits(self, usage: Floats) -> bool:
        """Whether usage is within all limits, up to the rounding of its sums."""
        return bool(self.fits_each(usage).all())

    def fits_each(self, usage: Floats) -> Any:
        """The same of many usages, (number, J), as a boolean (number,) array."""
        return (usage <= self.limits * (1 + ROUNDING)).all(-1)

    def priced(self, prices: Floats, nu: float = 0.0, flags: Sequence[Tensor] | None = None) -> Iterator[Part]:
        """Chunks of all items in order, each with its priced costs c_i + lambda . a_i - nu in float64."""
        for index, cost in enumerate(self.costs):
            weights = [parts[index] for parts in self.weights]
            shift = sum(p * w for p, w in zip(prices, weights, strict=True) if not isinstance(w, Tensor)) - nu
            tensors = [weight for weight in weights if isinstance(weight, Tensor)]
            kept = [] if flags is None else [flags[index]]
            start = 0
            for values, *others in chunks(cost, *tensors, *kept):
                mine = iter(others)
                part = [next(mine) if isinstance(weight, Tensor) else weight for weight in weights]
                priced = values.double() + shift
                for price, weight in zip(prices, part, strict=True):
                    if isinstance(weight, Tensor) and price > 0:
                        priced += float(price) * weight.double()
                yield Part(index, start, values, part, priced, next(mine, None))
                start += len(values)

    def best_at(self, prices: Floats) -> tuple[float, Floats, float]:
        """max over nu of D(prices, nu), its slope in the prices (usage - limits of a minimiser), and that nu."""
        if self.keep is None:
            value, usage = 0.0, np.zeros(len(self.limits))
            for part in self.priced(prices):
                value += float(part.priced.clamp(max=0).sum())
                usage += part.usage(part.priced < 0)
            return value - float(prices @ self.limits), usage - self.limits, 0.0
        flags, nu = self.cheapest(prices)
        return self.bound(prices, nu), self.usage(flags) - self.limits, nu

    def cheapest(self, prices: Floats) -> tuple[list[Tensor], float]:
        """With a count: flags of the items of least priced cost, and the priced cost of the last of them."""
        assert self.keep is not None
        wide = torch.float64 if self.costs[0].dtype == torch.float64 else torch.float32
        priced = []
        for index, cost in enumerate(self.costs):
            # A copy for each tensor: selecting needs all of them at once.
            total = cost.to(wide, copy=True)
            for price, parts in zip(prices, self.weights, strict=True):
                weight = parts[index]
                if price > 0:
                    total += float(price) * (weight.to(wide) if isinstance(weight, Tensor) else weight)
            priced.append(total)
        flags = smallest(priced, self.keep)
        if self.keep == 0:
            return flags, min((float(values.amin()) for values in priced if len(values)), default=0.0)
        edges = [
            float(torch.where(kept, values, -math.inf).amax())
            for pair in zip(priced, flags, strict=True)
            for values, kept in chunks(*pair)
            if len(values)
        ]
        return flags, max(edges)

    def bound(self, prices: Floats, nu: float) -> float:
        """D(prices, nu), from scratch in float64."""
        least = sum(float(part.priced.clamp(max=0).sum()) for part in self.priced(prices, nu))
        return least + nu * (self.keep or 0) - float(prices @ self.limits)

    def usage(self, flags: Sequence[Tensor]) -> Floats:
        """How much of each budget the flagged items take, (J,)."""
        totals = [
            sum(_taken(weight, kept) for weight, kept in zip(parts, flags, strict=True)) for parts in self.weights
        ]
        return np.array(totals, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Part:
    """A chunk of a tensor's items from `start` on: costs, weights for each budget, priced costs, and what is kept."""

    tensor: int
    start: int
    costs: Tensor
    weights: list[float | Tensor]
    priced: Tensor
    kept: Tensor | None

    def usage(self, kept: Tensor) -> Floats:
        """How much of each budget the flagged items take, (J,)."""
        return np.array([_taken(weight, kept) for weight in self.weights], dtype=np.float64)


def _taken(weight: float | Tensor, kept: Tensor) -> float:
    if not isinstance(weight, Tensor):
        return weight * int(kept.count_nonzero())
    return sum(float(torch.where(flags, w, 0).sum(dtype=torch.float64)) for w, flags in chunks(weight, kept))
