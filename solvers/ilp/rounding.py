"""From prices of budgets to a mask: items clearly below the priced threshold are kept, clearly above it pruned.

Those between, a thousandth or so, make a linear program, which has a solution with at most as many fractional items as
there are budgets, and one more for a count. Dropping these and filling up in the order of priced costs costs so many
items, at most; items of equal costs and weights are one variable, so that ties are shared out as well.
Source: dossier paper-pins-sparsebert, section 6, fractionality.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from argprune.solvers.ilp.exact import near_one
from argprune.solvers.ilp.items import Floats, Items
from argprune.solvers.sampling import stride_of

# Items close to the threshold to begin with: all where there are no more, else at least so many, and a share of all.
_FEW, _LEAST, _SHARE = 1 << 14, 1 << 13, 1 / 1024
# With a count, a mask is not looked for among more.
_MOST = 1 << 20
# Sample that the distance of so many from the threshold is read off.
_SAMPLE = 1 << 16
_WIDEN = 8.0
# Where filling up does not meet a count, so many linear programs that leave some room may, or an integer program.
_ROUNDS, _PROGRAM, _NODES = 16, 1 << 9, 100
# Of an item's cost and price, what the prices' tolerance may hide: thousands of equal items may lie on either side.
_BLUR = 1e-6
# What a linear program's solution may lack of an integer.
_INTEGRAL = 1e-6


@dataclass(frozen=True, eq=False)
class _Close:
    """Items close to the threshold, merged where costs and weights are equal; what else is kept, and what it takes.

    positions: of each item, tensor and index; classes: of each item, its class. costs (classes,), weights
    (classes, J), priced and numbers (classes,): of one item of the class, and of how many there are.
    """

    flags: list[Tensor]
    used: Floats
    count: int
    positions: Any
    classes: Any
    costs: Floats
    weights: Floats
    priced: Floats
    numbers: Any


def rounded(items: Items, prices: Floats, nu: float) -> list[Tensor] | None:
    """Flags of items that meet limits and count, of about least cost; None where none were found, which takes a count.

    prices, nu: such that the items of priced cost below 0 are about those to keep.
    """
    width = _width(items, prices, nu)
    while True:
        close = _close(items, prices, nu, width)
        everything = len(close.classes) == items.total
        chosen = _chosen(items, close)
        if chosen is not None:
            return _flags(close, chosen)
        if everything or (items.keep is not None and len(close.classes) > _MOST):
            return None
        width = width * _WIDEN if width > 0 else math.inf


def _width(items: Items, prices: Floats, nu: float) -> float:
    """The distance from the threshold within which so many items lie as are looked at one by one."""
    if items.total <= _FEW:
        return math.inf
    few = items.every(stride_of(items.total, _SAMPLE))
    distances = np.concatenate([part.priced.abs().cpu().numpy() for part in few.priced(prices, nu)])
    rank = math.ceil(max(_LEAST / items.total, _SHARE) * len(distances))
    return float(np.partition(distances, rank)[rank])


def _close(items: Items, prices: Floats, nu: float, width: float) -> _Close:
    flags = [torch.zeros(cost.shape, dtype=torch.bool, device=cost.device) for cost in items.costs]
    used, count = np.zeros(len(prices)), 0
    rows, positions = [], []
    for part in items.priced(prices, nu):
        blur = (part.costs.abs() + (part.priced - part.costs).abs()).mul_(_BLUR).clamp_(min=width)
        kept = part.priced < -blur
        flags[part.tensor][part.start : part.start + len(kept)] = kept
        used += part.usage(kept)
        count += int(kept.count_nonzero())
        inside = (part.priced.abs() <= blur).nonzero().flatten()
        columns = [part.costs[inside].double()]
        for weight in part.weights:
            each = weight[inside].double() if isinstance(weight, Tensor) else torch.full_like(columns[0], weight)
            columns.append(each)
        rows.append(torch.stack(columns, 1).cpu().numpy())
        places = inside.cpu().numpy() + part.start
        positions.append(np.column_stack([np.full(len(places), part.tensor), places]))
    # -0.0 + 0.0 is 0.0: equal costs are equal bits.
    distinct, classes, numbers = np.unique(np.concatenate(rows) + 0.0, axis=0, return_inverse=True, return_counts=True)
    costs, weights = distinct[:, 0], distinct[:, 1:]
    priced = costs + weights @ prices - nu
    return _Close(flags, used, count, np.concatenate(positions), classes.ravel(), costs, weights, priced, numbers)


def _chosen(items: Items, close: _Close) -> Any:
    """How many to keep of each class; None where limits and count leave no way, or none was found."""
    missing = None if items.keep is None else items.keep - close.count
    if not items.fits(close.used) or (missing is not None and not 0 <= missing <= close.numbers.sum()):
        return None
    room = np.maximum(items.limits - close.used, 0.0)
    reserve = np.zeros_like(room)
    for _ in range(_ROUNDS):
        part = _linear(close, room - reserve, missing) if (room >= reserve).all() else None
        if part is None:
            break
        down = np.floor(part + _INTEGRAL).astype(np.int64)
        chosen = _filled(items, close, down, missing)
        if chosen is not None or missing is None:
            return chosen
        # With a count, too little may fit: the items that would complete it say how much room to leave next time.
        up, short = down.copy(), missing - int(down.sum())
        assert short >= 0
        up[np.argsort(down - part, kind="stable")[:short]] += 1
        if items.fits(close.used + up @ close.weights):
            return up
        reserve += np.maximum(up @ close.weights - room, 0.0)
    return _whole(items, close, room, missing)


def _filled(items: Items, close: _Close, chosen: Any, missing: int | None) -> Any:
    """The choice made to fit, then filled up in the order of priced costs; None where it misses the count."""
    left = items.limits - close.used - chosen @ close.weights
    order = np.argsort(close.priced, kind="stable")
    # The solver has tolerances: the worst priced go until all limits are met.
    while not items.fits(items.limits - left):
        over = (close.weights[:, left < 0] > 0).any(1) & (chosen > 0)
        worst = order[over[order]][-1]
        chosen[worst] -= 1
        left = left + close.weights[worst]
    room = math.inf if missing is None else missing - int(chosen.sum())
    # Room only shrinks: what does not fit now never will.
    addable = (chosen < close.numbers) & items.fits_each(items.limits - left + close.weights)
    if missing is None:
        addable &= close.costs < 0
    for index in order[addable[order]]:
        if room <= 0:
            break
        more, weights = int(min(room, close.numbers[index] - chosen[index])), close.weights[index]
        with np.errstate(divide="ignore", invalid="ignore"):
            fitting = np.where(weights > 0, np.floor(left / weights), math.inf).min()
        more = int(min(more, max(fitting, 0)))
        if more == 0 and items.fits(items.limits - left + weights):
            more = 1
        chosen[index] += more
        left = left - more * weights
        room -= more
    return None if missing is not None and room != 0 else chosen


def _linear(close: _Close, room: Floats, missing: int | None) -> Any:
    """A vertex of the linear program over the classes, (classes,); None where there is none."""
    from scipy.optimize import linprog

    if len(close.costs) == 0:
        return np.zeros(0)
    costs, rows, scale = _scaled(close)
    count = {} if missing is None else {"A_eq": np.ones((1, len(costs))), "b_eq": [missing]}
    bounds = np.column_stack([np.zeros(len(costs)), close.numbers])
    # Presolving compares all pairs of columns, which takes longer than to solve.
    options = {"bounds": bounds, "method": "highs-ds", "options": {"presolve": False}}
    return linprog(costs, rows, room / scale, **count, **options).x


def _whole(items: Items, close: _Close, room: Floats, missing: int | None) -> Any:
    """The best solution in whole numbers that some nodes of a tree find, of the classes closest to the threshold."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    order = np.argsort(np.abs(close.priced), kind="stable")
    free, fixed = order[:_PROGRAM], order[_PROGRAM:]
    chosen = np.where(close.priced < 0, close.numbers, 0)
    chosen[free] = 0
    costs, rows, scale = _scaled(close)
    left = room - chosen @ close.weights
    constraints = [LinearConstraint(rows[:, free], -math.inf, left / scale)]
    if missing is not None:
        count = missing - int(chosen[fixed].sum())
        constraints.append(LinearConstraint(np.ones((1, len(free))), count, count))
    bounds = Bounds(0, close.numbers[free])
    options = {"node_limit": _NODES}
    found = milp(costs[free], integrality=np.ones(len(free)), bounds=bounds, constraints=constraints, options=options).x
    if found is None:
        return None
    chosen[free] = np.rint(found)
    return _filled(items, close, chosen, missing)


def _scaled(close: _Close) -> tuple[Floats, Floats, Floats]:
    """Costs and weights, (J, classes), of a size that solvers in floating point suit, and the weights' scale, (J,)."""
    costs, _ = near_one(close.costs)
    largest = close.weights.max(0)
    scale = np.where(largest > 0, largest, 1.0)
    return costs, (close.weights / scale).T, scale


def _flags(close: _Close, chosen: Any) -> list[Tensor]:
    """Flags of all items: of each class, those of the smallest positions are kept."""
    order = np.argsort(close.classes, kind="stable")
    first = np.cumsum(close.numbers) - close.numbers
    rank = np.arange(len(order)) - first[close.classes[order]]
    kept = order[rank < chosen[close.classes[order]]]
    for tensor, flags in enumerate(close.flags):
        mine = close.positions[kept]
        places = torch.from_numpy(mine[mine[:, 0] == tensor, 1])
        flags[places.to(flags.device)] = True
    return close.flags
