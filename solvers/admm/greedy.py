"""Optimal brain surgeon, layer-wise: remove the weight that costs least, refit the row, and again."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from argprune.solvers.admm.layer import Layer, Pruned
from argprune.solvers.admm.scaling import Scaled, refit
from argprune.solvers.admm.supports import NM, Support, Unstructured
from argprune.solvers.criteria.layerwise import OBC, removals


@dataclass(frozen=True)
class OBS:
    """Exact greedy removal in every row (OBC), rows compared by their traces of losses, survivors refitted.

    The removal that costs least with the row's survivors refitted comes first; in scope "matrix" the removals of all
    rows are merged by their losses. For N:M, entries whose neighbours have lost their share are passed over. Takes
    unstructured and N:M supports. damping: share of the mean diagonal, >= 0; it must leave the Gram matrix positive
    definite. tol: of the refit by conjugate gradients, whose steps are not limited.
    rows x columns^3 / 3 multiplications at the speed of memory: see `argprune.solvers.criteria.OBC`.
    Source: Frantar, Singh, Alistarh 2022; dossier paper-pins-sparsebert, section 3.
    """

    damping: float = 0.01
    tol: float = 1e-6

    def __post_init__(self) -> None:
        # The criterion refuses a damping that makes no sense.
        OBC(self.damping)
        if not 0 < self.tol < 1:
            raise ValueError(f"OBS: tol {self.tol}; it must be in (0, 1).")

    def prune(self, layer: Layer) -> Pruned:
        """The greedy support, and the best weights on it. Raises ValueError for groups, and a singular G."""
        self.check(layer.support)
        criterion, gram, dense = OBC(self.damping), layer.gram.double(), layer.dense.double()
        once = {"moments": gram, "tokens": torch.ones((), dtype=torch.int64)}
        if isinstance(layer.support, NM):
            # The shape is refused here where it allows no such support.
            layer.support.within(dense.shape)
            hessian, alive = criterion.hessian(once)
            order, _ = removals(hessian, dense * alive, (layer.support.n, layer.support.m))
            mask = torch.ones_like(dense, dtype=torch.bool).scatter_(1, order, False)
        else:
            mask = layer.support.select(criterion.scores(once, dense))
        problem = Scaled.of(gram, dense, self.damping, torch.float64)
        fitted = refit(problem, problem.dense * mask, mask, layer.dense.shape[1], self.tol)
        return Pruned(problem.unscaled(fitted, layer), mask, {})

    def check(self, support: Support) -> None:
        """Raise ValueError for groups."""
        if not isinstance(support, NM | Unstructured):
            raise ValueError(f"OBS: {support}; it removes single weights. Give Unstructured or NM, or take 'alps'.")
