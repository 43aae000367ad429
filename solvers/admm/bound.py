"""Lower bounds on the error of every weight of a layer's support, from the perspective relaxation.

In units in which H - c I is positive semidefinite, A = H - c I, each pruned w costs c w^2 whatever the rest does, and

    min over V in S of tr (W - V) H (W - V)^T  >=  tr E A (2 W - E)^T + c ||W||^2 - max over supports of sum over kept
                                                   entries of c (w + (E A) / c)^2                       for every E:

the part with A is convex and lies above its tangent at V = W - E, and what is left falls apart into entries, of which
the best support is known. Maximised over E this is the perspective relaxation, c v^2 / z with shares z in [0, 1] for
c v^2 and masks; ADMM on it finds a good E. Source: Dong, Chen, Linderoth (2015), "Regularization vs. relaxation".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from argprune.solvers.admm.layer import Layer, quadratic
from argprune.solvers.admm.supports import NM, Grouped, Support, Unstructured
from argprune.solvers.criteria.curvature import factorise

# What a bound is lowered by for the rounding of its own evaluation, relative to the terms it sums.
_SAFETY = 1e-11
# Halvings of the logarithm's range in which the level of the shares is looked for.
_HALVINGS = 40


def lower_bound(layer: Layer, num_steps: int = 40) -> float:
    """No weight of the layer's support has a smaller relative error on the calibration tokens than this, >= 0.

    num_steps: ADMM iterations on the relaxation; the best bound met on the way is returned. 0 where G is singular, as
    with fewer tokens than inputs or dead inputs: the relaxation then says nothing. All in float64: two products with G
    an iteration, one inverse and one eigendecomposition.
    """
    gram, dense = layer.gram.double(), layer.dense.double()
    total = quadratic(dense, gram)
    factor, sound = factorise(gram)
    if total == 0 or not bool(sound):
        return 0.0
    # Of the diagonals under H, the inverse's own is near the best by its shape; its size follows.
    scale = torch.cholesky_inverse(factor).diagonal().rsqrt()
    values, vectors = torch.linalg.eigh(gram / scale / scale[:, None])
    relaxation = _Relaxation(dense * scale, values, vectors, layer.support)
    return max(0.0, relaxation.solve(num_steps)) / total


class _Relaxation(NamedTuple):
    """dense: (rows, columns) W in units in which D = c I; values, vectors: the eigendecomposition of H in them."""

    dense: Tensor
    values: Tensor
    vectors: Tensor
    support: Support

    def solve(self, num_steps: int) -> float:
        """The best of the bounds at ADMM's points, and at E = 0."""
        c = float(self.values[0]) * (1 - 1e-9)
        rest = (self.values - c).clamp_min(0)
        straight = (self.vectors * rest) @ self.vectors.t()
        best = self._bound(torch.zeros_like(self.dense), straight, c)
        rho = float(rest.median()) + c
        inverse = (self.vectors / (rest + rho)) @ self.vectors.t()
        shares = _Shares(self.support, self.dense.shape)
        target = self.dense @ straight
        split, dual = self.dense * shares.even, torch.zeros_like(self.dense)
        for step in range(1, num_steps + 1):
            primal = (target + rho * (split - dual)) @ inverse
            point = c * self.dense + rho * (primal + dual)
            share = shares.fill(point.square(), c, rho)
            split = point * share / (c + rho * share)
            dual += primal - split
            if step % 5 == 0 or step == num_steps:
                best = max(best, self._bound(self.dense - primal, straight, c))
        return best

    def _bound(self, error: Tensor, straight: Tensor, c: float) -> float:
        """The formula at one E, less what its rounding may hide."""
        moved = error @ straight
        convex = float((moved * (2 * self.dense - error)).sum())
        alone = c * float(self.dense.square().sum())
        # sqrt(c) (w + (E A) / c), whose squares are what keeping an entry gains.
        gains = (c * self.dense + moved).abs() / c**0.5
        kept = float((gains * self.support.select(gains)).square().sum())
        return convex + alone - kept - _SAFETY * (abs(convex) + alone + kept)


class _Shares:
    """How kept shares z in [0, 1] are spread: over entries or groups of entries, so many of them in every cell."""

    def __init__(self, support: Support, shape: torch.Size) -> None:
        self._support, self._shape = support, shape
        kept = self._cells(support.select(torch.ones(shape)).double()).amax(2)
        self.even = float(kept.mean())
        self._keep = kept.sum(1, keepdim=True)

    def fill(self, squares: Tensor, c: float, rho: float) -> Tensor:
        """(rows, columns): shares that maximise the sum of squares z / (c + rho z), given so many in every cell."""
        cells = self._cells(squares)
        roots = (cells.sum(2) * c).sqrt()
        keep = self._keep.to(roots)
        # z = (root / level - c) / rho in [0, 1]; between these levels the sum passes from all kept to none.
        largest = roots.amax(1, keepdim=True).clamp_min(1e-300) / c
        low, high = largest.log() - 60, largest.log()
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            many = ((roots / middle.exp() - c) / rho).clamp(0, 1).sum(1, keepdim=True) > keep
            low, high = torch.where(many, middle, low), torch.where(many, high, middle)
        shares = ((roots / high.exp() - c) / rho).clamp(0, 1)
        return self._join(shares[:, :, None].expand(cells.shape))

    def _cells(self, w: Tensor) -> Tensor:
        """(cells, units, entries of a unit)."""
        if isinstance(self._support, Grouped):
            return self._support.groups.split(w)[None]
        assert isinstance(self._support, NM | Unstructured)
        if isinstance(self._support, NM):
            return w.reshape(-1, self._support.m, 1)
        return w.reshape(len(w) if self._support.scope == "row" else 1, -1, 1)

    def _join(self, cells: Tensor) -> Tensor:
        if isinstance(self._support, Grouped):
            return self._support.groups.join(cells[0], self._shape)
        return cells.reshape(self._shape)
