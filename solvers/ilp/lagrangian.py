"""Prices of budgets: the largest Lagrangian bound by cutting planes, and a mask that the prices lead to.

D(lambda) = min over z of c . z + lambda . (A z - b) is concave and piecewise linear; evaluated at some lambda, its
value and slope bound it everywhere. The point that maximises the least of these bounds within a region of trust comes
next; with several budgets, the first point on the way there at which the bounds allow half of that improvement.
Source: dossier paper-pins-sparsebert, section 6.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from argprune.solvers.ilp.budget_certificate import BudgetCertificate
from argprune.solvers.ilp.items import Floats, Items
from argprune.solvers.ilp.problem import Selection, Solution, Status, objective_of
from argprune.solvers.ilp.rounding import rounded
from argprune.solvers.sampling import stride_of

# More items than this: prices of an evenly spaced sample of so many come first.
_SAMPLE = 1 << 16
# The region of trust about the sample's prices, as a share of the largest: some standard errors of the sample.
_TRUST = 2.0**-5
# The next region of trust, in lengths of the step just made; how far it grows where it was the limit.
_LENGTHS, _WIDEN = 8.0, 8.0
# Of the improvement that the bounds allow, what the next point must be allowed.
_LEVEL = 0.5
# Prices beyond this many units (mean cost by mean weight) are not looked for.
_LARGEST = 2.0**100
# Of the magnitudes' sum, what is but rounding; of the limits at their prices, what is certainly more.
_ROUNDING, _CLEARLY = 1e-12, 1e-9


@dataclass(frozen=True)
class Prices:
    """The best prices found, the dual value of the count, and their bound: inf if it proves that no mask meets all."""

    prices: Floats
    nu: float
    bound: float


def solve_lagrangian(problem: Selection, tol: float = 1e-8, num_steps: int = 300) -> Solution:
    """Solve a problem with budgets by prices: the bound of the linear program, and a mask close to it.

    tol: the bound is within tol times its magnitude of the linear program's. num_steps: evaluations of the bound at
    most, each a pass over the costs; should they not suffice, it is merely a bound. The mask is the linear program's
    solution near the priced threshold with its fractional items dropped, filled up in the order of priced costs; its
    gap is about the cost of (budgets + 1) items: nothing for millions of entries, percents for some heads. Memory: a
    small multiple of the costs. Status "optimal" where the bound is met, "infeasible" where it proves that no mask
    meets count and limits, "unknown" where no mask was found, which takes a count, else "feasible". The certificate is
    a `BudgetCertificate`. Raises ValueError for other arguments.
    """
    if not 0 < tol < 1:
        raise ValueError(f"lagrangian: tol {tol}; give a share of the bound, 0 < tol < 1.")
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"lagrangian: num_steps {num_steps}; give a number of passes >= 1.")
    start = time.perf_counter()
    items = Items.of(problem)
    return priced_solution(problem, items, best_prices(items, tol, num_steps), start)


def priced_solution(
    problem: Selection, items: Items, best: Prices, start: float, rounding: float = _ROUNDING
) -> Solution:
    """The mask that prices lead to, with its bound, gap and certificate; rounding: of the magnitudes, a gap of none."""
    flags = rounded(items, best.prices, best.nu) if math.isfinite(best.bound) else None
    if flags is None:
        status: Status = "unknown" if math.isfinite(best.bound) else "infeasible"
        return Solution([], math.inf, best.bound, math.inf, status, time.perf_counter() - start)
    masks = items.masks(problem, flags)
    names = [knapsack.name for knapsack in problem.knapsacks]
    prices = dict(zip(names, best.prices.tolist(), strict=True))
    certificate = BudgetCertificate.of(problem, masks, prices, best.nu)
    objective = objective_of(problem.tensors, masks)
    status = "optimal" if certificate.gap <= rounding * items.magnitude() else "feasible"
    seconds = time.perf_counter() - start
    return Solution(masks, objective, objective - certificate.gap, certificate.gap, status, seconds, certificate)


def best_prices(items: Items, tol: float, num_steps: int) -> Prices:
    """Prices whose bound is within tol times its magnitude of the largest one."""
    stride = stride_of(items.total, _SAMPLE)
    few = items.every(stride) if stride > 1 else items
    # Mean cost by mean weight: what prices are, about.
    weights = few.usage([torch.ones_like(cost, dtype=torch.bool) for cost in few.costs])
    unit = np.divide(few.magnitude(), weights, out=np.ones_like(weights), where=weights > 0)
    # Costs that are all zero: any price has the same bound.
    unit[unit == 0] = 1.0
    at, width = np.zeros_like(unit), 1.0
    if stride > 1:
        sampled = _ascend(few, unit, at, width, tol, num_steps)
        if math.isfinite(sampled.bound) and sampled.prices.any():
            at = sampled.prices / unit
            width = _TRUST * float(at.max())
    return _ascend(items, unit, at, width, tol, num_steps)


def _ascend(items: Items, unit: Floats, start: Floats, width: float, tol: float, num_steps: int) -> Prices:
    """Cutting planes from the prices `start`, trusted in a box of a width to either side; both in units."""
    magnitude = items.magnitude()
    points: list[Floats] = []
    values: list[float] = []
    slopes: list[Floats] = []
    at, center, best = start, start, Prices(start * unit, 0.0, -math.inf)
    trust = np.full_like(start, width)
    while len(points) < num_steps:
        value, slope, nu = items.best_at(at * unit)
        # No mask costs as much, so that there is none.
        if value > 2 * magnitude + _CLEARLY * float(at * unit @ items.limits):
            return Prices(at * unit, nu, math.inf)
        points.append(at)
        values.append(value)
        slopes.append(slope * unit)
        step = np.abs(at - center)
        if value > best.bound:
            center, best = at, Prices(at * unit, nu, value)
        if len(points) > 1:
            trust = np.maximum(_LENGTHS * step, trust / _WIDEN)
        gradients = np.array(slopes)
        # What each bound allows at the center, above the best value.
        above = np.array(values) - best.bound + ((center - np.array(points)) * gradients).sum(1)
        while True:
            move = _highest(gradients, above, center, trust)
            gain = float((above + gradients @ move).min())
            if gain > max(tol * abs(best.bound), _ROUNDING * magnitude):
                break
            inside = (np.abs(move) < trust * (1 - 1e-9)) | (center + move <= 0)
            if inside.all() or (trust > _LARGEST).any():
                return best
            trust = np.where(inside, trust, _WIDEN * trust)
        if len(unit) > 1:
            along = gradients @ move
            needed = (_LEVEL * gain - above) / np.where(along > 0, along, math.inf)
            move *= min(max(float(needed.max()), 0.0), 1.0)
        at = np.maximum(center + move, 0.0)
        if (at == center).all():
            return best
    return best


def _highest(gradients: Floats, above: Floats, center: Floats, trust: Floats) -> Floats:
    """A move within the region of trust, to prices >= 0, that maximises the least of the bounds, and no longer one."""
    if len(center) == 1:
        return _peak(gradients[:, 0], above, max(-trust[0], -center[0]), trust[0])
    from scipy.optimize import linprog

    # In units of the region, so that HiGHS's absolute tolerances become finer as it shrinks.
    sized = gradients * trust
    scale = float(np.abs(sized).max())
    move = np.zeros_like(center)
    if scale == 0:
        return move
    rows = np.column_stack([-sized / scale, np.ones(len(gradients))])
    objective = np.append(move, -1.0)
    bounds = [*((max(-1.0, -price / width), 1.0) for price, width in zip(center, trust, strict=True)), (None, None)]
    solved = linprog(objective, rows, above / scale, bounds=bounds, method="highs-ds")
    if solved.x is None:
        raise RuntimeError(f"HiGHS did not solve the program of the cutting planes: {solved.message}")
    move = solved.x[:-1] * trust
    # A vertex goes to the end of every price that does not matter, and these would run away.
    for index in range(len(move)):
        others = above + gradients @ move - gradients[:, index] * move[index]
        gain = float((others + gradients[:, index] * move[index]).min())
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = (gain - others) / gradients[:, index]
        low = ends[gradients[:, index] > 0].max(initial=-math.inf)
        high = ends[gradients[:, index] < 0].min(initial=math.inf)
        if low <= high:
            move[index] = min(max(0.0, low), high)
    return np.asarray(move)


def _peak(gradients: Floats, above: Floats, low: float, high: float) -> Floats:
    """The same of one price, where the highest point is at an end of the region or where two bounds meet."""
    with np.errstate(divide="ignore", invalid="ignore"):
        meets = np.subtract.outer(above, above) / np.subtract.outer(gradients, gradients).T
    moves = np.append(meets[np.isfinite(meets)], [low, high, 0.0]).clip(low, high)
    heights = (above[:, None] + gradients[:, None] * moves).min(0)
    # Of several, the shortest.
    best = np.lexsort((np.abs(moves), -heights))[0]
    return np.array([moves[best]])
