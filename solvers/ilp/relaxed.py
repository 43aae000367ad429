"""Selection programs as linear programs: entries may be kept in part. Their vertices are masks all the same."""

from __future__ import annotations

import math
import time
from typing import Any, Literal

import numpy as np
import torch

from argprune.solvers.ilp.exact import Program, near_one, program, times_power
from argprune.solvers.ilp.items import Items
from argprune.solvers.ilp.lagrangian import Prices, priced_solution
from argprune.solvers.ilp.problem import Selection, Solution, objective_of
from argprune.solvers.ilp.solve import optimal_masks
from argprune.solvers.prox.base import load_cvxpy

# What counts as met, of the sum of the costs' magnitudes: about the accuracy of an interior point method.
_TOLERANCE = 1e-8


def solve_relaxed(problem: Selection, solver: Literal["highs", "cvxpy"] = "highs") -> Solution:
    """Solve the relaxation 0 <= z <= 1 and round it to a mask that meets the counts.

    The rows of counts are laminar, hence totally unimodular: the relaxation's value is that of the integer program.
    With budgets, they are not: the gap may stay above 0. The relaxation's dual solution is their prices, and the mask
    is the one that these lead to, as for `solve_lagrangian`.
    solver: "highs" (scipy) finds a vertex, a mask; "cvxpy" (Clarabel, an interior point method) may end between several
    optimal ones. The mask is the best one for z itself. bound: the value of the solver's dual solution, which bounds
    whatever its tolerances; status "optimal" where the mask meets it to 1e-8 of the sum of magnitudes, else "feasible".
    Raises ValueError for another solver, RuntimeError where the solver fails, ImportError without cvxpy.
    Source: dossier paper-pins-sparsebert, sections 4.1 and 5.
    """
    solvers = {"highs": _highs, "cvxpy": _cvxpy}
    if solver not in solvers:
        raise ValueError(f"relaxed: solver {solver!r}; give one of {', '.join(solvers)}.")
    start = time.perf_counter()
    numbers = program(problem)
    if numbers.items is not None:
        return _priced(numbers, numbers.items, solvers[solver], start)
    costs, exponent = near_one(numbers.costs)
    empty = np.zeros(0), np.zeros(len(numbers.rows))
    found = solvers[solver](numbers, costs) if len(costs) else empty
    assert found is not None
    z, duals = found
    bound = float(times_power(_dual_value(numbers, costs, duals), -exponent))
    sizes = [cost.numel() for cost in problem.tensors]
    parts = torch.split(torch.from_numpy(-np.asarray(z, dtype=np.float64)), sizes)
    rounding = [part.view(cost.shape) for part, cost in zip(parts, problem.tensors, strict=True)]
    least, most = problem.least, problem.most
    if problem.groups is None and (least is not None or most is not None):
        least, most = _neighbours(problem, rounding)
    again = Selection(rounding, problem.keep, problem.groups, least, most)
    masks = [mask.to(problem.tensors[0].device) for mask in optimal_masks(again)]
    kept = torch.cat([mask.flatten() for mask in masks]).cpu().numpy()
    above = math.fsum(numbers.costs[kept]) - bound
    # Costs that are all zero have no magnitude of their own, but the solver's duals have its tolerance.
    met = above <= _TOLERANCE * float(times_power(max(np.abs(costs).sum(), 1.0), -exponent))
    objective = objective_of(problem.tensors, masks)
    gap = max(above, 0.0)
    seconds = time.perf_counter() - start
    return Solution(masks, objective, objective - gap, gap, "optimal" if met else "feasible", seconds)


def _neighbours(problem: Selection, negated: list[torch.Tensor]) -> tuple[list[int], list[int]]:
    """Bounds on each tensor's count: the integers around the count that the relaxation gives it.

    Where several masks are optimal, entries kept in part say nothing across tensors; their sums do.
    """
    _, low, high = problem.limits()
    counts = [-float(part.sum()) for part in negated]
    near = 1e-6 * max(1.0, max(counts))
    least = [
        min(max(math.floor(count + near), lower), upper) for count, lower, upper in zip(counts, low, high, strict=True)
    ]
    most = [
        max(min(math.ceil(count - near), upper), lower) for count, lower, upper in zip(counts, low, high, strict=True)
    ]
    return least, [max(pair) for pair in zip(least, most, strict=True)]


def _priced(numbers: Program, items: Items, solver: Any, start: float) -> Solution:
    """With budgets: prices, bound and mask from the relaxation's dual solution."""
    costs, exponent = near_one(numbers.costs)
    found = solver(numbers, costs) if len(costs) else (np.zeros(0), np.zeros(len(numbers.rows) + len(items.limits)))
    if found is None:
        return Solution([], math.inf, math.inf, math.inf, "infeasible", time.perf_counter() - start)
    duals = times_power(found[1], -exponent)
    prices = np.maximum(-duals[len(numbers.rows) :] / numbers.scale(), 0.0)
    nu = float(duals[0]) if numbers.rows else 0.0
    return priced_solution(numbers.problem, items, Prices(prices, nu, items.bound(prices, nu)), start, _TOLERANCE)


def _dual_value(numbers: Program, costs: Any, duals: Any) -> float:
    """The bound that multipliers of the rows give: each entry takes the better of z = 0 and z = 1 at its price."""
    matrix, low, high = numbers.matrix()
    prices = costs - matrix.T @ duals
    return math.fsum([*np.minimum(prices, 0.0), *np.where(duals > 0, duals * low, duals * high)])


def _highs(numbers: Program, costs: Any) -> tuple[Any, Any] | None:
    from scipy import sparse
    from scipy.optimize import linprog

    matrix, low, high = numbers.matrix()
    limited = np.isfinite(low)
    # Of budgets, presolving compares all pairs of columns, which takes longer than to solve.
    options = {"bounds": (0, 1), "method": "highs-ds", "options": {"presolve": numbers.items is None}}
    rows = sparse.vstack([matrix, -matrix[limited]]).tocsr()
    solved = linprog(costs, rows, np.concatenate([high, -low[limited]]), **options)
    if solved.status == 2:
        return None
    if solved.x is None:
        raise RuntimeError(f"HiGHS did not solve the linear program: {solved.message}")
    duals = solved.ineqlin.marginals[: len(high)]
    duals[limited] -= solved.ineqlin.marginals[len(high) :]
    return solved.x, duals


def _cvxpy(numbers: Program, costs: Any) -> tuple[Any, Any] | None:
    cvxpy = load_cvxpy()
    z = cvxpy.Variable(len(costs))
    matrix, low, high = numbers.matrix()
    limited = np.isfinite(low)
    at_most = matrix @ z <= high
    at_least = [matrix[limited] @ z >= low[limited]] if limited.any() else []
    solved = cvxpy.Problem(cvxpy.Minimize(costs @ z), [z >= 0, z <= 1, at_most, *at_least])
    solved.solve(solver=cvxpy.CLARABEL)
    if solved.status == cvxpy.INFEASIBLE:
        return None
    if z.value is None:
        raise RuntimeError(f"Clarabel did not solve the linear program: {solved.status}")
    duals = -at_most.dual_value
    for constraint in at_least:
        duals[limited] += constraint.dual_value
    return z.value, duals
