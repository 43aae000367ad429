"""Lower bounds on the 0-1 quadratic program with refit: the perspective relaxation with an optimised split.

With refit a pruned set P costs v_P^T (M_PP)^-1 v_P / 2 more than none, M = H^-1. For a diagonal D > 0 with H - D >= 0,

    phi(z) = 1/2 v^T (M + Diag(z / (D (1 - z))))^-1 v

is convex in the share z kept (the perspective relaxation, its weights minimised out), and equal to that cost at 0-1
masks. A linear function below it, minimised over sum z = keep, is a bound for any z and D: both only need to be good.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from argprune.solvers.ilp.quadratic import Floats, Indices, Quadratic, greedy, swaps

Mask = NDArray[np.bool_]

# Shares stay this far inside (0, 1): at the ends the slopes of phi lose all digits.
_LOW, _HIGH = 1e-4, 1 - 1e-6
# What a bound is lowered by for the rounding of its own evaluation: relative to it, and to the terms it sums.
_SAFETY, _TERMS = 1e-9, 1e-12
# Of the largest trial step that provably keeps H - D positive definite.
_DAMPED = 0.9


class Nodes(NamedTuple):
    """A batch of subproblems over their own free weights, padded to one width f; `real` marks what is no padding.

    inverse: (b, f, f) M, padding 1; target: (b, f) v, padding 0; base: (b,) cost of what is pruned already;
    keep: (b,) how many of the free weights to keep.
    """

    inverse: Floats
    target: Floats
    base: Floats
    keep: Indices
    real: Mask


class Relaxed(NamedTuple):
    """Bounds of a batch: bound (b,); gains (b, f), the slopes -dphi/dz it was read off; split D and share z (b, f)."""

    bound: Floats
    gains: Floats
    split: Floats
    share: Floats


def relax(nodes: Nodes, split: Floats, share: Floats, target: float, steps: int, pull: float = 0.1) -> Relaxed:
    """The best of `steps` bounds, the first at the given split and share, while both are improved in turn.

    split, share: (b, f), D with D > 0 and H - D > 0 (a row that fails this takes one that does not) and any shares.
    target: a value the bounds need to reach; how far they are from it sets the barrier. The split ascends by Newton
    steps on bound + barrier (log det (H - D) + sum log D), damped so as to stay inside and checked by a Cholesky
    factorisation; the shares descend by exact minimisation for given weights.
    """
    share = np.clip(share, _LOW, _HIGH)
    split = np.where(_inside(nodes.inverse, split)[:, None], split, _dominant(nodes.inverse))
    best, response = _evaluate(nodes, split, share)
    for _ in range(steps - 1):
        split = _ascend(nodes, split, response, pull * np.maximum(target - best.bound, 1e-6 * target))
        share = _fill(np.where(nodes.real, np.sqrt(split) * np.abs(response.weights), 0.0), nodes.keep)
        trial, response = _evaluate(nodes, split, share)
        better = trial.bound > best.bound
        best = Relaxed(
            np.where(better, trial.bound, best.bound),
            *(np.where(better[:, None], new, old) for new, old in zip(trial[1:], best[1:], strict=True)),
        )
    return best


class _Response(NamedTuple):
    """What the relaxation answers to a split and shares: weights u (b, f); 1 / z - 1; (H + D (1 / z - 1))^-1."""

    weights: Floats
    ratio: Floats
    across: Floats


def _evaluate(nodes: Nodes, split: Floats, share: Floats) -> tuple[Relaxed, _Response]:
    """The bounds that a split, taken as feasible, and shares give."""
    b, f = split.shape
    delta = share / (split * (1 - share))
    solved = np.linalg.inv(nodes.inverse + delta[:, :, None] * np.eye(f))
    dual = (solved @ nodes.target[..., None])[..., 0]
    gains = np.where(nodes.real, dual**2 / (2 * split * (1 - share) ** 2), 0.0)
    value = nodes.base + (nodes.target * dual).sum(1) / 2
    kept, largest = (gains * share).sum(1), _largest(gains)[np.arange(b), nodes.keep]
    bound = value + kept - largest
    across = delta[:, :, None] * np.eye(f) - delta[:, :, None] * solved * delta[:, None, :]
    safe = bound - _SAFETY * np.abs(bound) - _TERMS * (value + kept + largest)
    safe = np.where(np.isnan(safe), -np.inf, safe)
    return Relaxed(safe, gains, split, share), _Response(delta * dual, 1 / share - 1, across)


def _largest(gains: Floats) -> Floats:
    """(b, f + 1): sums of the 0, 1, 2, ... largest."""
    sums: Floats = np.cumsum(-np.sort(-gains, 1), 1)
    return np.concatenate([np.zeros((len(gains), 1)), sums], 1)


def _inside(inverse: Floats, split: Floats) -> Mask:
    """(b,): whether D > 0 and H - D > 0, read off 1 - sqrt(D) M sqrt(D) > 0, with room for that test's rounding."""
    size = split.shape[1]
    positive: Mask = np.asarray(((split > 0) & np.isfinite(split)).all(axis=1))
    root = np.sqrt(np.where(positive[:, None], split, 0.0))
    try:
        np.linalg.cholesky((1 - 1e-12) * np.eye(size) - root[:, :, None] * inverse * root[:, None, :])
    except np.linalg.LinAlgError:
        if len(split) == 1:
            return np.zeros(1, dtype=bool)
        half = len(split) // 2
        return np.concatenate([_inside(inverse[:half], split[:half]), _inside(inverse[half:], split[half:])])
    return positive


