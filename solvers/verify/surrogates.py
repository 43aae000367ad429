"""The four models of the loss that criteria minimise, on a block of n units: what they say of a mask, and their optima.

A unit is a part of a weight that is kept or pruned as a whole, one entry or several. Scaling unit i by 1 + t_i changes
the loss by a.t + t^T Q t / 2, a and Q being its gradient and curvature there. Pruning is t_i = -1, so that the pruned
set P costs

    linear      -sum_P a_i
    diagonal    -sum_P a_i + sum_P Q_ii / 2
    quadratic   -sum_P a_i + sum_PP Q_ij / 2
    refit       the smallest of a.t + t^T R t / 2 over all t with t_P = -1, R positive semidefinite.

For single entries w with gradient g and Hessian H: a = g w, Q = diag(w) H diag(w).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from argprune.solvers.ilp import Quadratic, Selection, solve, solve_quadratic
from argprune.solvers.ilp.quadratic import Floats, Indices

Kind = Literal["linear", "diagonal", "quadratic", "refit"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Units of which all masks are gone through.
ENUMERABLE = 20
# Pruned sets evaluated at a time.
_CHUNK = 1 << 13


@dataclass(frozen=True, eq=False)
class Optimum:
    """A surrogate's best mask (n,), its value, and a bound that no mask's value is below.

    status: "optimal" means proved, "feasible" that the time ran out before the proof.
    """

    mask: Tensor
    objective: float
    bound: float
    status: str


@dataclass(frozen=True, eq=False)
class Surrogates:
    """The four surrogates of a block, for masks with exactly `keep` ones.

    gradient: (n,), a. curvature: (n, n) symmetric, Q, may be indefinite. refit: (n, n), R. All finite; computed with in
    float64 on the CPU. Raises ValueError as `Quadratic` does.
    """

    gradient: Tensor
    curvature: Tensor
    refit: Tensor
    keep: int

    def __post_init__(self) -> None:
        for kind in ("quadratic", "refit"):
            self.problem(kind)

    @property
    def n(self) -> int:
        """Number of units."""
        return self.gradient.numel()

    def problem(self, kind: Kind) -> Quadratic:
        """A surrogate as a 0-1 quadratic program over units of weight 1."""
        curvature = {
            "linear": torch.zeros_like(self.curvature),
            "diagonal": torch.diag(self.curvature.diagonal()),
            "quadratic": self.curvature,
            "refit": self.refit,
        }[kind]
        return Quadratic(curvature, self.gradient, torch.ones_like(self.gradient), self.keep, refit=kind == "refit")

    def values(self, kind: Kind, masks: Tensor) -> Tensor:
        """(m,) float64: what a surrogate says of boolean masks (m, n), True = kept."""
        problem = self.problem(kind)
        pruned = _pruned(masks)
        parts = [problem.excess(pruned[start : start + _CHUNK]) for start in range(0, len(pruned), _CHUNK)]
        return torch.from_numpy(np.concatenate([np.zeros(0), *parts]) + problem.constant)

    def optimum(self, kind: Kind, time_limit: float = 60.0) -> Optimum:
        """A surrogate's exact optimum: closed form with a certificate, enumeration, or branch and bound.

        time_limit: seconds, for more than 20 units of the last two surrogates. Raises ImportError where more than 20
        units of the quadratic one miss OR-Tools.
        """
        problem = self.problem(kind)
        if kind in ("linear", "diagonal"):
            # Kept costs are minimised, and what is kept is what its pruning would have cost.
            solution = solve(Selection(torch.from_numpy(-problem.linear), keep=self.keep))
            value = float(self.values(kind, solution.masks[0][None])[0])
            return Optimum(solution.masks[0], value, value - solution.gap, solution.status)
        how: Literal["enumerate", "cp-sat", "branch-and-bound"] = "enumerate"
        if self.n > ENUMERABLE:
            how = "branch-and-bound" if kind == "refit" else "cp-sat"
        found = solve_quadratic(problem, how, time_limit)
        return Optimum(found.mask.cpu(), found.objective, found.bound, found.status)

    def with_gradient(self, gradient: Tensor) -> Surrogates:
        """The same curvature with another gradient (n,)."""
        return replace(self, gradient=gradient)


def all_masks(n: int, keep: int) -> Tensor:
    """(m, n): every boolean mask with `keep` ones, in lexicographic order of the pruned indices.

    >>> all_masks(3, 2).int().tolist()
    [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    """
    prune, count = n - keep, math.comb(n, keep)
    flat = itertools.chain.from_iterable(itertools.combinations(range(n), prune))
    pruned = np.fromiter(flat, dtype=np.int64, count=count * prune).reshape(count, prune)
    masks = torch.ones(count, n, dtype=torch.bool)
    return masks.scatter_(1, torch.from_numpy(pruned), False)


def _pruned(masks: Tensor) -> Indices:
    """(m, s): the pruned indices of masks that all keep the same number."""
    flat: Indices = (~masks).nonzero()[:, 1].numpy().astype(np.intp)
    return flat.reshape(len(masks), -1)


def rank_correlation(x: Floats | Tensor, y: Floats | Tensor) -> float | None:
    """Spearman's rank correlation of two lists, ties by their mean rank; None where one is constant or has no two.

    >>> round(rank_correlation(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([3.0, 1.0, 2.0])), 3)
    -0.5
    """
    from scipy.stats import rankdata

    a, b = (rankdata(np.asarray(values, dtype=np.float64)) for values in (x, y))
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size > 0 else None
