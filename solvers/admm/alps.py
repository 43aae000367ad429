"""ALPS: ADMM on the layer problem with a growing penalty, then conjugate gradients on the support that it found.

    minimise tr (W - B) H (W - B)^T    subject to    B = D,    support(D) in S

Source: Meng, Behdin, Wang, Mazumder 2024; dossier paper-rpp-block, section 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from argprune.solvers.admm.layer import Layer, Pruned
from argprune.solvers.admm.scaling import Eigen, Scaled, refit


@dataclass(frozen=True)
class ALPS:
    """ADMM with rho continuation, one eigendecomposition for every rho, and a refit of the support.

    damping: share of the mean diagonal, >= 0; rho: the first penalty, > 0; num_steps: at most so many iterations;
    every: iterations between two looks at the support, by whose change rho grows; refit_steps: of conjugate gradients.
    The eigendecomposition is in float64, the iterations in float32, as the authors'.
    """

    damping: float = 0.01
    rho: float = 0.1
    num_steps: int = 300
    every: int = 3
    refit_steps: int = 10

    def __post_init__(self) -> None:
        if not self.damping >= 0:
            raise ValueError(f"ALPS: damping {self.damping}; it must be >= 0.")
        if not self.rho > 0:
            raise ValueError(f"ALPS: rho {self.rho}; it must be > 0.")
        for name, value, least in (("num_steps", self.num_steps, 1), ("every", self.every, 1)):
            if value < least:
                raise ValueError(f"ALPS: {name} {value}; it is a number of iterations, at least {least}.")
        if self.refit_steps < 0:
            raise ValueError(f"ALPS: refit_steps {self.refit_steps}; it is a number of steps, at least 0.")

    def prune(self, layer: Layer) -> Pruned:
        """ADMM, then the refit; the report says iterations, the last rho and the error before the refit."""
        problem = Scaled.of(layer.gram, layer.dense, self.damping, torch.float32)
        exact = Eigen.of(Scaled.of(layer.gram, layer.dense, self.damping, torch.float64).hessian)
        # A Gram matrix has no eigenvalues below 0; rounding has.
        eigen = Eigen(exact.values.clamp_min(0).float(), exact.vectors.float())
        support, dense = layer.support, problem.dense
        target = dense @ problem.hessian
        rho, raised = self.rho, False
        inverse = eigen.inverse(rho)
        first = support.select(dense.abs())
        before, kept = first, int(first.count_nonzero())
        primal, split, dual = dense, dense * first, torch.zeros_like(dense)
        step = 0
        for step in range(1, self.num_steps + 1):
            primal = (target - dual + rho * split) @ inverse
            moved = primal + dual / rho
            mask = support.select(moved.abs())
            split = moved * mask
            dual = dual + rho * (primal - split)
            if step % self.every:
                continue
            change = int((mask != before).count_nonzero())
            before = mask
            share = change / max(1, kept)
            if share > 0.1:
                rho, raised = rho * 1.3, True
            elif share > 0.005:
                rho, raised = rho * 1.2, True
            elif raised and change:
                rho *= 1.1
            elif raised:
                break
            else:
                # The support hardly moves from the start: the penalty was too strong.
                rho /= 5
                if change:
                    split, dual = dense * first, torch.zeros_like(dense)
            rho = min(rho, 1e6)
            inverse = eigen.inverse(rho)
            if step > 30 and share < 3e-4:
                break
        mask = support.select(primal.abs())
        start = primal * mask
        fitted = refit(problem, start, mask, self.refit_steps)
        report = {"num_steps": step, "rho": rho, "before_refit": layer.error(problem.unscaled(start, layer))}
        return Pruned(problem.unscaled(fitted, layer), mask, report)
