"""Truncated SVD: every weight a product of two thin factors from the first step on, then ordinary training.

    P, Q <- SVD of W, plain or weighted by the inputs' second moments
    ranks <- within the size: the same share of every matrix, or those that lose least (scope "global")
    for each step: optimizer's step on f

The baseline of `flop` at equal size: ranks by what a matrix loses, not by what the loss does.

Reference: whitening is that of Wang et al., "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language
Model Compression" (2025). See docs/theory/low-rank.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from argprune.solvers.groups import Weight
from argprune.solvers.methods.low_rank import FactorPlan, LowRank, worth
from argprune.solvers.methods.structures import Scope
from argprune.solvers.registry import register
from argprune.solvers.schedules import check_sparsity


@register("methods", "svd", examples=[{"sparsity": 0.5, "multiple": 1}])
@dataclass
class Svd(LowRank):
    """Truncated SVD at the start, then training of the factors.

    sparsity: fraction of the weights' numbers that the factors save, in [0, 1).
    initial: "svd" or "whitened". embeddings: see `FactorPlan`. multiple: ranks are multiples of it, where that meets
    the size.
    scope: "matrix", every matrix gives up the same share, or "global", ranks are those at which the squared errors,
    each relative to its matrix's squared norm, are least in sum.
    """

    sparsity: float
    initial: Literal["svd", "whitened"] = "svd"
    scope: Scope = "matrix"
    embeddings: bool = False
    multiple: int = 8

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        self._plan = FactorPlan(self.initial, "full", self.embeddings)
        if self.initial not in ("svd", "whitened"):
            raise ValueError(f"svd: initial {self.initial!r}; choose 'svd' or 'whitened'.")
        if self.scope not in ("matrix", "global"):
            raise ValueError(f"svd: scope {self.scope!r}; choose 'matrix' or 'global'.")
        if self.multiple < 1:
            raise ValueError(f"svd: multiple {self.multiple}; ranks are multiples of at least 1.")

    @property
    def wants_factors(self) -> FactorPlan:
        """Full rank: what to drop is chosen of everything."""
        return self._plan

    @torch.no_grad()
    def attach(self, weights: Sequence[Weight], total_steps: int) -> None:
        """Truncate."""
        super().attach(weights, total_steps)
        self._drop([worth(factors) for factors in self._factors])

    def finish(self) -> dict[str, Tensor]:
        """Which components of the full factorisation are left."""
        return self._masks()
