"""The 0-1 program of the second-order model of the loss: which n - k weights to set to 0, survivors fixed or refitted.

The loss changes by d to g^T d + 1/2 d^T H d. Without refit d is minus the pruned weights; with refit the survivors move
to where the model is smallest. Heuristics are here: greedy removal, and a search by exchanges.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Status = Literal["optimal", "feasible", "unknown"]

# Smallest eigenvalue of the Hessian scaled to a unit diagonal that refits are computed with.
SMALLEST_EIGENVALUE = 1e-8
# Of that scaled Hessian's largest eigenvalue, what may lie below 0: rounding of a float32 sum.
_ROUNDING = 1e-5
# 2-exchanges are searched through where there are at most so many of them.
_PAIRS = 1 << 21


@dataclass(frozen=True, eq=False)
class Quadratic:
    """min over masks m with exactly `keep` ones of g^T d + 1/2 d^T H d, where d_i = -w_i for every pruned i.

    hessian: (n, n) symmetric floating tensor H; gradient, weights: (n,), g and w; all on one device, finite, computed
    with in float64. keep: 0 <= keep <= n. refit=False: d = 0 at the kept weights, and H may be indefinite. refit=True:
    d is optimal at the kept weights, and H is positive semidefinite; where H, scaled to a unit diagonal, has an
    eigenvalue below 1e-8, `damping` times the diagonal is added (for a zero on the diagonal, its mean), which is part
    of the model solved then. Raises ValueError on shapes, counts, NaN, infinities, or an H that breaks these rules.
    Source: dossier paper-pins-sparsebert, section 7.

    >>> problem = Quadratic(torch.eye(3), torch.zeros(3), torch.tensor([1.0, 3.0, 2.0]), keep=2)
    >>> problem.value(torch.tensor([False, True, True]))
    0.5
    """

    hessian: Tensor
    gradient: Tensor
    weights: Tensor
    keep: int
    refit: bool = False

    def __post_init__(self) -> None:
        n = self.weights.numel()
        shapes = {"weights": (n,), "gradient": (n,), "hessian": (n, n)}
        for name, shape in shapes.items():
            tensor: Tensor = getattr(self, name)
            if tuple(tensor.shape) != shape:
                raise ValueError(f"Quadratic: {name} of shape {tuple(tensor.shape)}; for {n} weights give {shape}.")
            if not tensor.is_floating_point():
                raise ValueError(f"Quadratic: {name} of dtype {tensor.dtype}; give a floating dtype.")
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"Quadratic: {name} contains NaN or an infinity; every entry must be finite.")
        if isinstance(self.keep, bool) or not isinstance(self.keep, int) or not 0 <= self.keep <= n:
            raise ValueError(f"Quadratic: keep {self.keep} of {n} weights; need a whole number, 0 <= keep <= {n}.")
        h = _numpy(self.hessian)
        skew = float(np.abs(h - h.T).max(initial=0.0))
        if skew > _ROUNDING * np.abs(h).max(initial=0.0):
            raise ValueError(f"Quadratic: hessian differs from its transpose by {skew:g}; give a symmetric one.")
        if self.refit and n and self._lowest < -_ROUNDING * n:
            raise ValueError(f"Quadratic: hessian with eigenvalue {self._lowest:g} (unit diagonal); refit needs >= 0.")

    @property
    def n(self) -> int:
        """Number of weights."""
        return self.weights.numel()

    @property
    def prune(self) -> int:
        """Number of weights that a mask sets to 0."""
        return self.n - self.keep

    @cached_property
    def linear(self) -> Floats:
        """(n,): what pruning weight i alone costs without refit, -g_i w_i + H_ii w_i^2 / 2."""
        w = _numpy(self.weights)
        return -_numpy(self.gradient) * w + _numpy(self.hessian).diagonal() * w**2 / 2

    @cached_property
    def coupling(self) -> Floats:
        """(n, n), zero diagonal: what pruning i and j together costs beyond each alone without refit, w_i H_ij w_j."""
        w, h = _numpy(self.weights), _numpy(self.hessian)
        coupling: Floats = w[:, None] * (h + h.T) / 2 * w
        np.fill_diagonal(coupling, 0.0)
        return coupling

    @cached_property
    def scale(self) -> Floats:
        """(n,): square roots of the Hessian's diagonal, by which refits measure the weights."""
        diagonal = np.maximum(_numpy(self.hessian).diagonal(), 0.0)
        mean = float(diagonal.mean()) if self.n else 0.0
        return np.sqrt(np.where(diagonal > 0, diagonal, mean if mean > 0 else 1.0))

    @property
    def damping(self) -> float:
        """The share of its own diagonal added to the Hessian for refits: 0 unless it is singular."""
        return max(0.0, SMALLEST_EIGENVALUE - self._lowest) if self.n else 0.0

    @cached_property
    def _lowest(self) -> float:
        return float(np.linalg.eigvalsh(self._correlation)[0])

    @property
    def _correlation(self) -> Floats:
        h = _numpy(self.hessian)
        return (h + h.T) / 2 / self.scale[:, None] / self.scale

    @cached_property
    def scaled(self) -> Floats:
        """(n, n): the damped Hessian scaled to a unit diagonal, which refits are computed with."""
        return self._correlation + self.damping * np.eye(self.n)

    @cached_property
    def inverse(self) -> Floats:
        """(n, n): the inverse of `scaled`."""
        inverse = np.linalg.inv(self.scaled)
        symmetric: Floats = np.asarray(inverse + inverse.T, dtype=np.float64) / 2
        return symmetric

    @cached_property
    def target(self) -> Floats:
        """(n,): where the model without a constraint is smallest, w - H^-1 g, in units of 1 / scale."""
        return _numpy(self.weights) * self.scale - self.inverse @ (_numpy(self.gradient) / self.scale)

    @cached_property
    def constant(self) -> float:
        """The model's smallest value with refit and no weight pruned, -g^T H^-1 g / 2; 0 without refit."""
        g = _numpy(self.gradient) / self.scale
        return -float(g @ self.inverse @ g) / 2 if self.refit else 0.0

    def excess(self, pruned: Indices) -> Floats:
        """(b,): the model less `constant` for b pruned sets, (b, s) indices of any one size s; >= 0 with refit."""
        if self.refit:
            v = self.target[pruned]
            blocks = self.inverse[pruned[:, :, None], pruned[:, None, :]]
            values: Floats = (v * np.linalg.solve(blocks, v[..., None])[..., 0]).sum(1) / 2
            return values
        ones = np.zeros((len(pruned), self.n))
        np.put_along_axis(ones, pruned, 1.0, 1)
        plain: Floats = ones @ self.linear + ((ones @ self.coupling) * ones).sum(1) / 2
        return plain

    def value(self, mask: Tensor) -> float:
        """The model's value for a boolean mask (n,), True = kept, of exactly `keep` ones; else ValueError."""
        if tuple(mask.shape) != (self.n,) or mask.dtype != torch.bool:
            raise ValueError(f"mask of shape {tuple(mask.shape)} and {mask.dtype}; need ({self.n},) and torch.bool.")
        if int(mask.sum()) != self.keep:
            raise ValueError(f"mask keeps {int(mask.sum())} of {self.n} weights; this problem keeps {self.keep}.")
        return self.constant + float(self.excess((~mask.cpu().numpy()).nonzero()[0][None])[0])

    def mask(self, pruned: Indices) -> Tensor:
        """The boolean mask (True = kept) of a pruned set, on the weights' device."""
        mask = torch.ones(self.n, dtype=torch.bool)
        mask[torch.from_numpy(pruned)] = False
        return mask.to(self.weights.device)


