"""Independent solvers of the prox problem: convex programs, certified 1-D global search, enumeration of supports.

Each oracle gives a lower bound on min_x R(x) + ||x - w||^2 / (2 step), from `value` or `expression` alone; none of
them calls `prox` for anything but the candidate that it judges.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Solved:
    """What a convex solver returned: minimiser, objective, and the solver's name."""

    x: Tensor
    objective: float
    solver: str


# Interior point first, then first order: they share no code and fail in different ways.
CONVEX_SOLVERS = ("CLARABEL", "SCS")


def convex_problem(operator: Any, w: Tensor, step: float) -> list[Solved]:
    """Solve the prox problem from `expression` (or `constraints`, for a set) with every solver of `CONVEX_SOLVERS`.

    Raises ImportError without cvxpy. A solver that gives up is left out.
    """
    import cvxpy

    x = cvxpy.Variable(w.shape)
    target = w.detach().double().numpy()
    objective = cvxpy.sum_squares(x - target) / (2 * step)
    if hasattr(operator, "constraints"):
        problem = cvxpy.Problem(cvxpy.Minimize(objective), operator.constraints(x))
    else:
        problem = cvxpy.Problem(cvxpy.Minimize(objective + operator.expression(x)))
    solved = []
    for solver in CONVEX_SOLVERS:
        options: dict[str, Any] = {"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iters": 20000} if solver == "SCS" else {}
        try:
            problem.solve(solver=solver, **options)  # type: ignore[no-untyped-call]
        except cvxpy.SolverError:
            continue
        if problem.status in ("optimal", "optimal_inaccurate") and x.value is not None:
            solved.append(Solved(torch.from_numpy(x.value.reshape(w.shape)), float(problem.value), solver))
    return solved


def conjugate_supremum(operator: Any, p: Tensor, gradient: Tensor, radius: float) -> float:
    """max_x <gradient, x> - R(x) over |x - p| <= radius entry by entry: equals its value at p iff gradient in dR(p)."""
    import cvxpy

    x = cvxpy.Variable(p.shape)
    centre = p.detach().double().numpy()
    gain = cvxpy.sum(cvxpy.multiply(gradient.detach().double().numpy(), x))
    constraints = [cvxpy.abs(x - centre) <= radius]
    if hasattr(operator, "constraints"):
        problem = cvxpy.Problem(cvxpy.Maximize(gain), constraints + operator.constraints(x))
    else:
        problem = cvxpy.Problem(cvxpy.Maximize(gain - operator.expression(x)), constraints)
    problem.solve(solver="CLARABEL")  # type: ignore[no-untyped-call]
    return float(problem.value)


Profile = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Bounds:
    """A certified 1-D search: for every pair, how much better than the candidate any point can be (0: proved optimal).

    better: the point of each pair with the lowest objective met; improvement: by how much it beats the candidate.
    resolved: whether every interval was closed within the limit.
    """

    better: Tensor
    improvement: Tensor
    resolved: bool


def scalar_search(
    profile: Profile, centre: Tensor, w: Tensor, step: float, candidate: Tensor, tolerance: Tensor, limit: int = 200_000
) -> Bounds:
    """Branch and bound for min_x r_i(x) + (x - w_i)^2 / (2 step), all pairs i together; float64, 1-D tensors.

    profile(index, x): r_index(x), elementwise. centre: r_i is nondecreasing to both sides of it. On [l, u], on one
    side, r_i at the end nearer to the centre plus the quadratic's minimum bounds the objective from below. Intervals
    whose bound exceeds the candidate's objective less the tolerance are closed; the others are halved.
    """

    def objective(index: Tensor, x: Tensor) -> Tensor:
        return profile(index, x) + (x - w[index]).square() / (2 * step)

    pairs = torch.arange(len(w))
    best_x, start = candidate.clone(), objective(pairs, candidate)
    best = start.clone()
    target = start - tolerance
    # No minimiser lies beyond w as seen from the centre, nor on the other side of the centre.
    low, high = torch.minimum(centre, w), torch.maximum(centre, w)
    grid = torch.linspace(0, 1, 65, dtype=torch.float64)
    edges = low[:, None] + (high - low)[:, None] * grid
    index = pairs.repeat_interleave(64)
    left, right = edges[:, :-1].flatten(), edges[:, 1:].flatten()
    spent = 0
    while len(index):
        spent += len(index)
        inner = torch.where(left >= centre[index], left, right)
        floor = profile(index, inner) + (w[index].clamp(left, right) - w[index]).square() / (2 * step)
        middle = (left + right) / 2
        at_middle = objective(index, middle)
        best = best.scatter_reduce(0, index, at_middle, "amin")
        hit = at_middle <= best[index]
        best_x[index[hit]] = middle[hit]
        open_ = (floor < target[index]) & (middle > left) & (middle < right) & (best[index] >= target[index])
        if spent > limit:
            return Bounds(best_x, start - best, not bool(open_.any()))
        index = index[open_].repeat(2)
        left, right = torch.cat([left[open_], middle[open_]]), torch.cat([middle[open_], right[open_]])
    return Bounds(best_x, start - best, True)


def best_support(operator: Any, w: Tensor) -> tuple[Tensor, int]:
    """The feasible restriction of w to a support that keeps most energy, over all 2^numel supports; and their number.

    For sets that are unions of coordinate subspaces, where the projection is such a restriction.
    """
    count = w.numel()
    masks = torch.tensor(list(itertools.product((False, True), repeat=count))).reshape(-1, *w.shape)
    energy = torch.where(masks, w.double().square(), 0).flatten(1).sum(1)
    for position in energy.argsort(descending=True).tolist():
        candidate = torch.where(masks[position], w, 0)
        if float(operator.value(candidate)) == 0:
            return candidate, len(masks)
    return torch.zeros_like(w), len(masks)