def _dominant(inverse: Floats) -> Floats:
    """(b, f): a split that is feasible by diagonal dominance of 1 / D - M; the best of all where M is diagonal."""
    rows: Floats = np.abs(inverse).sum(2)
    return 1 / (rows * (1 + 1e-9))


def _ascend(nodes: Nodes, split: Floats, response: _Response, distance: Floats) -> Floats:
    """One damped Newton step of the split for fixed shares; rows that would leave the feasible set stay."""
    f = split.shape[1]
    weights, ratio, across = response
    diagonal = np.arange(f)
    barrier = (distance / f)[:, None]
    # (H - D)^-1 by M alone, H being what is worse conditioned in a node.
    root = np.sqrt(split)
    solved = np.linalg.inv(np.eye(f) - root[:, :, None] * nodes.inverse * root[:, None, :]) - np.eye(f)
    inverse = solved / root[:, :, None] / root[:, None, :]
    slope = weights**2 * ratio / (2 * barrier) - inverse[:, diagonal, diagonal] + 1 / split
    metric = inverse**2
    metric[:, diagonal, diagonal] += 1 / split**2
    moved = weights * ratio
    curvature = metric + moved[:, :, None] * across * moved[:, None, :] / barrier[..., None]
    direction = np.where(nodes.real, np.linalg.solve(curvature, slope[..., None])[..., 0], 0.0)
    # Steps of less than 1 in the barrier's own metric cannot leave the feasible set (self-concordance).
    length = np.sqrt(np.maximum((direction * (metric @ direction[..., None])[..., 0]).sum(1), 1e-300))
    trial = split + direction * np.minimum(1, _DAMPED / length)[:, None]
    return np.where(_inside(nodes.inverse, trial)[:, None], trial, split)


def _fill(sizes: Floats, keep: Indices) -> Floats:
    """Shares min(1, size / level) with sum `keep`, up to rounding off the ends: z that minimise sum size^2 / z."""
    ordered = -np.sort(-sizes, 1)
    left = keep[:, None] - np.arange(sizes.shape[1])
    level = np.where(left > 0, np.cumsum(ordered[:, ::-1], 1)[:, ::-1] / np.maximum(left, 1), np.inf)
    first = ((ordered <= level) & (left > 0)).argmax(1)
    level = np.maximum(level[np.arange(len(sizes)), first], 1e-300)
    shares: Floats = np.clip(sizes / level[:, None], _LOW, _HIGH)
    return shares


def root(problem: Quadratic, target: float, rounds: int = 6, steps: int = 40) -> Relaxed:
    """The bound of the whole problem with refit (less its constant), split optimised from scratch.

    target: the value of a mask, less the constant. Rounds of `steps` steps with a smaller and smaller barrier go on
    while they gain. Two splits to start from: the smallest eigenvalue, and diagonal dominance, exact for diagonal H.
    """
    n, nodes = problem.n, single_node(problem)
    share = np.full((1, n), problem.keep / n)
    smallest = np.full((1, n), 0.9 / float(np.linalg.eigvalsh(problem.inverse)[-1]))
    best = relax(nodes, _dominant(nodes.inverse), share, target, 1)
    if best.bound[0] >= target * (1 - 1e-8):
        return best
    found = relax(nodes, smallest, share, target, 2 * steps, pull=0.3)
    pull = 0.1
    for _ in range(rounds):
        before = found.bound[0]
        found = relax(nodes, found.split, found.share, target, steps, pull)
        if found.bound[0] >= target * (1 - 1e-8) or found.bound[0] - before < 1e-4 * abs(target):
            break
        pull /= 3
    return max(best, found, key=lambda result: float(result.bound[0]))


