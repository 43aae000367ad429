"""ADMM on what the Gram matrix of unseen tokens is likely to be: ALPS without what it fits to chance.

    minimise tr (W - B) H (W - B)^T    subject to    B = D,    support(D) in S,    H = shrunk Gram matrix
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from argprune.solvers.admm.layer import Layer, Pruned
from argprune.solvers.admm.scaling import Scaled, refit
from argprune.solvers.admm.shrinkage import shrunk_gram

# An eigendecomposition takes about as long as a product of this many matrices of its size.
_EIGH = 12


@dataclass(frozen=True)
class ShrunkADMM:
    """ADMM with a geometric penalty on a cross-validated Gram matrix, then conjugate gradients on the support.

    Where inputs are many for the tokens, the least error on the calibration tokens is not the least on others. The
    moments' folds say by how much the sample's eigenvalues are off (see `shrinkage`); nothing is left to tune, and with
    many tokens for the inputs hardly anything changes. In units of a unit diagonal rho rises by `growth` an iteration,
    as slowly as ALPS's rule makes it rise, so that fewer iterations find as good a support; the inverse is renewed only
    every `every` iterations, as inverses of neighbouring rho are alike.
    rho: the first penalty, > 0; growth: > 1; num_steps, refit_steps: iterations, at least 1 and 0. splits: folds held
    out in turn, None for as many as take about half as long as the iterations. damping: share of the mean diagonal,
    > 0; it only keeps dead inputs apart.
    """

    rho: float = 0.1
    growth: float = 1.1
    num_steps: int = 26
    every: int = 4
    refit_steps: int = 4
    splits: int | None = None
    damping: float = 1e-4

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise ValueError(f"ShrunkADMM: rho {self.rho}; it must be > 0.")
        if not self.growth > 1:
            raise ValueError(f"ShrunkADMM: growth {self.growth}; rho must rise, so it must be > 1.")
        if not self.damping > 0:
            raise ValueError(f"ShrunkADMM: damping {self.damping}; it must be > 0.")
        for name, least in (("num_steps", 1), ("every", 1), ("refit_steps", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"ShrunkADMM: {name} {getattr(self, name)}; it is a number, at least {least}.")
        if self.splits is not None and self.splits < 1:
            raise ValueError(f"ShrunkADMM: splits {self.splits}; it is a number of folds, at least 1, or None.")

    def prune(self, layer: Layer) -> Pruned:
        """ADMM, then the refit; the report says how many splits there were and the error before the refit."""
        problem, splits = self.problem(layer)
        mask, start = self._search(problem, layer)
        fitted = refit(problem, start, mask, self.refit_steps)
        before = problem.unscaled(start, layer)
        return Pruned(problem.unscaled(fitted, layer), mask, {"splits": splits, "before_refit": layer.error(before)})

    def problem(self, layer: Layer) -> tuple[Scaled, int]:
        """The layer's problem with the shrunk Gram matrix, in float32, and how many splits it took."""
        plain = Scaled.of(layer.gram, layer.dense, self.damping, layer.moments.dtype)
        rows, columns = layer.dense.shape
        wanted = self.splits or max(1, rows * self.num_steps // (2 * _EIGH * columns))
        splits = min(wanted, layer.moments.folds)
        hessian = shrunk_gram(layer.moments, plain.scale, splits)
        # What the scale holds above the sample's own diagonal is the damping.
        hessian.diagonal().add_((1 - layer.gram.diagonal() / plain.scale.square()).float())
        return Scaled(hessian, plain.scale.float(), plain.dense.float()), splits

    def _search(self, problem: Scaled, layer: Layer) -> tuple[Tensor, Tensor]:
        """The mask, (rows, columns), and the weights on it where ADMM ends."""
        dense, allowed = problem.dense, layer.support.within(layer.dense.shape)
        rho, ratio, inverse = self.rho, 1.0, _inverse(problem.hessian, self.rho)
        # The point that the projection sees, B + dual / rho: its kept part is D, the rest is left as dual / rho.
        moved = dense.clone()
        mask = allowed.select(moved.abs())
        for step in range(1, self.num_steps):
            # B = W + rho (D - dual / rho - W) (H + rho I)^-1, and the rest added again.
            base = moved.masked_fill(mask, 0).mul_(ratio).add_(dense)
            moved = torch.addmm(base, moved.mul_(mask).sub_(base), inverse, alpha=rho)
            mask = allowed.select(moved.abs())
            ratio = 1.0
            if step % self.every == 0:
                # The dual stays what it is, so that dual / rho shrinks.
                ratio = self.growth**-self.every
                rho /= ratio
                inverse = _inverse(problem.hessian, rho)
        return mask, moved.mul_(mask)


def _inverse(hessian: Tensor, rho: float) -> Tensor:
    """(H + rho I)^-1."""
    shifted = hessian.clone()
    shifted.diagonal().add_(rho)
    return torch.cholesky_inverse(torch.linalg.cholesky(shifted))
