"""ADMM with one penalty and a mask that is grown: the layer-wise weight update of Boza (2024).

Source: arXiv 2401.02938; dossier paper-rpp-block, section 5.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from argprune.solvers.admm.layer import Layer, Pruned
from argprune.solvers.admm.scaling import Scaled


@dataclass(frozen=True)
class GradualADMM:
    """Inputs scaled to one second moment, then damped; the mask follows W + U while sparsity rises as a cubic.

    damping: of the unit diagonal, >= 0; rho: the penalty, > 0; num_steps: iterations, of which the first `growing` set
    the mask anew. The authors' layer-global branch took the final sparsity from the first iteration on, and their N:M
    branch pruned entries of its own besides; here the sparsity of the support itself grows, whichever it is.
    """

    damping: float = 0.1
    rho: float = 1.0
    num_steps: int = 20
    growing: int = 15

    def __post_init__(self) -> None:
        if not self.damping >= 0:
            raise ValueError(f"GradualADMM: damping {self.damping}; it must be >= 0.")
        if not self.rho > 0:
            raise ValueError(f"GradualADMM: rho {self.rho}; it must be > 0.")
        if not 1 <= self.growing <= self.num_steps:
            raise ValueError(
                f"GradualADMM: growing {self.growing}, num_steps {self.num_steps}; need 1 <= growing <= num_steps."
            )

    def prune(self, layer: Layer) -> Pruned:
        """The last split point: no refit follows."""
        problem = Scaled.of(layer.gram, layer.dense, 0.0, torch.float32)
        damped = problem.hessian + self.damping * torch.eye(len(problem.hessian)).to(problem.hessian)
        target = problem.dense @ damped
        damped.diagonal().add_(self.rho)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        primal, dual = problem.dense, torch.zeros_like(problem.dense)
        mask = torch.ones_like(primal, dtype=torch.bool)
        for step in range(self.num_steps):
            moved = primal + dual
            if step < self.growing:
                share = 1 - (1 - (step + 1) / self.growing) ** 3
                mask = layer.support.eased(share).select(moved.abs())
            split = moved * mask
            dual = moved - split
            primal = (target + self.rho * (split - dual)) @ inverse
        return Pruned(problem.unscaled((primal + dual) * mask, layer), mask, {})
