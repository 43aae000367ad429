"""ADMM on what the Gram matrix of unseen tokens is likely to be: ALPS without what it fits to chance.

minimise tr (W - B) H (W - B)^T    subject to    B = D,    support(D) in S,    H = shrunk Gram matrix
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

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


class _Pace(NamedTuple):
    every: int
    num_steps: int
    refit_steps: int


_CAREFUL, _QUICK = _Pace(5, 44, 5), _Pace(4, 16, 2)


@dataclass(frozen=True)
class ShrunkADMM:
    """ADMM on a cross-validated Gram matrix, with few penalties, then conjugate gradients on the support.

    Where inputs are many for the tokens, the least error on the calibration tokens is not the least on others. The
    moments' folds say by how much the sample's eigenvalues are off (see `shrinkage`), so that no ridge is left to
    choose; with many tokens for the inputs hardly anything changes. What ADMM finds depends on how slowly rho passes
    the bulk of the eigenvalues, and little on what lies before and after: so rho goes from a share of their median to
    one of the geometric mean of median and mean. In real networks the median is anywhere between 0.03 and 0.5 of the
    mean: docs/theory/layerwise.md has what a fixed start costs there.
    Rows that are kept or pruned whole need no iteration: none can make up for another.
    rho: the first penalty in units of the median eigenvalue, > 0; last: the last one in units of the geometric mean of
    median and mean, > 0; in between it grows by the same factor after every `every` iterations. num_steps: iterations,
    at least 1; up to a quarter more where the last of them changes the support by more than `settled`, a share of what
    is kept. relaxation: over-relaxation, in [1, 2). refit_steps: of conjugate gradients, at least 0. None for every,
    num_steps and refit_steps: 5, 44 and 5, which take about as long as ALPS, or for weights of more than 2^20 entries
    4, 16 and 2, about half as long. splits: folds held out in turn, None for as many as take about a fifth as long as
    the iterations. damping: share of the mean diagonal, > 0; it only keeps dead inputs apart.
    """

    rho: float = 0.5
    last: float = 1.2
    every: int | None = None
    num_steps: int | None = None
    settled: float = 0.005
    relaxation: float = 1.3
    refit_steps: int | None = None
    splits: int | None = None
    damping: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("rho", "last", "damping"):
            if not getattr(self, name) > 0:
                raise ValueError(f"ShrunkADMM: {name} {getattr(self, name)}; it must be > 0.")
        if not self.settled >= 0:
            raise ValueError(f"ShrunkADMM: settled {self.settled}; it is a share of the kept entries, >= 0.")
        for name, least in (("num_steps", 1), ("every", 1), ("refit_steps", 0)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"ShrunkADMM: {name} {getattr(self, name)}; it is a number, at least {least}.")
        if not 1 <= self.relaxation < 2:
            raise ValueError(f"ShrunkADMM: relaxation {self.relaxation}; it must be in [1, 2).")
        if self.splits is not None and self.splits < 1:
            raise ValueError(f"ShrunkADMM: splits {self.splits}; it is a number of folds, at least 1, or None.")

    def prune(self, layer: Layer) -> Pruned:
        """ADMM, then the refit; the report says how many splits and iterations there were."""
        scale = damped_scale(layer.gram, self.damping)
        # What the squared scale holds above the sample's own diagonal is the damping.
        ridge = 1 - layer.gram.diagonal() / scale.square()
        pace = self._pace(layer.dense.numel())
        rows, columns = layer.dense.shape
        affordable = max(1, rows * pace.num_steps // (5 * _EIGH * columns))
        splits = min(self.splits or affordable, layer.moments.folds)
        eigen = shrunk_gram(layer.moments, scale, ridge, splits)
        problem = Scaled(eigen.matrix(), scale.float(), (layer.dense * scale).float())
        support = layer.support
        if isinstance(support, Grouped) and isinstance(support.groups, Rows):
            costs = ((problem.dense @ problem.hessian) * problem.dense).sum(1, keepdim=True).clamp_min(0)
            mask = support.select(costs.sqrt().expand_as(problem.dense))
            return Pruned(layer.dense * mask, mask, {"splits": splits, "num_steps": 0})
        mask, start, steps = self._search(problem.dense, eigen, support, pace)
        fitted = refit(problem, start, mask, pace.refit_steps)
        return Pruned(problem.unscaled(fitted, layer), mask, {"splits": splits, "num_steps": steps})

    def _pace(self, entries: int) -> _Pace:
        """That of a weight with so many entries, where the options do not say another."""
        given = {name: getattr(self, name) for name in _Pace._fields if getattr(self, name) is not None}
        return (_CAREFUL if entries <= _SMALL else _QUICK)._replace(**given)

    def _search(self, dense: Tensor, eigen: Eigen, support: Support, pace: _Pace) -> tuple[Tensor, Tensor, int]:
        """The mask, (rows, columns), the weights on it where ADMM ends, and the number of iterations."""
        allowed = support.within(dense.shape)
        median, mean = (max(float(value), self.damping) for value in (eigen.values.median(), eigen.values.mean()))
        rho, last = self.rho * median, self.last * math.sqrt(median * mean)
        growth = max(1.0, last / rho) ** (1 / max(1, (pace.num_steps - 1) // pace.every))
        ratio, inverse = 1.0, eigen.inverse(rho)
        # The point that the projection sees, B + dual / rho: its kept part is D, the rest is left as dual / rho.
        moved = dense.clone()
        mask = allowed.select(moved.abs())
        step = 1
        while step < 1.25 * pace.num_steps:
            # B = W + rho (D - dual / rho - W) (H + rho I)^-1, over-relaxed against D, and the rest added again.
            kept = moved * mask
            base = moved.sub_(kept).mul_(ratio).add_(dense)
            lacks = kept - base
            base.add_(kept.neg_().add_(dense), alpha=self.relaxation - 1)
            moved = torch.addmm(base, lacks, inverse, alpha=self.relaxation * rho)
            before, mask = mask, allowed.select(moved.abs())
            step += 1
            if step >= pace.num_steps and int((mask ^ before).sum()) <= self.settled * int(mask.sum()):
                break
            ratio = 1.0
            if step % pace.every == 1 % pace.every:
                # The dual stays what it is, so that dual / rho shrinks.
                ratio = 1 / growth
                rho *= growth
                inverse = eigen.inverse(rho)
        return mask, moved.mul_(mask), step