@dataclass(frozen=True, eq=False)
class QuadraticSolution:
    """What a solver of `Quadratic` found and proved.

    mask: boolean (n,), True = kept. objective: its value. bound: no mask has a smaller value; -inf where nothing is
    known. gap: objective - bound. status: "optimal" where the gap is 0 up to the solver's stated tolerance, "feasible"
    for a mask without that proof, "unknown" where the time ran out before a mask (the mask is the greedy one then).
    seconds: wall clock. nodes: sets, branches or exchanges looked at, as the solver counts.
    """

    mask: Tensor
    objective: float
    bound: float
    gap: float
    status: Status
    seconds: float
    nodes: int


def greedy(problem: Quadratic) -> Indices:
    """The pruned set that grows by the cheapest next weight, survivors refitted each time with refit.

    O(n s) without refit, O(n^2 s) with it: a rank-one downdate of the inverse a weight. Ties go to the smaller index.
    Source: optimal brain surgeon; dossier, section 7 (OBC greedy).
    """
    pruned = np.zeros(problem.prune, dtype=np.intp)
    free = np.ones(problem.n, dtype=bool)
    cost, refit = problem.linear.copy(), problem.refit
    inverse, v = (problem.inverse.copy(), problem.target.copy()) if refit else (problem.coupling, cost)
    for step in range(problem.prune):
        if refit:
            cost = v**2 / np.where(free, inverse.diagonal(), 1.0)
        index = int(np.where(free, cost, np.inf).argmin())
        pruned[step], free[index] = index, False
        if refit:
            column = inverse[:, index] / inverse[index, index]
            v -= column * v[index]
            inverse -= np.outer(column, inverse[index])
        else:
            cost += problem.coupling[index]
    return pruned


