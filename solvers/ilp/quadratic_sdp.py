"""Semidefinite lower bounds on the 0-1 quadratic program, certified: what a solver's dual proves, not what it reports.

A semidefinite solver stops within tolerances, and its value may lie above the optimum. Any multipliers give a bound
though, once their own infeasibility is charged; the bounds here are evaluated from the solver's multipliers in NumPy.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from argprune.solvers.ilp.quadratic import Floats, Quadratic, greedy, swaps
from argprune.solvers.ilp.quadratic_bounds import load_cvxpy, only_value, relax, root, single_node

# What an eigenvalue may be off by, relative to the largest.
_EIGENVALUE = 1e-13


def sdp_bound(problem: Quadratic) -> float:
    """A lower bound on the value of every mask from a semidefinite relaxation (cvxpy with Clarabel).

    With refit: weights lifted to U >= u u^T with the cones z_i U_ii >= u_i^2, the perspective bound with the best
    split of all. Without: pruned sets lifted to Z >= z z^T, row sums sum_j Z_ij = s z_i, Z_ii = z_i, Z_ij >= 0.
    Seconds for n = 40. Raises ImportError without cvxpy, RuntimeError where the solver returns no multipliers.
    Source: dossier, section 7; with refit Dong, Chen, Linderoth (2015), "Regularization vs. relaxation".
    """
    value = only_value(problem)
    if value is not None:
        return value
    return problem.constant + (_with_refit(problem) if problem.refit else _without_refit(problem))


def _with_refit(problem: Quadratic) -> float:
    """The perspective bound at the split that the programme's dual holds, D = diag(H - 2 dual), or the ascent's."""
    cvxpy, n = load_cvxpy(), problem.n
    lifted, z = cvxpy.Variable((n + 1, n + 1), symmetric=True), cvxpy.Variable(n)
    weights, diagonal = lifted[0, 1:], cvxpy.diag(lifted)[1:]
    # In units in which the optimum is about 1.
    size = max(float(problem.excess(swaps(problem, greedy(problem), pairs=False)[0][None])[0]), 1e-300)
    target = problem.target / np.sqrt(size)
    straight = problem.scaled @ target
    objective = cvxpy.trace(problem.scaled @ lifted[1:, 1:]) / 2 - straight @ weights + target @ straight / 2
    cones = cvxpy.SOC(z + diagonal, cvxpy.vstack([2 * weights, z - diagonal]), axis=0)
    semidefinite = lifted >> 0
    constraints = [semidefinite, lifted[0, 0] == 1, cones, z <= 1, cvxpy.sum(z) == problem.keep]
    _solve(cvxpy, objective, constraints)
    dual = np.asarray(semidefinite.dual_value)[1:, 1:]
    split = np.maximum(problem.scaled.diagonal() - 2 * dual.diagonal(), 1e-12)
    # The largest multiple of this split that leaves H - D > 0.
    half = np.sqrt(split)
    split *= (1 - 1e-9) / max(float(np.linalg.eigvalsh(half[:, None] * problem.inverse * half)[-1]), 1e-300)
    share = np.asarray(z.value)[None]
    # The steps find the shares that belong to this split, and may improve it by what the solver left.
    found = relax(single_node(problem), split[None], share, size, 30, 0.01)
    return max(0.0, float(found.bound[0]), float(root(problem, size).bound[0]))


def _without_refit(problem: Quadratic) -> float:
    """The bound that the multipliers of the lifted programme prove."""
    cvxpy, n, s = load_cvxpy(), problem.n, problem.prune
    size = max(float(np.abs(problem.coupling).max()), float(np.abs(problem.linear).max()), 1e-300)
    cost = np.zeros((n + 1, n + 1))
    cost[0, 1:] = cost[1:, 0] = problem.linear / 2 / size
    cost[1:, 1:] = problem.coupling / 2 / size
    lifted = cvxpy.Variable((n + 1, n + 1), symmetric=True)
    z, matrix = lifted[0, 1:], lifted[1:, 1:]
    rows, diagonal = cvxpy.sum(matrix, axis=1) == s * z, cvxpy.diag(matrix) == z
    signs, total = matrix >= 0, cvxpy.sum(z) == s
    objective = cvxpy.trace(cost @ lifted)
    _solve(cvxpy, objective, [lifted >> 0, lifted[0, 0] == 1, rows, diagonal, signs, total])
    best = -np.inf
    # Which sign a solver gives an equality's multiplier is a convention; either gives a bound.
    for sign in (1.0, -1.0):
        row, single, one = (sign * np.asarray(part.dual_value) for part in (rows, diagonal, total))
        weight = np.maximum((signs.dual_value + np.transpose(signs.dual_value)) / 2, 0.0)
        lagrangian = cost.copy()
        lagrangian[1:, 1:] += (row[:, None] + row) / 2 + np.diag(single) - weight
        lagrangian[0, 1:] += (one - s * row - single) / 2
        lagrangian[1:, 0] = lagrangian[0, 1:]
        best = max(best, _least(lagrangian, 1.0 + s) - float(one) * s)
    return best * size


def _least(matrix: Floats, trace: float) -> float:
    """A lower bound on <matrix, Y> over Y >= 0 with Y_00 = 1 and the given trace."""
    lower = -np.inf
    body = np.linalg.eigvalsh(matrix[1:, 1:])
    for shift in (0.0, 1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5):
        # The corner that makes the shifted matrix semidefinite, by its Schur complement; what is off is charged below.
        block = matrix[1:, 1:] + (shift + max(0.0, -float(body[0]))) * np.eye(len(matrix) - 1)
        corner = -float(matrix[0, 1:] @ np.linalg.lstsq(block, matrix[1:, 0], rcond=None)[0])
        moved = matrix.copy()
        moved[0, 0] -= corner
        values = np.linalg.eigvalsh(moved)
        missing = min(0.0, float(values[0])) - _EIGENVALUE * float(np.abs(values).max())
        lower = max(lower, corner + trace * missing)
    return lower


def _solve(cvxpy: Any, objective: Any, constraints: list[Any]) -> None:
    program = cvxpy.Problem(cvxpy.Minimize(objective), constraints)
    with warnings.catch_warnings():
        # That a solution may be inaccurate changes how good the bound is, not that it is one.
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        try:
            program.solve(solver=cvxpy.CLARABEL)
        except cvxpy.SolverError as error:
            raise RuntimeError("Clarabel failed; no bound. The Hessian is near singular: damp it.") from error
    if any(constraint.dual_value is None for constraint in constraints):
        raise RuntimeError(f"Clarabel ended with {program.status}; no bound. Damp the Hessian.")
