"""ADMM on what the Gram matrix of unseen tokens is likely to be: ALPS without what it fits to chance.

minimise tr (W - B) H (W - B)^T    subject to    B = D,    support(D) in S,    H = shrunk Gram matrix
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from argprune.solvers.admm.layer import Layer, Pruned
from argprune.solvers.admm.scaling import Eigen, Scaled, damped_scale, refit
from argprune.solvers.admm.shrinkage import shrunk_gram
from argprune.solvers.admm.supports import Grouped, Support
from argprune.solvers.groups import Rows

# An eigendecomposition takes about as long as a product of this many matrices of its size.
_EIGH = 12
# Entries of a weight that count as few.
_SMALL = 1 << 20


@dataclass(frozen=True)
class ShrunkADMM:
    """ADMM on a cross-validated Gram matrix, with few penalties, then conjugate gradients on the support.

    Where inputs are many for the tokens, the least error on the calibration tokens is not the least on others. The
    moments' folds say by how much the sample's eigenvalues are off (see `shrinkage`), so that no ridge is left to
    choose; with many tokens for the inputs hardly anything changes. What ADMM finds depends on how slowly rho passes
    the middle of the eigenvalues, about 0.2 to 0.7 in units of a unit diagonal, and little on what lies before: so few
    iterations, and fewer inverses, find about as good a support as ALPS's rule does.
    Rows that are kept or pruned whole need no iteration: none can make up for another.
    rho: the first penalty, > 0; growth: its factor after every `every` iterations, > 1. num_steps: iterations, at least
    1; up to four times as many where the last of them changes the support by more than `settled`, a share of what is
    kept. None for growth and num_steps: 1.5 and 16, or 1.15 and 36 for weights of up to 2^20 entries, which can afford
    to lose nothing at all against ALPS's pace. refit_steps: of conjugate gradients, at least 0. splits: folds held out
    in turn, None for as many as take about half as long as the iterations. damping: share of the mean diagonal, > 0; it
    only keeps dead inputs apart.
    """

    rho: float = 0.2
    growth: float | None = None
    every: int = 4
    num_steps: int | None = None
    settled: float = 0.005
    refit_steps: int = 2
    splits: int | None = None
    damping: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("rho", "damping"):
            if not getattr(self, name) > 0:
                raise ValueError(f"ShrunkADMM: {name} {getattr(self, name)}; it must be > 0.")
        if self.growth is not None and not self.growth > 1:
            raise ValueError(f"ShrunkADMM: growth {self.growth}; rho must rise, so it must be > 1.")
        if not self.settled >= 0:
            raise ValueError(f"ShrunkADMM: settled {self.settled}; it is a share of the kept entries, >= 0.")
        for name, least in (("num_steps", 1), ("every", 1), ("refit_steps", 0)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"ShrunkADMM: {name} {getattr(self, name)}; it is a number, at least {least}.")
        if self.splits is not None and self.splits < 1:
            raise ValueError(f"ShrunkADMM: splits {self.splits}; it is a number of folds, at least 1, or None.")

    def prune(self, layer: Layer) -> Pruned:
        """ADMM, then the refit; the report says how many splits and iterations there were."""
        scale = damped_scale(layer.gram, self.damping)
        # What the squared scale holds above the sample's own diagonal is the damping.
        ridge = 1 - layer.gram.diagonal() / scale.square()
        small = layer.dense.numel() <= _SMALL
        growth, num_steps = self.growth or (1.15 if small else 1.5), self.num_steps or (36 if small else 16)
        rows, columns = layer.dense.shape
        affordable = max(1, rows * num_steps // (2 * _EIGH * columns))
        splits = min(self.splits or affordable, layer.moments.folds)
        eigen = shrunk_gram(layer.moments, scale, ridge, splits)
        problem = Scaled(eigen.matrix(), scale.float(), (layer.dense * scale).float())
        support = layer.support
        if isinstance(support, Grouped) and isinstance(support.groups, Rows):
            costs = ((problem.dense @ problem.hessian) * problem.dense).sum(1, keepdim=True).clamp_min(0)
            mask = support.select(costs.sqrt().expand_as(problem.dense))
            return Pruned(layer.dense * mask, mask, {"splits": splits, "num_steps": 0})
        mask, start, steps = self._search(problem.dense, eigen, support, growth, num_steps)
        fitted = refit(problem, start, mask, self.refit_steps)
        return Pruned(problem.unscaled(fitted, layer), mask, {"splits": splits, "num_steps": steps})

    def _search(
        self, dense: Tensor, eigen: Eigen, support: Support, growth: float, num_steps: int
    ) -> tuple[Tensor, Tensor, int]:
        """The mask, (rows, columns), the weights on it where ADMM ends, and the number of iterations."""
        allowed = support.within(dense.shape)
        rho, ratio, inverse = self.rho, 1.0, eigen.inverse(self.rho)
        # The point that the projection sees, B + dual / rho: its kept part is D, the rest is left as dual / rho.
        moved = dense.clone()
        mask = allowed.select(moved.abs())
        step = 1
        while step < 4 * num_steps:
            # B = W + rho (D - dual / rho - W) (H + rho I)^-1, and the rest added again.
            base = moved.masked_fill(mask, 0).mul_(ratio).add_(dense)
            moved = torch.addmm(base, moved.mul_(mask).sub_(base), inverse, alpha=rho)
            before, mask = mask, allowed.select(moved.abs())
            step += 1
            if step >= num_steps and int((mask ^ before).sum()) <= self.settled * int(mask.sum()):
                break
            ratio = 1.0
            if step % self.every == 1 % self.every:
                # The dual stays what it is, so that dual / rho shrinks.
                ratio = 1 / growth
                rho *= growth
                inverse = eigen.inverse(rho)
        return mask, moved.mul_(mask), step