def swaps(problem: Quadratic, pruned: Indices, *, pairs: bool = True) -> tuple[Indices, int]:
    """A pruned set, never worse, that no exchange of one weight (of two, where `pairs`) improves, and the exchanges.

    pruned: (s,) indices. 2-exchanges are left out where there are more than 2^21 of them. A step takes the best
    1-exchange, and only where none improves the best partner of the first pair that does; all are evaluated in closed
    form from one factorisation.
    """
    value, exchanges = float(problem.excess(pruned[None])[0]), 0
    moves = _moves(problem, pruned, pairs)
    while (move := next(moves, None)) is not None:
        candidate = np.sort(move)
        changed = float(problem.excess(candidate[None])[0])
        # A predicted gain that is rounding must not let the search run in circles.
        if changed < value - 1e-12 * abs(value):
            pruned, value, exchanges = candidate, changed, exchanges + 1
            moves = _moves(problem, pruned, pairs)
    return pruned, exchanges


def _moves(problem: Quadratic, pruned: Indices, pairs: bool) -> Iterator[Indices]:
    """The best single exchange of a pruned set, then for every pair of it the best exchange, if they gain."""
    kept = np.setdiff1d(np.arange(problem.n), pruned)
    s, k = len(pruned), len(kept)
    if s == 0 or k == 0:
        return
    change: Any = (_RefitChange if problem.refit else _PlainChange)(problem, pruned, kept)
    single = change.single()
    out, into = np.unravel_index(int(single.argmin()), single.shape)
    if single[out, into] < 0:
        yield np.append(np.delete(pruned, out), kept[into])
    if not pairs or s < 2 or k < 2 or s * (s - 1) * k * (k - 1) // 4 > _PAIRS:
        return
    first, second = np.triu_indices(k, 1)
    for a, b in itertools.combinations(range(s), 2):
        double = change.double(np.array([a, b]), first, second)
        best = int(double.argmin())
        if double[best] < 0:
            yield np.append(np.delete(pruned, [a, b]), kept[[first[best], second[best]]])


class _PlainChange:
    """What exchanges add to the value without refit."""

    def __init__(self, problem: Quadratic, pruned: Indices, kept: Indices) -> None:
        cost = problem.linear + problem.coupling[:, pruned].sum(1)
        self.out, self.into = cost[pruned], cost[kept]
        self.across = problem.coupling[np.ix_(pruned, kept)]
        self.within, self.among = problem.coupling[np.ix_(pruned, pruned)], problem.coupling[np.ix_(kept, kept)]

    def single(self) -> Floats:
        """Of every pruned weight for every kept one: (pruned, kept)."""
        changes: Floats = self.into - self.out[:, None] - self.across
        return changes

    def double(self, pair: Indices, first: Indices, second: Indices) -> Floats:
        """Of a pair of pruned weights for pairs of kept ones, first and second: (pairs,)."""
        alone = self.into - self.across[pair].sum(0)
        leave = self.out[pair].sum() - self.within[pair[0], pair[1]]
        changes: Floats = alone[first] + alone[second] + self.among[first, second] - leave
        return changes


class _RefitChange:
    """What exchanges add to the value with refit: a downdate of the pruned block's inverse, then an update."""

    def __init__(self, problem: Quadratic, pruned: Indices, kept: Indices) -> None:
        inverse, v = problem.inverse, problem.target
        self.block = np.asarray(np.linalg.inv(inverse[np.ix_(pruned, pruned)]), dtype=np.float64)
        self.dual = self.block @ v[pruned]
        across = inverse[np.ix_(pruned, kept)]
        self.carry = self.block @ across
        self.rest = v[kept] - across.T @ self.dual
        self.schur: Floats = inverse[np.ix_(kept, kept)] - across.T @ self.carry

    def single(self) -> Floats:
        """Of every pruned weight for every kept one: (pruned, kept)."""
        diagonal = self.block.diagonal()[:, None]
        rest = self.rest + self.dual[:, None] * self.carry / diagonal
        return (rest**2 / (self.schur.diagonal() + self.carry**2 / diagonal) - self.dual[:, None] ** 2 / diagonal) / 2

    def double(self, pair: Indices, first: Indices, second: Indices) -> Floats:
        """Of a pair of pruned weights for pairs of kept ones, first and second: (pairs,)."""
        small = np.linalg.inv(self.block[np.ix_(pair, pair)])
        carry = self.carry[pair]
        rest = self.rest + carry.T @ small @ self.dual[pair]
        cross = self.schur + carry.T @ small @ carry
        a, b, c = cross[first, first], cross[second, second], cross[first, second]
        x, y = rest[first], rest[second]
        gain = (b * x**2 - 2 * c * x * y + a * y**2) / np.maximum(a * b - c**2, 1e-300)
        changes: Floats = (gain - self.dual[pair] @ small @ self.dual[pair]) / 2
        return changes


def _numpy(tensor: Tensor) -> Floats:
    array: Floats = tensor.detach().double().cpu().numpy()
    return array
