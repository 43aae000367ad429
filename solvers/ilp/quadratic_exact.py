"""Solvers of the 0-1 quadratic program: enumeration, CP-SAT on linearised products, and one door to all of them."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any, Literal, get_args

import numpy as np

from argprune.solvers.ilp.quadratic import Indices, Quadratic, QuadraticSolution, Status, greedy, swaps
from argprune.solvers.ilp.quadratic_branch import search

How = Literal["enumerate", "cp-sat", "branch-and-bound", "greedy", "swaps"]

# Sets that enumeration accepts, and evaluates at a time.
_SETS = 1 << 20
_CHUNK = 1 << 13
# CP-SAT's objective in whole numbers: the largest coefficient becomes about this.
_UNITS = 1 << 30


def solve_quadratic(problem: Quadratic, how: How = "swaps", time_limit: float = 60.0) -> QuadraticSolution:
    """The mask that a method (`how`) finds, with what it proves.

    "enumerate": every mask, at most 2^20 of them. "cp-sat": OR-Tools on linearised products, without refit only, one
    thread; "optimal" up to the rounding of the costs to whole numbers, which the bound allows for. "branch-and-bound":
    our own, with refit only; "optimal" up to 1e-7 of the part that pruning costs. "greedy" and "swaps" (greedy, then
    1- and 2-exchanges) prove nothing; their bound is the refit's constant, -inf without refit.
    time_limit: seconds, > 0, for the three exact methods. Raises ValueError for a method that does not fit the problem,
    ImportError where "cp-sat" misses OR-Tools.

    >>> import torch
    >>> problem = Quadratic(torch.eye(3), torch.zeros(3), torch.tensor([1.0, 3.0, 2.0]), keep=2, refit=True)
    >>> solve_quadratic(problem, "branch-and-bound").mask
    tensor([False,  True,  True])
    """
    if how not in get_args(How):
        raise ValueError(f"solve_quadratic: how {how!r}; need one of {', '.join(get_args(How))}.")
    if not time_limit > 0:
        raise ValueError(f"solve_quadratic: time_limit {time_limit}; it must be > 0 seconds.")
    if how == "cp-sat" and problem.refit:
        raise ValueError("solve_quadratic: 'cp-sat' has no refit; take 'branch-and-bound' or refit=False.")
    if how == "branch-and-bound" and not problem.refit:
        raise ValueError("solve_quadratic: 'branch-and-bound' is for refit=True; take 'cp-sat' or 'enumerate'.")
    start = time.perf_counter()
    status: Status = "feasible"
    bound = problem.constant if problem.refit else -math.inf
    if how == "enumerate":
        pruned, nodes, done = _enumerated(problem, start + time_limit)
        status = "optimal" if done else "feasible"
    elif how == "cp-sat":
        pruned, bound, nodes, status = _cp_sat(problem, time_limit)
    elif how == "branch-and-bound":
        found = search(problem, start + time_limit)
        pruned, nodes, bound = found.pruned, found.nodes, problem.constant + found.bound
        # One comparison with the search's own numbers: adding the constant may round.
        status = "optimal" if found.bound >= found.excess * (1 - 2e-7) else "feasible"
    else:
        pruned, nodes = greedy(problem), problem.prune
        if how == "swaps":
            pruned, nodes = swaps(problem, pruned)
    mask = problem.mask(np.sort(pruned))
    objective = problem.value(mask)
    if how == "enumerate" and status == "optimal":
        bound = objective
    return QuadraticSolution(
        mask=mask,
        objective=objective,
        bound=min(bound, objective),
        gap=max(0.0, objective - bound),
        status=status,
        seconds=time.perf_counter() - start,
        nodes=nodes,
    )


def _enumerated(problem: Quadratic, deadline: float) -> tuple[Indices, int, bool]:
    """The best set, the first in lexicographic order of the pruned indices among equals; how many were seen; if all."""
    total = math.comb(problem.n, problem.prune)
    if total > _SETS:
        raise ValueError(
            f"solve_quadratic: {total} masks to enumerate, at most {_SETS}; take 'branch-and-bound' or 'cp-sat'."
        )
    sets = itertools.combinations(range(problem.n), problem.prune)
    best, least, seen = greedy(problem), math.inf, 0
    while seen < total and time.perf_counter() < deadline:
        count = min(_CHUNK, total - seen)
        flat = itertools.chain.from_iterable(itertools.islice(sets, count))
        chunk = np.fromiter(flat, dtype=np.intp, count=count * problem.prune).reshape(count, problem.prune)
        values = problem.excess(chunk)
        index = int(values.argmin())
        if values[index] < least:
            best, least = chunk[index], float(values[index])
        seen += count
    return best, seen, seen == total


def _cp_sat(problem: Quadratic, time_limit: float) -> tuple[Indices, float, int, Status]:
    """z_i = pruned, y_ij = z_i z_j: the best set found, a bound that allows for rounding, branches, status."""
    cp_model = _load_cp_sat()
    n, s = problem.n, problem.prune
    first, second = np.triu_indices(n, 1)
    pairs = problem.coupling[first, second]
    largest = max(float(np.abs(problem.linear).max(initial=0.0)), float(np.abs(pairs).max(initial=0.0)))
    unit = largest / _UNITS if largest > 0 else 1.0
    singles, couples = np.rint(problem.linear / unit).astype(int), np.rint(pairs / unit).astype(int)
    model = cp_model.CpModel()
    z = [model.new_bool_var(f"z{i}") for i in range(n)]
    model.add(sum(z) == s)
    cost = sum(int(c) * variable for c, variable in zip(singles, z, strict=True))
    for i, j, c in zip(first.tolist(), second.tolist(), couples.tolist(), strict=True):
        if c == 0:
            continue
        y = model.new_bool_var(f"y{i},{j}")
        if c > 0:
            model.add_bool_or([y, ~z[i], ~z[j]])
        else:
            model.add_implication(y, z[i])
            model.add_implication(y, z[j])
        cost += c * y
    model.minimize(cost)
    start = swaps(problem, greedy(problem))[0]
    for i in range(n):
        model.add_hint(z[i], int(i in start))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = time_limit
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    code = solver.solve(model)
    # Each of the s single and s (s - 1) / 2 pair costs of a set is off by half a unit at most.
    hidden = unit * (s + s * (s - 1) / 2) / 2
    if code not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return start, -math.inf, solver.num_branches, "unknown"
    found = np.array([i for i in range(n) if solver.value(z[i])], dtype=np.intp)
    # The start may be better than the rounded costs' optimum, by what rounding hides.
    pruned = min(found, start, key=lambda candidate: float(problem.excess(candidate[None])[0]))
    bound = math.floor(solver.best_objective_bound + 0.5) * unit - hidden
    return pruned, bound, solver.num_branches, "optimal" if code == cp_model.OPTIMAL else "feasible"


def _load_cp_sat() -> Any:
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise ImportError("'cp-sat' needs OR-Tools: pip install 'argprune[exact]'.") from error
    return cp_model
