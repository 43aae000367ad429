"""Budgets on tables: one level a layer, each with a cost and a latency, the sum of latencies limited.

Minimise sum_l E[l, s_l] subject to sum_l T[l, s_l] <= limit. For a price p >= 0 of latency,
D(p) = -p limit + sum_l min_s (E[l, s] + p T[l, s]) bounds every choice from below; it is that of the linear program.
Source: dossier paper-pins-sparsebert, section 6, latency tables.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from argprune.solvers.ilp.exact import near_one, times_power
from argprune.solvers.ilp.problem import Status

# Halvings of the price's interval: as many as float64 can tell apart, about.
_HALVINGS = 100
# Bounds are sums of some hundred rounded numbers: a partial choice is dropped only where it is worse by more.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Levels:
    """What was chosen for each layer, and what is proved of it.

    levels: of each layer, its position in the table. objective and latency are their sums; bound, gap, status, seconds
    as in `Solution`.
    """

    levels: list[int]
    objective: float
    latency: float
    bound: float
    gap: float
    status: Status
    seconds: float


def choose_levels(
    costs: Sequence[Sequence[float]],
    latencies: Sequence[Sequence[float]],
    limit: float,
    how: Literal["dynamic", "lagrangian", "exact"] = "dynamic",
    most_states: int = 1 << 20,
) -> Levels:
    """The level of each layer that costs least in total within a limit on the sum of latencies.

    costs[l][s], latencies[l][s]: of level s in layer l, finite numbers, latencies >= 0 in the limit's unit. Layers may
    differ in how many levels they have.
    how: "dynamic" is exact, for latencies of any kind, integers or not: partial choices that another one beats in both
    sums, or that the Lagrangian bound proves worse than the best choice known, are dropped. Should more than
    `most_states` remain, it returns that best choice with its bound, status "feasible". "lagrangian" is that choice:
    the priced one, then exchanges of one and two layers. "exact" is a mixed-integer program (HiGHS), for comparison.
    Raises ValueError for tables that do not match, numbers out of range and a limit that no choice meets.

    >>> choose_levels([[0.0, 2.0], [0.0, 3.0]], [[4.0, 1.0], [4.0, 1.0]], limit=5.0).levels
    [1, 0]
    """
    start = time.perf_counter()
    cost, latency = _tables(costs, latencies, limit)
    if how not in ("dynamic", "lagrangian", "exact"):
        raise ValueError(f"choose_levels: how {how!r}; give dynamic, lagrangian or exact.")
    if isinstance(most_states, bool) or not isinstance(most_states, int) or most_states < 1:
        raise ValueError(f"choose_levels: most_states {most_states}; give an integer >= 1.")
    price, bound, levels = _priced(cost, latency, limit)
    levels = _exchanged(cost, latency, limit, levels)
    proved = False
    if how == "dynamic":
        known = _sum(cost, levels)
        found = _dynamic(cost, latency, limit, price, known, most_states)
        proved = found is not None
        levels = levels if found is None or _sum(cost, found) > known else found
    elif how == "exact":
        levels, bound, proved = _program(cost, latency, limit)
    objective = _sum(cost, levels)
    bound = objective if how == "dynamic" and proved else min(bound, objective)
    status: Status = "optimal" if proved or bound == objective else "feasible"
    seconds = time.perf_counter() - start
    return Levels(levels.tolist(), objective, _sum(latency, levels), bound, objective - bound, status, seconds)


def _tables(costs: Sequence[Sequence[float]], latencies: Sequence[Sequence[float]], limit: float) -> tuple[Any, Any]:
    """Tables as (layers, levels) float64 arrays; levels that a layer lacks have infinite cost and latency."""
    if len(costs) != len(latencies) or len(costs) == 0:
        raise ValueError(f"choose_levels: {len(costs)} layers of costs, {len(latencies)} of latencies; give one each.")
    width = max(len(row) for row in costs)
    tables = np.full((2, len(costs), width), math.inf)
    for layer, (row, times) in enumerate(zip(costs, latencies, strict=True)):
        if len(row) != len(times) or len(row) == 0:
            raise ValueError(
                f"choose_levels: {len(row)} costs, {len(times)} latencies in layer {layer}; give one each."
            )
        tables[:, layer, : len(row)] = row, times
        given = tables[:, layer, : len(row)]
        if not np.isfinite(given).all() or given[1].min() < 0:
            raise ValueError(
                f"choose_levels: layer {layer} has costs {list(row)}, latencies {list(times)}; "
                "give finite numbers, latencies >= 0."
            )
    least = math.fsum(tables[1].min(1))
    if not least <= limit < math.inf:
        raise ValueError(
            f"choose_levels: limit {limit}; the fastest levels take {least:g}, give a finite number from there."
        )
    return tables[0], tables[1]


def _sum(table: Any, levels: Any) -> float:
    return math.fsum(table[np.arange(len(table)), levels])


def _priced(cost: Any, latency: Any, limit: float) -> tuple[float, float, Any]:
    """The best price found, its bound, and a choice within the limit that is the best for some price."""

    def at(price: float) -> tuple[float, Any]:
        priced = _at_price(cost, latency, price)
        return math.fsum(priced.min(1)) - price * limit, priced.argmin(1)

    bound, levels = at(0.0)
    if _sum(latency, levels) <= limit:
        return 0.0, bound, levels
    best, low, high = 0.0, 0.0, 1.0
    levels = latency.argmin(1)
    scale = float(np.ptp(cost[np.isfinite(cost)])) + 1.0
    for _ in range(2 * _HALVINGS):
        value, chosen = at(high * scale)
        bound, best = max((bound, best), (value, high * scale))
        if _sum(latency, chosen) <= limit:
            levels = chosen
            break
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        value, chosen = at(middle * scale)
        bound, best = max((bound, best), (value, middle * scale))
        if _sum(latency, chosen) <= limit:
            high, levels = middle, chosen
        else:
            low = middle
    return best, bound, levels


def _at_price(cost: Any, latency: Any, price: float) -> Any:
    # Levels that a layer lacks stay out at price 0 too, where 0 x inf is no number.
    return cost + price * latency if price > 0 else cost


def _exchanged(cost: Any, latency: Any, limit: float, levels: Any) -> Any:
    """The choice after the best exchanges of two layers' levels, as long as one helps and stays within the limit.

    A layer's own level is among those it may take, so that exchanges of one layer are included.
    """
    layers, width = cost.shape
    if layers == 1:
        return np.where(latency <= limit, cost, math.inf).argmin(1)
    rows = np.arange(layers)
    owner = np.repeat(rows, width)
    same = owner[:, None] == owner
    for _ in range(4 * layers):
        gain = (cost[rows, levels][:, None] - cost).ravel()
        more = (latency - latency[rows, levels][:, None]).ravel()
        gains = gain[:, None] + gain
        gains[same | (more[:, None] + more > limit - _sum(latency, levels))] = -math.inf
        first, second = np.unravel_index(gains.argmax(), gains.shape)
        changed = levels.copy()
        changed[[owner[first], owner[second]]] = first % width, second % width
        # Sums are what decides; differences have rounding of their own.
        if _sum(latency, changed) > limit or _sum(cost, changed) >= _sum(cost, levels):
            break
        levels = changed
    return levels


def _dynamic(cost: Any, latency: Any, limit: float, price: float, known: float, most_states: int) -> Any:
    """The best choice, layer by layer over partial choices worth keeping; None where these are too many."""
    priced = _at_price(cost, latency, price)
    to_come = np.append(priced.min(1)[::-1].cumsum()[::-1][1:], 0.0)
    fastest = np.append(latency.min(1)[::-1].cumsum()[::-1][1:], 0.0)
    magnitude = float(np.abs(np.where(np.isfinite(cost), cost, 0.0)).max(1).sum()) + price * limit
    worst = known + _ROUNDING * magnitude
    slack = _ROUNDING * limit
    sums, times = np.zeros(1), np.zeros(1)
    steps: list[tuple[Any, Any]] = []
    for layer in range(len(cost)):
        real = np.flatnonzero(np.isfinite(cost[layer]))
        sums = (sums[:, None] + cost[layer, real]).ravel()
        times = (times[:, None] + latency[layer, real]).ravel()
        hopeful = sums + to_come[layer] - price * (limit - times) <= worst
        hopeful &= times + fastest[layer] <= limit + slack
        index = np.flatnonzero(hopeful)
        index = index[np.lexsort((sums[index], times[index]))]
        lowest = np.minimum.accumulate(sums[index])
        index = index[np.append(True, lowest[1:] < lowest[:-1])] if len(index) else index
        if len(index) > most_states:
            return None
        steps.append((index // len(real), real[index % len(real)]))
        sums, times = sums[index], times[index]
    # From the cheapest on: the running sum of latencies may be off by its rounding.
    for state in np.argsort(sums, kind="stable"):
        levels, at = np.empty(len(cost), dtype=np.int64), int(state)
        for layer in range(len(cost) - 1, -1, -1):
            parents, chosen = steps[layer]
            levels[layer], at = chosen[at], int(parents[at])
        if _sum(latency, levels) <= limit:
            return levels
    return None


def _program(cost: Any, latency: Any, limit: float) -> tuple[Any, float, bool]:
    from scipy import sparse
    from scipy.optimize import Bounds, LinearConstraint, milp

    layers, width = cost.shape
    real = np.isfinite(cost).ravel()
    # HiGHS has absolute tolerances: costs and latencies are brought near one, and what breaks the limit is cut off.
    costs, exponent = near_one(cost.ravel()[real])
    longest = float(latency.ravel()[real].max()) or 1.0
    one_each = sparse.kron(sparse.identity(layers), np.ones((1, width))).tocsr()[:, real]
    within = LinearConstraint(latency.ravel()[real][None] / longest, -np.inf, limit / longest)
    constraints = [LinearConstraint(one_each, 1, 1), within]
    while True:
        solved = milp(
            costs,
            integrality=np.ones(int(real.sum())),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
        if solved.x is None:
            raise RuntimeError(f"HiGHS did not solve the mixed-integer program: {solved.message}")
        chosen = np.zeros(layers * width)
        chosen[real] = solved.x
        levels = chosen.reshape(layers, width).argmax(1)
        if _sum(latency, levels) <= limit:
            return levels, float(times_power(solved.mip_dual_bound, -exponent)), solved.status == 0
        broken = (np.arange(width) == levels[:, None]).ravel()[real]
        constraints.append(LinearConstraint(broken.astype(float)[None], -np.inf, layers - 1))