def perspective_bound(
    problem: Quadratic, how: Literal["ascent", "cvxpy"] = "ascent", split: ArrayLike | None = None
) -> float:
    """A lower bound on the value of every mask, for a problem with refit, from the perspective relaxation.

    how="ascent": this module's, the split D optimised too; 0.1 s for n = 40. how="cvxpy": Clarabel's shares for a
    given split: (n,) in units of H's unit-diagonal scaling, H - D >= 0; by default the smallest eigenvalue, which is
    weak. The bound is evaluated here, so that it holds whatever the solver's tolerance. Raises ValueError without refit
    or for another split, ImportError without cvxpy, RuntimeError where the solver fails. Source: dossier, section 7;
    Dong, Chen, Linderoth (2015), "Regularization vs. relaxation: a conic optimization perspective".
    """
    if not problem.refit:
        raise ValueError("perspective_bound: refit=False; the relaxation is that of refit=True. Take sdp_bound.")
    if how not in ("ascent", "cvxpy"):
        raise ValueError(f"perspective_bound: how {how!r}; need 'ascent' or 'cvxpy'.")
    if (trivial := only_value(problem)) is not None:
        return trivial
    size = float(problem.excess(swaps(problem, greedy(problem), pairs=False)[0][None])[0])
    if how == "ascent" or size <= 0:
        return problem.constant + max(0.0, float(root(problem, size).bound[0]) if size > 0 else 0.0)
    d = np.full(problem.n, float(np.linalg.eigvalsh(problem.scaled)[0])) if split is None else np.asarray(split, float)
    lowest = float(np.linalg.eigvalsh(problem.scaled - np.diag(d))[0]) if d.shape == (problem.n,) else -np.inf
    if lowest < -1e-9 or (d < 0).any():
        raise ValueError(f"perspective_bound: split {d} leaves eigenvalue {lowest:g}; need D >= 0, H - D >= 0.")
    cvxpy = load_cvxpy()
    u, z = cvxpy.Variable(problem.n), cvxpy.Variable(problem.n)
    rest = np.linalg.cholesky(problem.scaled - np.diag(d) + max(0.0, 1e-12 - lowest) * np.eye(problem.n))
    terms = cvxpy.sum(cvxpy.hstack([d[i] * cvxpy.quad_over_lin(u[i], z[i]) for i in range(problem.n)]))
    # In units in which that mask's value is 1.
    target = problem.target / np.sqrt(size)
    straight = problem.scaled @ target
    value = (cvxpy.sum_squares(rest.T @ u) + terms) / 2 - straight @ u + target @ straight / 2
    constraints = [z >= 0, z <= 1, cvxpy.sum(z) == problem.keep]
    program = cvxpy.Problem(cvxpy.Minimize(value), constraints)
    try:
        program.solve(solver=cvxpy.CLARABEL)
    except cvxpy.SolverError as error:
        raise RuntimeError("Clarabel failed; no bound. Take how='ascent', or damp the Hessian.") from error
    if z.value is None:
        raise RuntimeError(f"Clarabel ended with {program.status}; no bound. Take how='ascent', or damp the Hessian.")
    found = relax(single_node(problem), d[None] * (1 - 1e-9), z.value[None], size, 1)
    return problem.constant + max(0.0, float(found.bound[0]))


def single_node(problem: Quadratic) -> Nodes:
    """The whole problem, as a batch of one."""
    real = np.ones((1, problem.n), dtype=bool)
    return Nodes(problem.inverse[None], problem.target[None], np.zeros(1), np.array([problem.keep]), real)


def only_value(problem: Quadratic) -> float | None:
    """The value where there is one mask only."""
    if problem.keep not in (0, problem.n):
        return None
    return problem.constant + float(problem.excess(np.arange(problem.prune)[None])[0])


def load_cvxpy() -> Any:
    """The cvxpy module. Raises ImportError that names the extra to install."""
    try:
        import cvxpy
    except ImportError as error:
        raise ImportError("SDP and perspective bounds need cvxpy: pip install 'argprune[exact]'.") from error
    return cvxpy
