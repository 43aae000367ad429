"""The layer problem in units in which every input has the same second moment, damped, and its refit on a support.

With s_j the root of the damped diagonal, V' = V diag(s) and H = diag(s)^-1 (G + damping) diag(s)^-1, which has a unit
diagonal, tr (W - V) (G + damping) (W - V)^T = tr (W' - V') H (W' - V')^T: a ridge centred at the dense weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from argprune.solvers.admm.layer import Layer


@dataclass(frozen=True, eq=False)
class Scaled:
    """hessian: (columns, columns) H, positive semidefinite. scale: (columns,) s. dense: (rows, columns) W'."""

    hessian: Tensor
    scale: Tensor
    dense: Tensor

    @classmethod
    def of(cls, gram: Tensor, weight: Tensor, damping: float, dtype: torch.dtype) -> Scaled:
        """The problem of a Gram matrix with `damping` times its mean diagonal added to it, unit diagonal."""
        scale = damped_scale(gram, damping)
        hessian = gram / scale / scale[:, None]
        hessian.diagonal().fill_(1.0)
        return cls(hessian.to(dtype), scale.to(dtype), (weight * scale).to(dtype))

    def unscaled(self, weight: Tensor, layer: Layer) -> Tensor:
        """A V' as V, in the layer's own dtype."""
        return (weight / self.scale).to(layer.dense)


class Eigen(NamedTuple):
    """An eigendecomposition of a symmetric H: values (n,) in rising order, vectors (n, n) as columns."""

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, hessian: Tensor) -> Eigen:
        """That of a matrix, in its dtype."""
        values, vectors = torch.linalg.eigh(hessian)
        return cls(values, vectors)

    def matrix(self) -> Tensor:
        """H."""
        return torch.mm(self.vectors * self.values, self.vectors.t())

    def inverse(self, rho: float) -> Tensor:
        """(H + rho I)^-1."""
        return torch.mm(self.vectors / (self.values + rho), self.vectors.t())


def damped_scale(gram: Tensor, damping: float) -> Tensor:
    """(columns,) roots of the diagonal with `damping` times its mean added; the mean is over inputs that are not dead.

    Dead inputs' weights cost the damping and no more; without any their scale is next to nothing, not 0.
    """
    diagonal = gram.diagonal()
    alive = diagonal > 0
    mean = diagonal[alive].mean() if bool(alive.any()) else diagonal.new_ones(())
    return (diagonal + damping * mean).maximum(1e-16 * mean).sqrt()


def refit(problem: Scaled, start: Tensor, mask: Tensor, steps: int, tol: float = 1e-4) -> Tensor:
    """At most `steps` conjugate-gradient steps from `start` on the weights of a support, all rows at once.

    start: (rows, columns), zero outside mask (True = kept). Each row's error falls with every step; stops where the
    residual on the support is `tol` of what it was in every row. The identity preconditions, as H has a unit diagonal.
    """
    solution = start.clone()
    residual = ((problem.dense - solution) @ problem.hessian).mul_(mask)
    direction = residual.clone()
    size = residual.square().sum(1)
    enough = size * tol**2
    for _ in range(steps):
        if bool((size <= enough).all()):
            break
        moved = (direction @ problem.hessian).mul_(mask)
        # A row that is done has nothing left to move: 0 / 0 stands for no step.
        length = size / (direction * moved).sum(1)
        length = torch.where(length.isfinite(), length, 0.0)[:, None]
        solution.addcmul_(length, direction)
        residual.addcmul_(length, moved, value=-1)
        before, size = size, residual.square().sum(1)
        ratio = torch.where(before > 0, size / before, 0.0)[:, None]
        direction.mul_(ratio).add_(residual)
    return solution
